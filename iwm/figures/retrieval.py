"""Which actions the paper's retrieval figures show [arXiv 2403.00504, figures 1 and S5 to S8].

Figure 1 has actions that a reader can name, and corruptions undone; `NAMED` are of its kind. The
figures of appendix I are drawn at random: `random_actions`. What is retrieved for them is computed by
`iwm.demo.retrieve`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from iwm.actions import CLEAN, Action, Photometry
from iwm.demo import Retrieval
from iwm.errors import InvalidConfigError
from iwm.evaluation.mrr import Distribution, Protocol, check_protocol, draw_views, target_distribution
from iwm.world_model import WorldModel

NAMED: dict[str, Action] = {
    "darker": Action(brightness=0.6),
    "more contrast": Action(contrast=1.4),
    "hue shifted": Action(hue=0.15),
    "brighter, less colour": Action(brightness=1.3, saturation=0.65),
    "undo: hue shifted": Action(hue=-0.15).inverse(),
    "undo: blurred": Action(blur=1.5).inverse(),
    "undo: solarized": Action(solarize=True).inverse(),
    "undo: grayscale": Action(grayscale=True).inverse(),
}
"""What figure 1 is about: actions applied, and corruptions undone. The first kind needs no training
on destructive targets."""

_APART = 1 << 20
"""Views of the random actions are drawn as those of photographs that no bank has."""


def random_actions(
    model: WorldModel, rows: int, protocol: Protocol = "transfer", *, seed: int = 0
) -> dict[str, Action]:
    """Random actions, by what to call them, from the distributions the model was trained on.

    Args:
        model: whose training distribution they are drawn from.
        rows: how many, at least 1.
        protocol: `transfer` leads from one random view to another, as in training; `apply` from the
            untouched photograph; `undo` to it.
        seed: of the draw.

    Raises:
        InvalidConfigError: an unknown protocol, or no rows.
    """
    check_protocol(protocol)
    if rows < 1:
        raise InvalidConfigError(f"{rows} random actions; ask for at least 1.")
    starts = _views(model, rows, "full", seed, _APART)
    ends = _views(model, rows, target_distribution(model), seed, _APART + 1)
    named: dict[str, Action] = {}
    for number, (start, end) in enumerate(zip(starts, ends, strict=True), start=1):
        action = Action.between(CLEAN if protocol == "apply" else start, CLEAN if protocol == "undo" else end)
        named[f"{number}. {_in_short(action.source)}\nto {_in_short(action.target)}"] = action
    return named


def retrievals_to_dict(retrievals: Sequence[Retrieval]) -> list[dict[str, Any]]:
    """The numbers behind the picture, as plain JSON values."""
    return [
        {
            "action": item.name.replace("\n", " "),
            "source": dataclasses.asdict(item.action.source),
            "target": dataclasses.asdict(item.action.target),
            "rank": item.rank,
            "bank_size": item.bank_size,
            "found": [
                {"photometry": dataclasses.asdict(view), "distance": distance, "right": right}
                for view, distance, right in zip(item.photometries, item.distances, item.right, strict=True)
            ],
        }
        for item in retrievals
    ]


def _views(
    model: WorldModel, count: int, distribution: Distribution, seed: int, index: int
) -> list[Photometry]:
    params = draw_views(model, count, distribution=distribution, seed=seed, index=index)
    return [Photometry.from_params(row) for row in params]


def _in_short(view: Photometry) -> str:
    """A view's operations without their strengths: there is no room for seven numbers."""
    if view.is_clean:
        return "untouched"
    words = (
        ["jitter"] + ["gray"] * view.grayscale + ["blur"] * (view.blur > 0) + ["solarized"] * view.solarize
    )
    return ", ".join(words)
