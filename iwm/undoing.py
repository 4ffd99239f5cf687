"""Undoing an edit that nobody wrote down.

One image alone does not say what was done to it; many untouched photographs say what images look
like. Their latents are moved by the world model with actions drawn from its training distribution,
the prior over edits, and a ridge regression from the pooled latent to the photometry is fitted to
what comes out: the references and the world model teach it, no pixel is transformed. Whether an image
was edited at all is told by which readings are likelier of untouched references and which of moved
ones (two normal distributions). What is read from an edited image is undone in latent space [arXiv 2403.00504, section 4.3]. Scoring every candidate by
how near its undoing comes to the references was tried first and picks worse actions.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from iwm.actions import CLEAN, Action, Photometry, draw_photometry
from iwm.bank import Bank
from iwm.edits import as_latent, in_words
from iwm.errors import IncompatibleLatentError, InvalidActionError, InvalidDataError
from iwm.fields import require_count
from iwm.images import Images
from iwm.latent import Latent
from iwm.photometry import IDENTITY
from iwm.planning import VISIBLE_BLUR, SearchSpace
from iwm.regression import Evidence, Normal, Ridge, cross_validate, fit_ridges

if TYPE_CHECKING:
    from iwm.index import Index
    from iwm.world_model import WorldModel

FEWEST = 16
"""References below which nothing can be learned; hundreds are better."""
SAMPLED = 256
"""References taken of a library, at most: bounds the time."""
_PENALTIES = (0.15, 0.5, 1.5)
"""For each row. Below these a ridge learns the world model's own traces, which real edits do not have."""
_FOLDS = 4
_CALLED_CLEAN = 0.95
"""Of untouched photographs, how many are to be called that."""
_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class UndoReport:
    """What seems to have been done to an image.

    Attributes:
        photometry: the edit; clean where the evidence is not above the cutoff.
        action: the one that undoes it.
        evidence: how much likelier the reading is of an edited photograph than of an untouched one, as
            a log-likelihood ratio.
        cutoff: what the evidence of 95 % of the references, untouched as they are, stays within.
        chances: of grayscale, blur and solarize, 0 to 1, as read.
        references: how many photographs it was learned from.
    """

    photometry: Photometry
    action: Action
    evidence: float
    cutoff: float
    chances: dict[str, float]
    references: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "words": in_words(self.photometry),
            "photometry": dataclasses.asdict(self.photometry),
            "evidence": self.evidence,
            "cutoff": self.cutoff,
            "chances": self.chances,
            "references": self.references,
        }

    def __str__(self) -> str:
        chances = ", ".join(f"{name} {chance:.0%}" for name, chance in self.chances.items())
        return f"{in_words(self.photometry)}\nevidence {self.evidence:.1f} (of an edit: above {self.cutoff:.1f}); {chances}"


