"""Undoing an edit that nobody wrote down.

One image alone does not say what was done to it; many untouched photographs say what images look
like. Their latents are moved by the world model with actions drawn from its training distribution,
the prior over edits, and a ridge regression from the pooled latent to the photometry is fitted to
what comes out: the references and the world model teach it, no pixel is transformed. What it reads
from an image is undone in latent space [arXiv 2403.00504, section 4.3]. Scoring every candidate by
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
from iwm.errors import InvalidActionError, InvalidDataError
from iwm.images import Images
from iwm.latent import Latent
from iwm.photometry import IDENTITY
from iwm.planning import SearchSpace

if TYPE_CHECKING:
    from iwm.world_model import WorldModel

FEWEST = 16
"""References below which nothing can be learned; hundreds are better."""
_PENALTIES = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
_BLUR = 0.5
_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class UndoReport:
    """What seems to have been done to an image.

    Attributes:
        photometry: the edit; clean where what was read is within the reading's own error.
        action: the one that undoes it.
        evidence: how far the reading is from clean, in its own standard errors (root mean
            square over the parameters); below 1 nothing is undone.
        chances: of grayscale, blur and solarize, 0 to 1, as read.
        references: how many photographs it was learned from.
    """

    photometry: Photometry
    action: Action
    evidence: float
    chances: dict[str, float]
    references: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "words": in_words(self.photometry),
            "photometry": dataclasses.asdict(self.photometry),
            "evidence": self.evidence,
            "chances": self.chances,
            "references": self.references,
        }

    def __str__(self) -> str:
        chances = ", ".join(f"{name} {chance:.0%}" for name, chance in self.chances.items())
        return f"{in_words(self.photometry)}\nevidence {self.evidence:.1f}; {chances}"


@dataclass(frozen=True, eq=False)
class EditReader:
    """Reads the photometry of a view from its latent alone; made by `fit`, once for many images.

    Attributes:
        weights: `[D + 1, 7]`, from standardised pooled latents and 1 to scaled parameters.
        centre, scale: `[D]` of the pooled latents.
        errors: `[7]` standard errors of the scaled parameters, on references not fitted to.
        references: how many there were.
    """

    weights: Tensor
    centre: Tensor
    scale: Tensor
    errors: Tensor
    references: int

    @classmethod
    @torch.no_grad()
    def fit(
        cls, model: WorldModel, references: Bank | Latent | Images, *, actions: int = 6, seed: int = 0
    ) -> EditReader:
        """Learn from untouched photographs.

        Args:
            model: whose world model moves them.
            references: a bank, latents or images, at least 16; hundreds are better.
            actions: drawn for every reference.
            seed: of the draws.

        Raises:
            InvalidDataError: too few references.
            InvalidActionError: the model knows no actions.
        """
        if model.config.predictor.conditioning == "none":
            raise InvalidActionError(f"{model.config.name} knows no actions, so it cannot undo any.")
        latents = as_latent(model, references.latents if isinstance(references, Bank) else references)
        if len(latents) < FEWEST:
            raise InvalidDataError(
                f"{len(latents)} references; undoing needs at least {FEWEST} untouched photographs, better some "
                "hundred: pass a list of images, latents or an iwm.Bank."
            )
        config = model.config.actions
        drawn_from = config.distribution if config.symmetric else config.distribution.without_destructive()
        keys = [(epoch, i) for epoch in range(actions) for i in range(len(latents))]
        params = draw_photometry(drawn_from, seed=seed, keys=keys)
        clean = torch.tensor(IDENTITY).expand(len(latents), -1)
        moved = [latents.tokens.float().mean(1).cpu()]
        for start in range(0, len(params), _BATCH):
            rows = range(start, min(start + _BATCH, len(params)))
            views = [Photometry.from_params(params[row]) for row in rows]
            some = latents[[row % len(latents) for row in rows]]
            predicted = model.apply_action(some, [Action.between(CLEAN, view) for view in views])
            moved.append(predicted.mean().float().cpu())
        inputs, targets = torch.cat(moved).double(), _scaled(torch.cat((clean, params))).double()
        # Whole references are held out, with all that was made of them.
        held_out = torch.arange(len(inputs)) % len(latents) % 4 == 0
        losses = [(_fit(inputs[~held_out], targets[~held_out], penalty), penalty) for penalty in _PENALTIES]
        errors = [
            (_read(fitted, inputs[held_out]) - targets[held_out]).square().mean(0) for fitted, _ in losses
        ]
        best = min(range(len(losses)), key=lambda i: float(errors[i].sum()))
        weights, centre, scale = _fit(inputs, targets, _PENALTIES[best])
        return cls(weights, centre, scale, errors[best].sqrt().clamp_min(1e-6), len(latents))

    def read(self, model: WorldModel, latent: Latent) -> list[UndoReport]:
        """What was done to each of some images, as far as their latents tell."""
        scaled = _read((self.weights, self.centre, self.scale), latent.tokens.float().mean(1).double().cpu())
        return [self._report(row, SearchSpace(model.config.actions)) for row in scaled]

    def _report(self, scaled: Tensor, space: SearchSpace) -> UndoReport:
        clean = _scaled(torch.tensor([IDENTITY]))[0].double()
        evidence = float(((scaled - clean) / self.errors).square().mean().sqrt())
        gray, sigma, solarize = scaled[4:].tolist()
        values = {
            name: min(max(math.exp(float(scaled[c])), float(space.low[c])), float(space.high[c]))
            for c, name in enumerate(("brightness", "contrast", "saturation"))
        }
        photometry = CLEAN
        if evidence >= 1.0:
            photometry = Photometry(
                **cast("dict[str, Any]", {name: round(value, 4) for name, value in values.items()}),
                hue=round(min(max(float(scaled[3]), float(space.low[3])), float(space.high[3])), 4),
                grayscale=gray > 0.5,
                blur=round(min(sigma, float(space.high[5])), 4) if sigma > _BLUR else 0.0,
                solarize=solarize > 0.5,
            )
            if photometry.grayscale:
                photometry = dataclasses.replace(photometry, saturation=1.0, hue=0.0)
        chances = zip(("grayscale", "blur", "solarize"), (gray, sigma, solarize), strict=True)
        return UndoReport(
            photometry=photometry,
            action=Action.between(photometry, CLEAN),
            evidence=evidence,
            chances={name: round(min(max(value, 0.0), 1.0), 3) for name, value in chances},
            references=self.references,
        )


def undo(
    model: WorldModel,
    image: Images | Latent,
    references: EditReader | Bank | Latent | Images,
    *,
    seed: int = 0,
) -> tuple[Latent, UndoReport]:
    """Find what was done to an image, and undo it in latent space.

    Args:
        model: a world model that acts.
        image: one image, or its latent.
        references: untouched photographs, as for `EditReader.fit`; or a fitted reader.
        seed: of the actions it learns from.

    Returns:
        The latent with the edit undone, and the report.

    Raises:
        InvalidDataError: too few references.
        InvalidActionError: more than one image, or a model that knows no actions.
    """
    latent = as_latent(model, image)
    if len(latent) != 1:
        raise InvalidActionError(f"undo takes one image, not {len(latent)}; fit an EditReader for many.")
    reader = (
        references if isinstance(references, EditReader) else EditReader.fit(model, references, seed=seed)
    )
    report = reader.read(model, latent)[0]
    return latent if report.action.is_identity else model.apply_action(latent, report.action), report


def _scaled(params: Tensor) -> Tensor:
    """Logarithms of the factors; the rest as it is."""
    return torch.cat((params[:, :3].clamp_min(0.05).log(), params[:, 3:]), dim=1)


def _fit(inputs: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
    centre, scale = inputs.mean(0), inputs.std(0).clamp_min(1e-6)
    x = torch.cat(((inputs - centre) / scale, inputs.new_ones(len(inputs), 1)), dim=1)
    ridge = penalty * torch.eye(x.shape[1], dtype=x.dtype)
    ridge[-1, -1] = 0.0
    return torch.linalg.solve(x.T @ x + ridge, x.T @ targets), centre, scale


def _read(fitted: tuple[Tensor, Tensor, Tensor], inputs: Tensor) -> Tensor:
    weights, centre, scale = fitted
    return ((inputs - centre) / scale) @ weights[:-1] + weights[-1]
