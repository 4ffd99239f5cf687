"""Photometric actions: values, their random draws, and the vectors a world model reads.

An action a_{x->y} leads from one view's photometry to another's [arXiv 2403.00504,
section 3]. `Photometry` and `Action` are plain immutable values with units and ranges stated
once; `draw_photometry` samples many at a time, every draw a function of (seed, epoch, sample
index) alone; `encode_photometry` turns parameters into vectors and is differentiable.

Shapes: K actions are `params [K, 2, 7]` (source and target photometry, columns as in
`iwm.photometry.FIELDS`) and vectors `[K, A]`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from iwm.config import STRENGTHS, VECTOR_SIZE, ActionEncoding, PhotometryDistribution
from iwm.errors import InvalidActionError, InvalidConfigError, nearest
from iwm.fields import require_count

if TYPE_CHECKING:
    from torch import Tensor

ImageT = TypeVar("ImageT")
SampleKey = tuple[int, int]
"""(epoch, index of the sample): with the seed, all that a random draw depends on."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIN_FACTOR = 0.05
_HUE_SCALE = 5.0
_BLUR_SCALE = 0.5


_FACTOR = (0.0, 1000.0, "a factor of 0 to 1000 (1 leaves the image as it is)")
_RANGES: dict[str, tuple[float, float, str]] = {
    "brightness": _FACTOR,
    "contrast": _FACTOR,
    "saturation": _FACTOR,
    "hue": (-0.5, 0.5, "-0.5 to 0.5 turns"),
    "blur": (0.0, 1000.0, "a sigma of 0 to 1000 pixels (0 leaves the image as it is)"),
}


def _number(name: str, value: Any) -> float:
    low, high, words = _RANGES[name]
    try:
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not low <= number <= high:
        raise InvalidActionError(f"{name} is {value!r}; it must be {words}.")
    return number


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool | int | float | np.bool_) or value not in (0, 1):
        raise InvalidActionError(f"{name} is {value!r}; it must be True or False.")
    return bool(value)


