"""Reading an edit: the photometric action between two images, with what speaks for and against it.

`infer_actions` searches it through the world model (`iwm.planning`) and reports residual, runner-ups
and confidence. Latents of two different scenes are recognised by their patches: the right action
brings every patch close to its counterpart, and between two scenes no patch has one.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iwm.actions import CLEAN, Action, Photometry
from iwm.costs import latent_cost, predictions_at_a_time
from iwm.errors import IncompatibleLatentError, InvalidActionError, InvalidConfigError, InvalidImageError
from iwm.fields import require_count
from iwm.images import Images, iterate
from iwm.latent import Latent
from iwm.opening import open_header, upright_size
from iwm.planning import Hypothesis, SearchSpace, Solver, search

if TYPE_CHECKING:
    from iwm.world_model import WorldModel

SAME_SCENE = 0.6
"""Mismatch above which two images are said to show different scenes; see `EditReport.mismatch`."""
SAME_PICTURE = 0.15
"""Residual above which they are, too.

Chosen with `iwm-tiny`, by `experiments/tell_scenes.py`: 95 of 100 pairs of one photograph, edited, have
a residual below 0.02 and a mismatch below 0.11; where the second was cropped too, a third of the pairs
are above one of the bounds. Most pairs of two photographs are."""
_TWO_SCENES = (
    "no action explains the second image: the two seem to show different scenes, or the same scene "
    "moved, turned or cropped differently"
)
_SHARPNESS = 0.03
"""Relative difference of residuals that makes a hypothesis e times less likely.

So that of 35 held-out edits the mean confidence is 0.80 where 0.86 had all three switches right; on
pairs that were degraded afterwards it is too high."""


@dataclass(frozen=True, kw_only=True)
class EditReport:
    """The edit between two images, and how well it explains the second.

    Attributes:
        action: from the first image, taken as clean, to the second.
        residual: mean squared difference between prediction and second latent, per feature; the
            features of a token have variance 1, so 0 is perfect and 2 unrelated.
        unmoved: the same without any action.
        mismatch: residual over what it would be against the second latent's *other* patches: near
            0 for one scene, near 1 for two.
        confidence: probability of the action's switches among their combinations, 0 to 1, from
            how much worse the best photometries of the others are.
        runner_ups: the best of each other combination of switches, best first.
        notes: what a reader should know, in words.
    """

    action: Action
    residual: float
    unmoved: float
    mismatch: float
    confidence: float
    runner_ups: tuple[Hypothesis, ...]
    notes: tuple[str, ...] = ()

    @property
    def same_scene(self) -> bool:
        """Whether an action explains the second image at all: residual and mismatch are both small."""
        return self.mismatch <= SAME_SCENE and self.residual <= SAME_PICTURE

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "words": in_words(self.action),
            "photometry": dataclasses.asdict(self.action.target),
            "residual": self.residual,
            "unmoved": self.unmoved,
            "mismatch": self.mismatch,
            "same_scene": self.same_scene,
            "confidence": self.confidence,
            "runner_ups": [
                {"words": in_words(h.photometry), "residual": h.residual} for h in self.runner_ups
            ],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [in_words(self.action)]
        lines.append(
            f"residual {self.residual:.3f} (without an action {self.unmoved:.3f}), "
            f"confidence {self.confidence:.0%}"
        )
        lines += [f"or: {in_words(h.photometry)} (residual {h.residual:.3f})" for h in self.runner_ups[:2]]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def in_words(edit: Action | Photometry) -> str:
    """An edit as one would say it; what is too small to see is left out.

    >>> in_words(Action(brightness=0.71, hue=0.06, grayscale=True))
    'brightness x0.71, hue +0.06, grayscale'
    >>> in_words(Photometry(contrast=1.01))
    'no change'
    """
    if isinstance(edit, Action):
        if not edit.source.is_clean:
            return f"from ({in_words(edit.source)}) to ({in_words(edit.target)})"
        edit = edit.target
    words = [
        f"{name} x{factor:.2f}"
        for name in ("brightness", "contrast", "saturation")
        if abs((factor := getattr(edit, name)) - 1.0) >= 0.02
    ]
    if abs(edit.hue) >= 0.005:
        words.append(f"hue {edit.hue:+.2f}")
    if edit.grayscale:
        words.append("grayscale")
    if edit.blur >= 0.05:
        words.append(f"blur {edit.blur:.1f}")
    if edit.solarize:
        words.append("solarize")
    return ", ".join(words) or "no change"


@torch.inference_mode(False)  # The search needs gradients, whatever it is called in.
@torch.no_grad()
def infer_actions(
    model: WorldModel,
    before: Images | Latent,
    after: Images | Latent,
    *,
    solver: Solver = "gradient",
    starts: int = 2,
    steps: int = 28,
    seed: int = 0,
) -> list[EditReport]:
    """The edits that lead from some images to others, pair by pair.

    Args:
        model: a world model that acts.
        before: B images, as for `model.encode`, or their latents; each is taken as clean.
        after: as many.
        solver, starts, steps, seed: as for `iwm.planning.search`.

    Returns:
        B reports; each `action` lies in the model's trained range.

    Raises:
        InvalidActionError: the model cannot act; or B differs.
        InvalidImageError: an image cannot be read.
        IncompatibleLatentError: latents of another encoder or grid.
        InvalidConfigError: an unknown solver or an impossible number.
    """
    if model.config.predictor.conditioning == "none":
        raise InvalidActionError(
            f"{model.config.name} is invariant by construction: it knows no actions. Load another model."
        )
    if solver == "gradient" and not model.differentiable:
        raise InvalidConfigError('An exported model has no gradients; pass solver="cem".')
    starts = require_count("starts", starts)
    notes = _notes(before, after)
    first, second = as_latent(model, before), as_latent(model, after)
    first.check_matches(second)
    if len(first) != len(second):
        raise InvalidActionError(
            f"{len(first)} images before and {len(second)} after do not pair up; pass as many of each."
        )
    space = SearchSpace(model.config.actions)
    reports = []
    at_a_time = predictions_at_a_time(model, first.tokens.shape[1])
    step = max(at_a_time // (8 * max(starts, 1)), 1)
    for at in range(0, len(first), step):
        pairs = slice(at, at + step)
        some, others = first[pairs], second[pairs]
        cost = latent_cost(model, some, others)
        found = search(
            cost, space, len(some), solver=solver, starts=starts, steps=steps, seed=seed, at_a_time=at_a_time
        )
        unmoved = (some.tokens.float() - others.tokens.float()).square().mean(dim=(1, 2)).tolist()
        for i, hypotheses in enumerate(found):
            ranked = _with_identity(hypotheses, unmoved[i])
            mismatch = _mismatch(model, some[i], others[i], ranked[0].photometry)
            reports.append(_report(ranked, unmoved[i], mismatch, notes[at + i] if notes else ()))
    return reports


def as_latent(model: WorldModel, images: Images | Latent) -> Latent:
    """Latents of images, or the latents themselves if they are the model's own; on its device."""
    if not isinstance(images, Latent):
        return model.encode(images)
    if images.space != model.space:
        raise IncompatibleLatentError(
            f"The latent was made by another encoder (space {images.space}, this model's is "
            f"{model.space}); encode the image with this model."
        )
    return images.to(device=model.device)


