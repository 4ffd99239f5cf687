"""The seven sliders: what they are called, how far they go, and what their values mean.

They go as far as the model's training did, so that nothing on the page is a guess outside of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from iwm.actions import CLEAN, Photometry
from iwm.photometry import FIELDS
from iwm.ranges import trained_range
from iwm.world_model import WorldModel

_SWITCHES = ("grayscale", "solarize")
_LABELS = {
    "brightness": "Brightness (factor)",
    "contrast": "Contrast (factor)",
    "saturation": "Saturation (factor)",
    "hue": "Hue (turns)",
    "grayscale": "Grayscale",
    "blur": "Blur (pixels)",
    "solarize": "Solarize",
}


@dataclass(frozen=True, kw_only=True)
class Slider:
    """One parameter of a photometry, as a slider or a switch.

    Attributes:
        name: as in `iwm.photometry.FIELDS`.
        label: what to call it, with its unit.
        low, high: the trained range.
        start: the value that changes nothing.
        switch: whether it is on or off and nothing between.
    """

    name: str
    label: str
    low: float
    high: float
    start: float
    switch: bool

    @property
    def trained(self) -> bool:
        """Whether the model was trained on more than one value."""
        return self.low < self.high

    def values(self, count: int) -> list[float]:
        """Values from one end of the range to the other; off and on of a switch."""
        if self.switch or not self.trained:
            return [self.low, self.high] if self.trained else [self.start]
        step = (self.high - self.low) / (count - 1)
        return [round(self.low + i * step, 4) for i in range(count)]


def sliders(model: WorldModel, *, undoing: bool = False) -> tuple[Slider, ...]:
    """The seven sliders of a model, in the order of `iwm.photometry.FIELDS`.

    Args:
        model: whose trained range they span.
        undoing: for views that are undone, not for those that are asked for: many models were
            trained to take back grayscale, blur and solarize, and never to apply them.
    """
    actions = model.config.actions
    known = trained_range(actions, jitter_alone=not (undoing or actions.symmetric))
    rows = zip(FIELDS, known.low.tolist(), known.high.tolist(), CLEAN.params, strict=True)
    return tuple(
        Slider(
            name=name, label=_LABELS[name], low=round(low, 4), high=round(high, 4),
            start=start, switch=name in _SWITCHES,
        )
        for name, low, high, start in rows
    )  # fmt: skip


def photometry_of(values: Sequence[float | bool | None]) -> Photometry:
    """The photometry that seven sliders stand at; one that is empty changes nothing.

    Raises:
        InvalidActionError: a value that no photometry has.
    """
    given = {name: value for name, value in zip(FIELDS, values, strict=True) if value is not None}
    return dataclasses.replace(CLEAN, **given)  # type: ignore[arg-type]
