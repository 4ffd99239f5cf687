"""Which photometries a model was trained on: what to search, and when to warn.

The bounds are those of the distribution its views were drawn from [arXiv 2403.00504, App. A.1].
A model whose targets had jitter alone was never asked to *apply* grayscale, blur or solarize.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from iwm.config import ActionConfig
from iwm.photometry import FIELDS, IDENTITY

_SLACK = 1e-5
"""A draw at the end of its range may lie a rounding outside of it."""


@dataclass(frozen=True)
class TrainedRange:
    """Lowest and highest value of every parameter, `[7]` each, in the order of `FIELDS`."""

    low: Tensor
    high: Tensor

    def __str__(self) -> str:
        """Everything away from the identity, in words."""
        parts = []
        for name, low, high in zip(FIELDS, self.low.tolist(), self.high.tolist(), strict=True):
            if name in ("grayscale", "solarize"):
                parts.append(name if high else f"no {name}")
            else:
                parts.append(f"{name} {low:g} to {high:g}" if low < high else f"no {name}")
        return ", ".join(parts)


def trained_range(actions: ActionConfig, *, jitter_alone: bool = False) -> TrainedRange:
    """The range of a model's training views.

    Args:
        actions: of its config.
        jitter_alone: without the destructive operations.
    """
    d = actions.distribution
    low, high = list(IDENTITY), list(IDENTITY)
    if d.jitter_probability > 0:
        for column, strength in enumerate((d.brightness, d.contrast, d.saturation)):
            low[column], high[column] = max(0.0, 1.0 - strength), 1.0 + strength
        low[3], high[3] = -d.hue, d.hue
    if not jitter_alone:
        high[4] = float(d.grayscale_probability > 0)
        high[5] = d.blur_sigma[1] if d.blur_probability > 0 else 0.0
        high[6] = float(d.solarize_probability > 0)
    return TrainedRange(torch.tensor(low), torch.tensor(high))


def outside(params: Tensor, actions: ActionConfig, said: Collection[str] = ()) -> str | None:
    """Says in words what of some actions the model was not trained for; None if nothing.

    Args:
        params: `[K, 2, 7]`, source and target photometry.
        actions: of the model's config.
        said: parameters of which nothing is to be said.
    """
    sources, targets = trained_range(actions), trained_range(actions, jitter_alone=not actions.symmetric)
    for view, end, known in (("source", params[:, 0], sources), ("target", params[:, 1], targets)):
        end = end.detach().float().cpu()
        wrong = (end < known.low - _SLACK) | (end > known.high + _SLACK)
        wrong &= torch.tensor([name not in said for name in FIELDS])
        if bool(wrong.any()):
            row, column = wrong.nonzero()[0].tolist()
            value = end[row, column].item()
            what = (
                FIELDS[column]
                if FIELDS[column] in ("grayscale", "solarize")
                else f"{FIELDS[column]} {value:g}"
            )
            return f"{what} in the {view} view; trained range: {known}"
    return None