def confidence(residuals: Sequence[float]) -> float:
    """Probability of the first of some hypotheses, by how much worse the others' residuals are."""
    scale = _SHARPNESS * max(residuals[0], 1e-9)
    return 1.0 / sum(math.exp(-min((r - residuals[0]) / scale, 700.0)) for r in residuals)


def _report(ranked: list[Hypothesis], unmoved: float, mismatch: float, notes: tuple[str, ...]) -> EditReport:
    best = ranked[0]
    report = EditReport(
        action=Action.between(CLEAN, best.photometry),
        residual=best.residual,
        unmoved=unmoved,
        mismatch=mismatch,
        confidence=confidence([h.residual for h in ranked]),
        runner_ups=tuple(ranked[1:]),
        notes=notes,
    )
    return report if report.same_scene else dataclasses.replace(report, notes=(_TWO_SCENES, *notes))


def _with_identity(hypotheses: list[Hypothesis], unmoved: float) -> list[Hypothesis]:
    """Nothing at all was done, where that explains more than the best jitter; it needs no prediction."""
    jitter = next((h for h in hypotheses if not _switches(h.photometry)), None)
    if jitter is None or unmoved > jitter.residual:
        return hypotheses
    rest = [h for h in hypotheses if h is not jitter]
    return sorted([Hypothesis(CLEAN, unmoved), *rest], key=lambda h: h.residual)


def _switches(photometry: Photometry) -> bool:
    return photometry.grayscale or photometry.blur > 0 or photometry.solarize


def _mismatch(model: WorldModel, before: Latent, after: Latent, photometry: Photometry) -> float:
    """Mean squared difference of patches to their counterparts, over that to all other patches."""
    action = Action.between(CLEAN, photometry)
    if not model.config.actions.symmetric:  # It was trained to undo.
        before, after, action = after, before, action.inverse()
    moved = before if action.is_identity else model.apply_action(before, action)
    p, w = moved.tokens[0].float(), after.tokens[0].float()
    distances = p.square().sum(1, keepdim=True) - 2.0 * p @ w.T + w.square().sum(1)
    own, count = float(distances.diagonal().mean()), len(p)
    if count == 1:
        return own / (2.0 * p.shape[1])
    others = (float(distances.sum()) / count - own) / (count - 1)
    return max(own, 0.0) / max(others, 1e-9)


def _notes(before: Images | Latent, after: Images | Latent) -> list[tuple[str, ...]]:
    """A word for every pair of images whose shapes differ: they are not cropped alike."""
    if isinstance(before, Latent) or isinstance(after, Latent):
        return []
    if _is_stream(before) or _is_stream(after):
        raise InvalidImageError("Pairs of images are lists, not generators: write list(images).")
    notes: list[tuple[str, ...]] = []
    for a, b in zip(iterate(before), iterate(after), strict=False):
        one, other = _size(a), _size(b)
        notes.append(())
        if one and other and abs(math.log(one[0] * other[1] / (one[1] * other[0]))) > 0.02:
            notes[-1] = (
                f"the images are {one[0]} x {one[1]} and {other[0]} x {other[1]}, of different shape: the "
                "model sees the centre of each, so a crop is taken for part of the edit",
            )
    return notes


def _is_stream(images: Any) -> bool:
    known = isinstance(images, Sequence | str | os.PathLike | Image.Image | np.ndarray | Tensor)
    return isinstance(images, Iterable) and not known


def _size(image: Any) -> tuple[int, int] | None:
    """Width and height where they can be told without decoding."""
    if isinstance(image, Tensor):
        return (image.shape[-1], image.shape[-2]) if image.ndim == 3 else None
    if isinstance(image, np.ndarray):
        return (image.shape[1], image.shape[0]) if image.ndim >= 2 else None
    if isinstance(image, Image.Image):
        return upright_size(image)
    try:
        with open_header(image) as opened:
            return upright_size(opened)
    except Exception:  # Encoding it will say what is wrong.
        return None