@dataclass(frozen=True, eq=False)
class EditReader:
    """Reads the photometry of a view from its latent alone; made by `fit`, once for many images.

    Attributes:
        ridge: from pooled latents to the scaled parameters, and whether a blur can be seen, `[8]`.
        detector: the same from their spread over the grid too, which sees more edits and reads them worse.
        evidence: of an edit, by how the detector's readings of untouched and of moved references are
            distributed, where it was not fitted to them.
        cutoff: evidence up to which an image counts as untouched; see `UndoReport`.
        references: how many there were.
        space: of the model that it was learned with; it reads no other's latents.
    """

    ridge: Ridge
    detector: Ridge
    evidence: Evidence
    cutoff: float
    references: int
    space: str

    @classmethod
    @torch.no_grad()
    def fit(
        cls, model: WorldModel, references: Index | Bank | Latent | Images, *, actions: int = 6, seed: int = 0
    ) -> EditReader:
        """Learn from untouched photographs.

        Args:
            model: whose world model moves them.
            references: a bank, latents or images, at least 16, better some hundred; or a library, of
                which 256 are taken at most.
            actions: drawn for every reference.
            seed: of the draws.

        Raises:
            InvalidDataError: too few references.
            InvalidActionError: the model knows no actions.
            IncompatibleLatentError: latents of another model.
        """
        if model.config.predictor.conditioning == "none":
            raise InvalidActionError(f"{model.config.name} knows no actions, so it cannot undo any.")
        actions = require_count("actions", actions)
        latents = _latents_of(model, references)
        if len(latents) < FEWEST:
            words = "1 reference" if len(latents) == 1 else f"{len(latents)} references"
            raise InvalidDataError(
                f"{words}; undoing needs at least {FEWEST} untouched photographs, better some "
                "hundred: pass a list of images, latents or an iwm.Bank."
            )
        config = model.config.actions
        drawn_from = config.distribution if config.symmetric else config.distribution.without_destructive()
        keys = [(epoch, i) for epoch in range(actions) for i in range(len(latents))]
        params = draw_photometry(drawn_from, seed=seed, keys=keys)
        inputs = torch.cat((_pooled(latents), _moved(model, latents, params)))
        clean = torch.tensor(IDENTITY).expand(len(latents), -1)
        targets = _scaled(torch.cat((clean, params)))
        # Whole references are held out, with all that was made of them.
        folds = torch.arange(len(inputs)) % len(latents) % _FOLDS
        ridge, _ = _fit_ridge(_means(inputs), targets, folds)
        detector, unseen = _fit_ridge(inputs, targets, folds)
        untouched = torch.arange(len(inputs)) < len(latents)
        evidence = _fit_evidence(unseen, untouched)
        held_out = unseen.new_empty(len(latents))
        for fold in range(_FOLDS):
            out = folds == fold
            others = _fit_evidence(unseen[~out], untouched[~out])
            held_out[out[: len(latents)]] = others(unseen[out & untouched])
        cutoff = float(held_out.quantile(_CALLED_CLEAN, interpolation="higher"))
        return cls(ridge, detector, evidence, cutoff, len(latents), model.space)

    def read(self, model: WorldModel, latent: Latent) -> list[UndoReport]:
        """What was done to each of some images, as far as their latents tell.

        Raises:
            IncompatibleLatentError: the reader was learned with another model, or the latents made by one.
        """
        if model.space != self.space:
            raise IncompatibleLatentError(
                f"The reader was learned with another model (space {self.space}, this one's is {model.space}); "
                "learn again: EditReader.fit(model, references)."
            )
        inputs = _pooled(as_latent(model, latent))
        scaled, evidence = self.ridge(_means(inputs)), self.evidence(self.detector(inputs))
        space = SearchSpace(model.config.actions)
        return [
            self._report(row, weight, space) for row, weight in zip(scaled, evidence.tolist(), strict=True)
        ]

    def _report(self, scaled: Tensor, evidence: float, space: SearchSpace) -> UndoReport:
        gray, sigma, solarize, blurred = scaled[4:].tolist()
        values = {
            name: min(max(math.exp(float(scaled[c])), float(space.low[c])), float(space.high[c]))
            for c, name in enumerate(("brightness", "contrast", "saturation"))
        }
        photometry = CLEAN
        if evidence > self.cutoff:
            photometry = Photometry(
                **cast("dict[str, Any]", {name: round(value, 4) for name, value in values.items()}),
                hue=round(min(max(float(scaled[3]), float(space.low[3])), float(space.high[3])), 4),
                grayscale=gray > 0.5,
                blur=round(min(max(sigma, VISIBLE_BLUR), float(space.high[5])), 4) if blurred > 0.5 else 0.0,
                solarize=solarize > 0.5,
            )
            if photometry.grayscale:
                photometry = dataclasses.replace(photometry, saturation=1.0, hue=0.0)
        chances = zip(("grayscale", "blur", "solarize"), (gray, blurred, solarize), strict=True)
        return UndoReport(
            photometry=photometry,
            action=Action.between(photometry, CLEAN),
            evidence=evidence,
            cutoff=self.cutoff,
            chances={name: round(min(max(value, 0.0), 1.0), 3) for name, value in chances},
            references=self.references,
        )


