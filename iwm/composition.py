"""One photometry on top of another, as a single one where that exists.

Operations are applied in one fixed order, brightness first and solarize last, so a second
photometry can be folded into a first only where its operations may move past those that are
there already. Without clipping at 0 and 1: brightness, contrast and saturation commute; contrast
and saturation do not pass a hue rotation, which changes the luma they refer to; a hue rotation
does not pass a blur, which mixes neighbours; grayscale swallows saturation and hue; a blur of a
blur adds the variances of the kernels, which are the squares of sigmas that are not small; nothing
but itself passes solarize, which is idempotent.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from iwm.errors import InvalidActionError

if TYPE_CHECKING:
    from iwm.actions import Photometry


_WIDE = 0.8
"""Sigmas from which the variance of the sampled kernel is the square of the sigma, to 1e-4."""


def compose(first: Photometry, second: Photometry) -> Photometry:
    """The photometry whose pixels are those of `second` applied to a view of `first`.

    Equal up to what clipping at 0 and 1 does between the two, and up to the borders: a blur reflects
    them, which changes the mean that contrast refers to, and a reflection of a reflection is another.

    Raises:
        InvalidActionError: no single photometry does it; the message says which operation stands
            in the way.
    """
    _check(first, second)
    colourless = first.grayscale
    return dataclasses.replace(
        first,
        brightness=_factor("brightness", first.brightness * second.brightness),
        contrast=_factor("contrast", first.contrast * second.contrast),
        # What comes after grayscale changes no colour; what came before chose its luma.
        saturation=first.saturation
        if colourless
        else _factor("saturation", first.saturation * second.saturation),
        hue=first.hue if colourless else _turn(first.hue + second.hue),
        grayscale=first.grayscale or second.grayscale,
        blur=_sigma(first.blur, second.blur),
        solarize=first.solarize or second.solarize,
    )


def _check(first: Photometry, second: Photometry) -> None:
    linear = [name for name in ("contrast", "saturation") if getattr(second, name) != 1.0]
    if first.solarize and not dataclasses.replace(second, solarize=False).is_clean:
        raise _refusal("solarize comes last, and nothing can be moved before it", "solarized")
    if first.grayscale:
        linear = [name for name in linear if name == "contrast"]  # There is no colour to saturate.
    if first.hue and linear:
        raise _refusal(f"{linear[0]} refers to the luma, which a hue rotation changes", "rotated in hue")
    if first.blur and second.hue and not first.grayscale:
        raise _refusal("a hue rotation does not pass a blur, which mixes neighbouring colours", "blurred")


def _refusal(why: str, state: str) -> InvalidActionError:
    return InvalidActionError(
        f"No single action does this to a view that is already {state}: {why}. Take the two steps one "
        "after another: model.roll(latent, [a, b])."
    )


def _factor(name: str, value: float) -> float:
    if value > 1000.0:
        raise InvalidActionError(f"The two {name} factors make {value:g}; 1000 is the most.")
    return value


def _sigma(first: float, second: float) -> float:
    """Of the one blur that is like two.

    A narrow Gaussian is sampled at a few pixels, and these vary less than its sigma says.

    >>> round(_sigma(0.3, 0.4), 3), _sigma(0.9, 1.2)
    (0.406, 1.5)
    """
    widest = math.hypot(first, second)
    if not first or not second or min(first, second) >= _WIDE:
        return widest
    both, low, high = _variance(first) + _variance(second), max(first, second), widest
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _variance(middle) < both else (low, middle)
    return high


def _variance(sigma: float) -> float:
    """Of the kernel of `iwm.photometry.gaussian_blur`, in pixels squared."""
    offsets = range(1, math.ceil(4.0 * sigma) + 1)
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in offsets]
    moment = sum(weight * offset**2 for weight, offset in zip(weights, offsets, strict=True))
    return 2 * moment / (1 + 2 * sum(weights))


def _turn(hue: float) -> float:
    """Into [-0.5, 0.5]: a whole turn leads back."""
    return math.remainder(hue, 1.0)
