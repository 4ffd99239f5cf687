"""One parameter from low to high, and which view the world model finds for each value.

The paper's figures S9 to S11 [arXiv 2403.00504, appendix I]: is the model precise enough to predict
small changes? Each prediction is looked up among views along a dense grid of that parameter. The
paper judges by eye; the distance between the value asked for and the value found says it in numbers,
beside what a query that ignores the action would score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from iwm.actions import Action
from iwm.bank import Bank
from iwm.demo import Pixels
from iwm.errors import InvalidActionError, InvalidConfigError, nearest
from iwm.fields import require_count
from iwm.opening import ImageLike
from iwm.photometry import FIELDS
from iwm.ranges import trained_range
from iwm.world_model import WorldModel

PARAMETERS = ("brightness", "contrast", "saturation", "hue", "blur")
"""What can be swept: grayscale and solarize are on or off."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """One parameter on one photograph.

    Attributes:
        parameter: its name.
        source: the photograph as the model sees it, `[3, S, S]` array in [0, 1].
        asked: the values asked for.
        found: the value of the view nearest to each prediction.
        distances: of these views to the predictions.
        blind: the value of the view nearest to the photograph's own encoding.
        bank_size: views in the bank.
        true_views: the views asked for.
        found_views: the views found.
        decoded: what a decoder shows of the predictions, if it was asked to.
    """

    parameter: str
    source: Pixels
    asked: list[float]
    found: list[float]
    distances: list[float]
    blind: float
    bank_size: int
    true_views: list[Pixels]
    found_views: list[Pixels]
    decoded: list[Pixels] | None = None

    @property
    def error(self) -> float:
        """Mean absolute difference between values asked for and found; of hues, the way around."""
        return self._difference(self.found)

    @property
    def blind_error(self) -> float:
        """The same, for a model whose prediction is its input."""
        return self._difference([self.blind] * len(self.asked))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the pixels."""
        return {
            "parameter": self.parameter, "bank_size": self.bank_size, "asked": self.asked,
            "found": self.found, "distances": self.distances, "error": self.error,
            "blind_error": self.blind_error,
        }  # fmt: skip

    def _difference(self, values: list[float]) -> float:
        apart = np.abs(np.subtract(values, self.asked))
        return float((np.minimum(apart, 1 - apart) if self.parameter == "hue" else apart).mean())


def check_sweep(
    parameter: str,
    start: float | None = None,
    stop: float | None = None,
    steps: int = 7,
    bank_size: int = 256,
) -> None:
    """Raise what `sweep` would raise about these, before the work is done.

    Raises:
        InvalidActionError: a parameter that is unknown or cannot be swept, or a value out of its range.
        InvalidConfigError: less than 2 steps, a bank smaller than the steps, no room between the ends.
    """
    if parameter in FIELDS and parameter not in PARAMETERS:
        raise InvalidActionError(
            f"{parameter} is on or off and cannot be swept. Choose from: {', '.join(PARAMETERS)}."
        )
    if parameter not in PARAMETERS:
        raise InvalidActionError(f'No parameter is called "{parameter}".{nearest(parameter, PARAMETERS)}')
    for end in (start, stop):
        if end is not None:
            _action(parameter, end)
    if start is not None and stop is not None and not start < stop:
        raise InvalidConfigError(f"{parameter} from {start:g} to {stop:g}: the first must be the smaller.")
    require_count("steps", steps, least=2)
    if require_count("bank_size", bank_size) < steps:
        raise InvalidConfigError(f"bank_size is {bank_size}; it must be at least the {steps} steps.")


def sweep(
    model: WorldModel, image: ImageLike, parameter: str, start: float | None = None, stop: float | None = None,
    *, steps: int = 7, bank_size: int = 256, decode: bool = False,
) -> Sweep:  # fmt: skip
    """Ask the world model for evenly spaced values of one parameter, and look each prediction up.

    Args:
        model: the world model; it warns of values it was not trained for.
        image: one photograph, taken as untouched.
        parameter: one of `PARAMETERS`.
        start, stop: ends of the range; by default those of the model's training.
        steps: values asked for, at least 2.
        bank_size: views in the bank, about: a grid from end to end on which every value asked for lies.
        decode: also decode the predictions.

    Raises:
        InvalidActionError, InvalidConfigError: see `check_sweep`.
        WeightsUnavailableError: the model has no decoder.
        InvalidImageError: the photograph cannot be read.
    """
    check_sweep(parameter, start, stop, steps, bank_size)
    if decode:
        model.load_decoder()  # Before the work.
    if start is None or stop is None:
        low, high = _trained(model, parameter)
        start, stop = low if start is None else start, high if stop is None else stop
    check_sweep(parameter, start, stop)
    every = math.ceil((bank_size - 1) / (steps - 1))
    grid = [float(f"{value:.6g}") for value in np.linspace(start, stop, every * (steps - 1) + 1)]
    views = [_action(parameter, value) for value in grid]
    asked = views[::every]
    pixels = model.preprocess.one(image)
    bank = Bank.from_views(model, pixels, views)
    clean = model.encode(pixels)
    predicted = model.apply_action(clean, asked)
    hits = bank.search(predicted, k=1)
    found = [int(row[0]) for row in hits.ids]
    return Sweep(
        parameter=parameter,
        source=pixels.cpu().numpy(),
        asked=grid[::every],
        found=[grid[i] for i in found],
        distances=hits.distances[:, 0].tolist(),
        blind=grid[int(bank.search(clean, k=1).ids[0][0])],
        bank_size=len(bank),
        true_views=[action.apply(pixels).cpu().numpy() for action in asked],
        found_views=[views[i].apply(pixels).cpu().numpy() for i in found],
        decoded=list(model.decode(predicted).cpu().numpy()) if decode else None,
    )


def _trained(model: WorldModel, parameter: str) -> tuple[float, float]:
    """The range of the model's targets; of its sources where targets do not have the parameter."""
    column = FIELDS.index(parameter)
    for jitter_alone in (not model.config.actions.symmetric, False):
        known = trained_range(model.config.actions, jitter_alone=jitter_alone)
        low, high = known.low[column].item(), known.high[column].item()
        if low < high:
            return low, high
    raise InvalidConfigError(
        f"{model.config.name} was not trained on {parameter}; say from where to where it goes."
    )


def _action(parameter: str, value: float) -> Action:
    fields: dict[str, Any] = {parameter: value}
    return Action(**fields)
