"""Ridge regression, what it would have read from rows that it was not fitted to, and which of two kinds these are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ridge:
    """A linear map from standardised inputs.

    Attributes:
        weights: `[D + 1, K]`, the last row for the constant.
        centre, scale: `[D]` of the inputs.
    """

    weights: Tensor
    centre: Tensor
    scale: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """`[M, K]` of inputs `[M, D]`."""
        return ((inputs - self.centre) / self.scale) @ self.weights[:-1] + self.weights[-1]


def fit_ridges(inputs: Tensor, targets: Tensor, penalties: Sequence[float]) -> list[Ridge]:
    """One map from inputs `[M, D]` to targets `[M, K]` for every penalty on the squared weights."""
    centre, scale = inputs.mean(0), inputs.std(0).clamp_min(1e-6)
    x = torch.cat(((inputs - centre) / scale, inputs.new_ones(len(inputs), 1)), dim=1)
    gram, moments = x.T @ x, x.T @ targets
    round_one = torch.eye(len(gram), dtype=gram.dtype)
    round_one[-1, -1] = 0.0
    return [Ridge(torch.linalg.solve(gram + p * round_one, moments), centre, scale) for p in penalties]


def cross_validate(
    inputs: Tensor, targets: Tensor, groups: Tensor, penalties: Sequence[float]
) -> tuple[float, Tensor]:
    """The best penalty, and what is read with it from every row by a map fitted to the other groups.

    Args:
        inputs: `[M, D]`.
        targets: `[M, K]`.
        groups: `[M]`; rows of one group are held out together.
        penalties: to choose from.
    """
    read = torch.empty(len(penalties), *targets.shape, dtype=targets.dtype)
    for group in sorted(set(groups.tolist())):
        out = groups == group
        for row, ridge in zip(read, fit_ridges(inputs[~out], targets[~out], penalties), strict=True):
            row[out] = ridge(inputs[out])
    best = int((read - targets).square().sum(dim=(1, 2)).argmin())
    return penalties[best], read[best]


@dataclass(frozen=True, eq=False)
class Normal:
    """A normal distribution.

    Attributes:
        mean: `[K]`.
        covariance: `[K, K]`.
    """

    mean: Tensor
    covariance: Tensor

    @classmethod
    def fit(cls, rows: Tensor) -> Normal:
        """That of rows `[M, K]`, a few of which are enough: covariances count less the fewer there are."""
        count, width = rows.shape
        covariance = torch.cov(rows.T)
        variances = covariance.diagonal().clamp_min(1e-12).diag()
        return cls(rows.mean(0), (count * covariance + width * variances) / (count + width))

    def log_density(self, rows: Tensor) -> Tensor:
        """`[M]`, but for the constant."""
        away = rows - self.mean
        squared = (torch.linalg.solve(self.covariance, away.T).T * away).sum(1)
        density: Tensor = -0.5 * (squared + torch.logdet(self.covariance))
        return density


@dataclass(frozen=True, eq=False)
class Evidence:
    """How much likelier a row is as one of the second kind than as one of the first.

    Attributes:
        first, second: distributions of the two.
    """

    first: Normal
    second: Normal

    def __call__(self, rows: Tensor) -> Tensor:
        """Log-likelihood ratios `[M]` of rows `[M, K]`."""
        return self.second.log_density(rows) - self.first.log_density(rows)