@dataclass(frozen=True, kw_only=True)
class Photometry:
    """How a view looks, in absolute parameters; the default is the untouched image.

    Attributes:
        brightness: factor of 0 to 1000, 1 is the identity.
        contrast: factor of 0 to 1000 around the mean luma, 1 is the identity.
        saturation: factor of 0 to 1000, 0 is colourless, 1 is the identity.
        hue: rotation in turns, -0.5 to 0.5.
        grayscale: whether the three channels are replaced by their luma.
        blur: sigma of a Gaussian in pixels of the model's input, 0 to 1000.
        solarize: whether values of at least 0.5 are inverted.

    Raises:
        InvalidActionError: a parameter that is not a number, or outside its range.

    >>> Photometry(brightness=1.4, grayscale=True)
    Photometry(brightness=1.4, grayscale=True)
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    grayscale: bool = False
    blur: float = 0.0
    solarize: bool = False

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "hue", "blur"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        for name in ("grayscale", "solarize"):
            object.__setattr__(self, name, _switch(name, getattr(self, name)))

    @property
    def params(self) -> tuple[float, ...]:
        """The seven parameters as floats, in the order of `iwm.photometry.FIELDS`."""
        return tuple(float(v) for v in dataclasses.astuple(self))

    @classmethod
    def from_params(cls, params: Sequence[float] | Tensor) -> Photometry:
        """The inverse of `params`; float32 values read as the shortest decimals that give them."""
        try:
            numbers = [float(str(np.float32(float(p)))) for p in params]
        except (TypeError, ValueError) as error:
            raise InvalidActionError(f"A photometry is read from 7 numbers, not from {params!r}.") from error
        if len(numbers) != 7:
            raise InvalidActionError(f"{len(numbers)} parameters; a photometry has 7.")
        b, c, s, h, g, blur, sol = numbers
        return cls(
            brightness=b, contrast=c, saturation=s, hue=h,
            grayscale=_switch("grayscale", g), blur=blur, solarize=_switch("solarize", sol),
        )  # fmt: skip

    @property
    def is_clean(self) -> bool:
        """Whether this is the untouched image."""
        return self == CLEAN

    def __str__(self) -> str:
        return ", ".join(_described(self)) or "clean"

    def __repr__(self) -> str:
        return f"Photometry({', '.join(_described(self))})"


CLEAN = Photometry()
"""The photometry of an untouched image."""


@dataclass(frozen=True, init=False, repr=False)
class Action:
    """What leads from a source view to a target view; the constructor's source is clean.

    >>> Action(brightness=1.4, hue=0.1)
    Action(brightness=1.4, hue=0.1)
    >>> Action(brightness=2.0).inverse()
    Action.between(Photometry(brightness=2.0), Photometry())
    >>> Action(hue=0.7)
    Traceback (most recent call last):
        ...
    iwm.errors.InvalidActionError: hue is 0.7; it must be -0.5 to 0.5 turns.

    Args:
        brightness, contrast, saturation, hue, grayscale, blur, solarize: the target's
            `Photometry`; see there for units and ranges.
    """

    source: Photometry
    target: Photometry

    def __init__(
        self,
        *,
        brightness: float = 1.0,
        contrast: float = 1.0,
        saturation: float = 1.0,
        hue: float = 0.0,
        grayscale: bool = False,
        blur: float = 0.0,
        solarize: bool = False,
    ) -> None:
        target = Photometry(
            brightness=brightness, contrast=contrast, saturation=saturation, hue=hue,
            grayscale=grayscale, blur=blur, solarize=solarize,
        )  # fmt: skip
        object.__setattr__(self, "source", CLEAN)
        object.__setattr__(self, "target", target)

    @classmethod
    def between(cls, source: Photometry, target: Photometry) -> Action:
        """The action from a view of `source` photometry to one of `target` photometry."""
        for value in (source, target):
            if not isinstance(value, Photometry):
                raise InvalidActionError(
                    f"Action.between takes two Photometry values, not {type(value).__name__}; "
                    "write Action.between(Photometry(brightness=2), Photometry())."
                )
        action = cls()
        object.__setattr__(action, "source", source)
        object.__setattr__(action, "target", target)
        return action

    @classmethod
    def sample(
        cls, n: int, strength: Literal["strong", "paper"] = "strong", *, seed: int = 0
    ) -> list[Action]:
        """Draw `n` actions from a clean source, as training draws its views.

        Args:
            n: how many, >= 0.
            strength: `paper` [App. A.1] or `strong` [table S2].
            seed: the same seed gives the same actions; >= 0.

        Raises:
            InvalidActionError: another strength, or no such number.
        """
        if strength not in STRENGTHS:
            raise InvalidActionError(f'Unknown strength "{strength}".{nearest(strength, STRENGTHS)}')
        try:
            n, seed = require_count("n", n, least=0), require_count("seed", seed, least=0)
        except InvalidConfigError as error:
            raise InvalidActionError(f"Action.sample: {error}") from error
        params = draw_photometry(STRENGTHS[strength], seed=seed, keys=[(0, i) for i in range(n)])
        return [cls.between(CLEAN, Photometry.from_params(row)) for row in params]

    def inverse(self) -> Action:
        """The way back: from the target to the source."""
        return Action.between(self.target, self.source)

    def then(self, second: Action) -> Action:
        """Chain this action and another into one.

        Where `second` starts from this action's target, the path's two ends: always possible.
        Where `second` starts from the clean image, as the constructor makes it, it is applied on
        top of what this action has done, as `second.apply(self.apply(image))` does to pixels, up
        to what clipping at 0 and 1 does in between.

        >>> Action(brightness=1.5, hue=0.1).then(Action(brightness=0.5))
        Action(brightness=0.75, hue=0.1)

        Raises:
            InvalidActionError: `second` starts somewhere else, or no single action does it (see
                `iwm.composition`); `model.roll(latent, [a, b])` takes the steps one by one.
        """
        if not isinstance(second, Action):
            raise InvalidActionError(
                f"Expected iwm.Action, got {type(second).__name__}; write a.then(iwm.Action(brightness=1.4))."
            )
        if second.source == self.target:
            return Action.between(self.source, second.target)
        if not second.source.is_clean:
            raise InvalidActionError(
                f"The second action starts from ({second.source}), the first ends at ({self.target}); "
                "give the second a clean source, or the first one's target."
            )
        from iwm.composition import compose

        return Action.between(self.source, compose(self.target, second.target))

    @property
    def is_identity(self) -> bool:
        """Whether source and target are the same view."""
        return self.source == self.target

    def apply(self, image: ImageT) -> ImageT:
        """Transform pixels, and return the kind that was given.

        Args:
            image: PIL image, HWC uint8 array, or `[3, H, W]` / `[B, 3, H, W]` tensor (uint8,
                or float in [0, 1]). Blur counts in pixels of this very image.

        Raises:
            InvalidActionError: the source is not clean: pixels hold no way back in general.
            InvalidImageError: not an image of one of these kinds.
        """
        if not self.source.is_clean:
            raise InvalidActionError(
                f"{self!r} starts from a transformed view, and pixels cannot be un-transformed. "
                "Apply it to a latent (model.apply_action), or build it with a clean source."
            )
        from iwm.images import transform_image

        return transform_image(image, self.target.params)

    def __str__(self) -> str:
        return str(self.target) if self.source.is_clean else f"({self.source}) -> ({self.target})"

    def __repr__(self) -> str:
        if self.source.is_clean:
            return f"Action({', '.join(_described(self.target))})"
        return f"Action.between({self.source!r}, {self.target!r})"


def stack_actions(actions: Iterable[Action]) -> Tensor:
    """Parameters `[K, 2, 7]` float32 of K actions.

    Raises:
        InvalidActionError: an element is not an `Action`.
    """
    import torch

    rows = []
    for action in actions:
        if not isinstance(action, Action):
            raise InvalidActionError(
                f"Expected iwm.Action, got {type(action).__name__}; write iwm.Action(brightness=1.4)."
            )
        rows.append((action.source.params, action.target.params))
    return torch.tensor(rows, dtype=torch.float32).view(-1, 2, 7)


def encode_photometry(params: Tensor, encoding: ActionEncoding = "pair") -> Tensor:
    """Action vectors that a predictor reads; differentiable in the continuous parameters.

    `pair` holds, for source and target, the logarithms of the three factors (clamped at 0.05
    from below), 5 x hue, grayscale, sigma / 2 and solarize: 14 numbers. `difference` holds
    half the difference of the first four, target minus source, and for both views whether
    each destructive operation was applied [section 3]: 10 numbers. All are about [-1, 1] for
    the distributions of training.

    Args:
        params: `[K, 2, 7]`, source and target photometry.
        encoding: see above.

    Returns:
        `[K, 14]` or `[K, 10]`.

    Raises:
        InvalidActionError: parameters of another shape.
        InvalidConfigError: no such encoding.
    """
    import torch

    if params.ndim != 3 or params.shape[1:] != (2, 7):
        raise InvalidActionError(
            f"Parameters of shape {list(params.shape)}; expected [K, 2, 7], of source and target views: "
            "torch.stack((source, target), dim=1)."
        )
    if encoding not in VECTOR_SIZE:
        raise InvalidConfigError(f'No encoding is called "{encoding}".{nearest(str(encoding), VECTOR_SIZE)}')
    factors = params[..., :3].clamp_min(_MIN_FACTOR).log()
    hue = params[..., 3:4] * _HUE_SCALE
    jitter = torch.cat((factors, hue), dim=-1)
    gray, blur, solarize = params[..., 4:5], params[..., 5:6], params[..., 6:7]
    if encoding == "pair":
        views = torch.cat((jitter, gray, blur * _BLUR_SCALE, solarize), dim=-1)
        return views.flatten(1)
    difference = (jitter[:, 1] - jitter[:, 0]) * 0.5
    flags = torch.cat((gray, (blur > 0).to(params.dtype), solarize), dim=-1)
    return torch.cat((difference, flags.flatten(1)), dim=-1)


def draw_photometry(
    distribution: PhotometryDistribution, *, seed: int, keys: Sequence[SampleKey], stream: int = 7
) -> Tensor:
    """Random photometries, `[n, 7]` float32, one per sample.

    Args:
        distribution: what to draw from.
        seed, keys, stream: every draw is a function of the seed, its sample's (epoch, index)
            and the stream alone, so that it replays bit for bit in any batch and on any
            number of processes.

    Raises:
        InvalidConfigError: a seed that is no whole number, or negative.
    """
    import torch

    seed = require_count("seed", seed, least=0)
    d = distribution
    u = uniforms(seed, keys, stream=stream, count=9)
    jitter = u[:, 0] < d.jitter_probability
    params = torch.zeros(len(u), 7, dtype=torch.float64)
    for column, strength in enumerate((d.brightness, d.contrast, d.saturation)):
        low, high = max(0.0, 1.0 - strength), 1.0 + strength
        params[:, column] = torch.where(jitter, low + (high - low) * u[:, 1 + column], 1.0)
    params[:, 3] = torch.where(jitter, d.hue * (2.0 * u[:, 4] - 1.0), 0.0)
    params[:, 4] = (u[:, 5] < d.grayscale_probability).double()
    low, high = d.blur_sigma
    params[:, 5] = torch.where(u[:, 6] < d.blur_probability, low + (high - low) * u[:, 7], 0.0)
    params[:, 6] = (u[:, 8] < d.solarize_probability).double()
    return params.float()


def uniforms(seed: int, keys: Sequence[SampleKey], *, stream: int, count: int) -> Tensor:
    """Independent uniforms in [0, 1), `[n, count]` float64, keyed by (seed, epoch, index, stream).

    A counter-based generator, all samples at once: the SplitMix64 finaliser (Steele, Lea and
    Flood, 2014) chained over the key and then over the columns.
    """
    import torch

    epochs_indices = np.array(keys, dtype=np.uint64).reshape(-1, 2)
    words = [seed >> bits & 2**64 - 1 for bits in range(0, max(seed.bit_length(), 1), 64)]
    state = np.full(len(epochs_indices), words[0], dtype=np.uint64)
    for word in (*map(np.uint64, words[1:]), *epochs_indices.T, np.uint64(stream)):
        state = _mixed(_mixed(state) + word)
    columns = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    bits = _mixed(state[:, None] + columns)
    return torch.from_numpy((bits >> np.uint64(11)) * 2.0**-53)


def _mixed(z: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The finaliser of SplitMix64, on 64-bit words that wrap around."""
    z = z + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _described(photometry: Photometry) -> list[str]:
    """`name=value` for every parameter away from its default."""
    return [
        f"{f.name}={getattr(photometry, f.name)!r}"
        for f in dataclasses.fields(Photometry)
        if getattr(photometry, f.name) != f.default
    ]
