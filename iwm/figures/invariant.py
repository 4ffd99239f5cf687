"""Predictions averaged over actions, and what they look like [arXiv 2403.00504, appendix H, figure S4].

z_inv is the mean prediction under N random actions. The paper looks it up among the views those
actions make, and finds the untouched photograph first, then views that were hardly changed: averaging
makes a *clean* latent and not one without the information. Not in the paper: how z_inv(n) nears the
untouched photograph's own encoding as n grows.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from iwm.actions import CLEAN, Action, Photometry
from iwm.bank import Bank
from iwm.demo import Pixels
from iwm.encoder import normalize_tokens
from iwm.errors import InvalidConfigError
from iwm.evaluation.mrr import Distribution, draw_views
from iwm.opening import ImageLike
from iwm.world_model import WorldModel


@dataclass(frozen=True, eq=False)
class Marginal:
    """The mean prediction of one photograph, looked up among its views.

    Attributes:
        views: some of the views, as they were drawn, `[3, S, S]` arrays in [0, 1].
        view_changes: of each of them, the mean absolute change of a pixel by its action.
        found: the nearest of the bank, nearest first.
        photometries, distances, changes: of each of `found`.
        rank: of the untouched photograph in the bank, from 1.
        bank_size: all views and the untouched photograph.
        mean_change: over all views.
        curve: the distance of z_inv(n) from the untouched photograph's encoding, by n.
        mean_distance: of the views' encodings from it.
    """

    views: list[Pixels]
    view_changes: list[float]
    found: list[Pixels]
    photometries: list[Photometry]
    distances: list[float]
    changes: list[float]
    rank: int
    bank_size: int
    mean_change: float
    curve: dict[int, float]
    mean_distance: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the pixels."""
        columns = zip(self.photometries, self.distances, self.changes, strict=True)
        return {
            "rank": self.rank, "bank_size": self.bank_size, "mean_change": self.mean_change,
            "found": [
                {"photometry": dataclasses.asdict(p), "clean": p.is_clean, "distance": d, "change": c}
                for p, d, c in columns
            ],
            "curve": self.curve, "mean_distance": self.mean_distance,
        }  # fmt: skip


@torch.no_grad()
def marginalise(
    model: WorldModel, image: ImageLike, actions: int = 256, *, distribution: Distribution = "jitter",
    shown: int = 7, seed: int = 0, index: int = 0,
) -> Marginal:  # fmt: skip
    """Average predictions under random actions and look the mean up.

    Args:
        model: what predicts.
        image: one photograph.
        actions: N, always with jitter, so that no view equals the untouched photograph.
        distribution: what they are drawn from: `jitter`, like the targets of the paper's training, or
            `full`, with grayscale, blur and solarize.
        shown: views, and nearest entries, to return.
        seed, index: of the draws, and of the photograph.

    Raises:
        InvalidConfigError: fewer actions than are shown.
    """
    if not 1 <= shown <= actions:
        raise InvalidConfigError(f"{actions} actions; the picture shows {shown} of them.")
    drawn = draw_views(model, actions, distribution=distribution, seed=seed, index=index)
    photometries = [CLEAN] + [Photometry.from_params(row) for row in drawn]
    views = [Action.between(CLEAN, photometry) for photometry in photometries]
    pixels = model.preprocess.one(image)
    bank = Bank.from_views(model, pixels, views)
    clean = bank.latents[0]
    predicted = model.apply_action(clean, views[1:])
    sums = predicted.tokens.double().cumsum(dim=0)
    counts = [1 << power for power in range(actions.bit_length()) if 1 << power < actions] + [actions]
    chosen = torch.tensor(counts, device=sums.device)
    means = normalize_tokens((sums[chosen - 1] / chosen[:, None, None]).float())
    from_clean = (
        Bank.from_latents(clean).search(dataclasses.replace(clean, tokens=means), k=1).distances[:, 0]
    )
    hits = bank.search(dataclasses.replace(clean, tokens=means[-1:]), k=len(bank))
    ranking = [int(i) for i in hits.ids[0]]
    pictures = [view.apply(pixels) for view in views]
    changes = [float((picture - pixels).abs().mean()) for picture in pictures]
    own = bank.search(clean, k=len(bank)).distances[0]
    return Marginal(
        views=[picture.cpu().numpy() for picture in pictures[1 : shown + 1]],
        view_changes=changes[1 : shown + 1],
        found=[pictures[i].cpu().numpy() for i in ranking[:shown]],
        photometries=[photometries[i] for i in ranking[:shown]],
        distances=hits.distances[0, :shown].tolist(),
        changes=[changes[i] for i in ranking[:shown]],
        rank=ranking.index(0) + 1,
        bank_size=len(bank),
        mean_change=sum(changes) / actions,
        curve=dict(zip(counts, from_clean.tolist(), strict=True)),
        # The photograph itself is in the bank, at no distance.
        mean_distance=float(own.sum()) / actions,
    )
