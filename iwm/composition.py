"""One photometry on top of another, as a single one where that exists.

Operations are applied in one fixed order, brightness first and solarize last, so a second
photometry can be folded into a first only where its operations may move past those that are
there already. Without clipping at 0 and 1: brightness, contrast and saturation commute; contrast
and saturation do not pass a hue rotation, which changes the luma they refer to; a hue rotation
does not pass a blur, which mixes neighbours; grayscale swallows saturation and hue; a blur of a
blur adds the squares of the sigmas; nothing but itself passes solarize, which is idempotent.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from iwm.errors import InvalidActionError

if TYPE_CHECKING:
    from iwm.actions import Photometry


def compose(first: Photometry, second: Photometry) -> Photometry:
    """The photometry whose pixels are those of `second` applied to a view of `first`.

    Equal up to what clipping at 0 and 1 does between the two.

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
        blur=math.hypot(first.blur, second.blur),
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


def _turn(hue: float) -> float:
    """Into [-0.5, 0.5]: a whole turn leads back."""
    return math.remainder(hue, 1.0)