def undo(
    model: WorldModel,
    image: Images | Latent,
    references: EditReader | Index | Bank | Latent | Images | None = None,
    *,
    seed: int = 0,
) -> tuple[Latent, UndoReport]:
    """Find what was done to an image, and undo it in latent space.

    Args:
        model: a world model that acts.
        image: one image, or its latent.
        references: untouched photographs, as for `EditReader.fit`; or a fitted reader. They have to
            be passed: one image alone does not say what was done to it.
        seed: of the actions it learns from.

    Returns:
        The latent with the edit undone, and the report.

    Raises:
        InvalidDataError: no references, or too few.
        InvalidActionError: more than one image, or a model that knows no actions.
        IncompatibleLatentError: latents, or a reader, of another model.
    """
    if references is None:
        raise InvalidDataError(
            "undo needs references: pass some hundred untouched photographs, as a list of images, latents, an "
            "iwm.Bank or an iwm.Index, or what was learned from them, EditReader.fit(model, references)."
        )
    latent = as_latent(model, image)
    if len(latent) != 1:
        raise InvalidActionError(f"undo takes one image, not {len(latent)}; fit an EditReader for many.")
    reader = (
        references if isinstance(references, EditReader) else EditReader.fit(model, references, seed=seed)
    )
    report = reader.read(model, latent)[0]
    return latent if report.action.is_identity else model.apply_action(latent, report.action), report


def _latents_of(model: WorldModel, references: Index | Bank | Latent | Images) -> Latent:
    """Of references of any kind; a library's are spread over it."""
    from iwm.index import Index  # What it needs to be opened is not imported by this.

    if isinstance(references, Bank):
        return as_latent(model, references.latents)
    if isinstance(references, Index):
        references.check_model(model)
        return as_latent(model, references.sample(SAMPLED))
    return as_latent(model, references)


def _pooled(latents: Latent) -> Tensor:
    """Mean and standard deviation of each feature over the grid, `[B, 2 D]`."""
    tokens = latents.tokens.float()
    return torch.cat((tokens.mean(1), tokens.std(1, correction=0)), dim=1).double().cpu()


def _moved(model: WorldModel, latents: Latent, params: Tensor) -> Tensor:
    """Pooled predictions `[M, 2 D]` of photometries `[M, 7]`, the latents taken in turn."""
    moved = []
    for start in range(0, len(params), _BATCH):
        rows = range(start, min(start + _BATCH, len(params)))
        views = [Photometry.from_params(params[row]) for row in rows]
        some = latents[[row % len(latents) for row in rows]]
        moved.append(_pooled(model.apply_action(some, [Action.between(CLEAN, view) for view in views])))
    return torch.cat(moved)


def _scaled(params: Tensor) -> Tensor:
    """What is read of photometries `[M, 7]`: logarithms of the factors, the rest, and whether a blur shows."""
    visible = params[:, 5:6] >= VISIBLE_BLUR
    return torch.cat((params[:, :3].clamp_min(0.05).log(), params[:, 3:], visible), dim=1).double()


def _means(pooled: Tensor) -> Tensor:
    """The first half of what `_pooled` gives."""
    return pooled[:, : pooled.shape[1] // 2]


def _fit_ridge(inputs: Tensor, targets: Tensor, folds: Tensor) -> tuple[Ridge, Tensor]:
    """A ridge, and what it reads from rows that it was not fitted to."""
    penalty, unseen = cross_validate(inputs, targets, folds, [p * len(inputs) for p in _PENALTIES])
    (ridge,) = fit_ridges(inputs, targets, [penalty])
    return ridge, unseen


def _fit_evidence(readings: Tensor, untouched: Tensor) -> Evidence:
    """From readings `[M, 8]`, and which of them are of untouched references, `[M]`."""
    return Evidence(Normal.fit(readings[untouched]), Normal.fit(readings[~untouched]))
