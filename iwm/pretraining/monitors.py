"""Whether a model in training still knows anything: measured on a small batch, now and then.

A collapse shows in the spread and the rank of the latents long before it shows in the loss, and
a world model that ignores its action in the reciprocal rank [arXiv 2403.00504, section 4.1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from iwm.evaluation.mrr import mrr, target_distribution
from iwm.world_model import WorldModel

IMAGES = 64
BANKS = 8
BANK_SIZE = 32
"""Views a bank; the floor of `apply` is then 0.127."""


@torch.no_grad()
def monitor(model: WorldModel, crops: Tensor, transformed: Tensor) -> dict[str, float]:
    """Scores to log beside the loss.

    Args:
        model: with the teacher as its encoder.
        crops: `[B, 3, S, S]` uint8.
        transformed: the same crops after a photometry, in [0, 1].

    Returns:
        `effective_rank` of the pooled latents, `cosine` of clean and transformed pooled latents,
        each centred on its mean, and `online_apply_mrr` and `online_undo_mrr` on small banks.
    """
    clean = model.encoder(crops[:IMAGES].float() / 255.0).mean(dim=1)
    moved = model.encoder(transformed[:IMAGES]).mean(dim=1)
    drawn = target_distribution(model)
    return {
        "effective_rank": effective_rank(clean),
        "cosine": float(F.cosine_similarity(clean - clean.mean(0), moved - moved.mean(0)).mean()),
        "online_apply_mrr": mrr(model, crops[:BANKS], bank_size=BANK_SIZE, distribution=drawn).mrr,
        "online_undo_mrr": mrr(model, crops[:BANKS], bank_size=BANK_SIZE, protocol="undo").mrr,
    }


def effective_rank(vectors: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values (Roy and Vetterli, 2007).

    Args:
        vectors: `[B, D]`; they are centred first.
    """
    singular = torch.linalg.svdvals((vectors - vectors.mean(dim=0)).float())
    share = singular / singular.sum().clamp_min(1e-12)
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))
