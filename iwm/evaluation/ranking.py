"""Ranks in a bank, and what is made of them [arXiv 2403.00504, section 4.1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iwm.errors import IncompatibleWeightsError

HITS = (1, 5, 10)

TIE = 1e-5
"""Relative difference of squared distances below which two candidates are tied."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Retrieval scores over a set of queries.

    Attributes:
        mrr: mean reciprocal rank, in (0, 1].
        hits: share of queries whose rank is at most k, by k.
        queries: how many.
    """

    mrr: float
    hits: dict[int, float]
    queries: int

    @classmethod
    def of(cls, ranks: Tensor) -> Scores:
        """Scores of ranks `[Q]`, which count from 1 and may be halves."""
        ranks = ranks.double()
        hits = {k: float((ranks <= k).double().mean()) for k in HITS}
        return cls(mrr=float(ranks.reciprocal().mean()), hits=hits, queries=len(ranks))

    @classmethod
    def of_chance(cls, candidates: int, queries: int) -> Scores:
        """Expected scores of a query that knows nothing: every rank is equally likely."""
        return cls(
            mrr=sum(1.0 / r for r in range(1, candidates + 1)) / candidates,
            hits={k: min(k / candidates, 1.0) for k in HITS},
            queries=queries,
        )


def rank_of(distances: Tensor, wanted: Tensor) -> Tensor:
    """Rank of the wanted candidate of each query, from 1; ties within `TIE` take the middle rank.

    Args:
        distances: `[Q, M]`, of every query to every candidate.
        wanted: `[Q]`, column of the right candidate.

    Returns:
        `[Q]` float64.

    Raises:
        IncompatibleWeightsError: a distance that is not finite.
    """
    if not bool(distances.isfinite().all()):
        raise IncompatibleWeightsError("The model's latents are not finite numbers; its weights are damaged.")
    own = distances.gather(1, wanted.unsqueeze(1))
    # Equal views differ by rounding, in the encoder and here.
    slack = TIE * own.clamp_min(1.0)
    tied = ((distances - own).abs() <= slack).sum(dim=1) - 1
    nearer = (distances < own - slack).sum(dim=1)
    return 1.0 + nearer.double() + tied.double() / 2.0


def squared_distances(queries: Tensor, candidates: Tensor) -> Tensor:
    """Squared Euclidean distances over all tokens, `[Q, M]` float64, by one matrix product.

    In double precision: the formula cancels, and ranks hang on small differences.
    """
    q, c = queries.flatten(1).double(), candidates.flatten(1).double()
    product = torch.addmm(c.square().sum(1), q, c.T, alpha=-2.0)
    return product + q.square().sum(1, keepdim=True)
