"""Which action leads from one latent to another: planning with the world model as the model.

The world model [arXiv 2403.00504, section 3] is differentiable in its action, so the photometric
edit between two images can be read by searching the action whose prediction lands on the second
latent. The three switches (grayscale, blur, solarize) are enumerated; the continuous parameters
of all eight combinations are searched at once, in one batch, by gradient descent from several
starts or by the cross-entropy method. What was tried on the way is not thrown away: the other
combinations are the report's runner-ups.

Shape legend: P pairs, H hypotheses of one pair, N patches, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from iwm.actions import Photometry
from iwm.costs import BATCH, Cost
from iwm.errors import InvalidConfigError, nearest
from iwm.fields import require_count
from iwm.ranges import trained_range

if TYPE_CHECKING:
    from iwm.config import ActionConfig

Solver = Literal["gradient", "cem"]

SEARCHED = (0, 1, 2, 3, 5)
"""Columns of the continuous parameters: three factors, hue, sigma."""
_SWITCHED = (4, 5, 6)
VISIBLE_BLUR = 0.5
"""Sigma in pixels from which a blur can be told from none; smaller ones are not searched."""
_KEPT = 4
"""Hypotheses of a pair that are followed to the end; the first steps show which."""
_POPULATION, _ELITE, _ROUNDS = 192, 24, 7


@dataclass(frozen=True)
class Hypothesis:
    """An edit, and how far from the second latent its prediction lands.

    Attributes:
        photometry: what was done to the first image.
        residual: mean squared difference of the tokens' features, whose variance is 1.
    """

    photometry: Photometry
    residual: float


class SearchSpace:
    """Photometries inside a model's trained range, as points of a unit cube and switches.

    Factors are searched in their logarithm. What cannot be told is not searched: no hue and
    saturation under grayscale, no sigma without blur.

    Args:
        actions: of the model's config.
        jitter_alone: without the switches.
    """

    def __init__(self, actions: ActionConfig, *, jitter_alone: bool = False) -> None:
        known = trained_range(actions, jitter_alone=jitter_alone)
        self.low, self.high = known.low.clone(), known.high.clone()
        if self.high[5] > 0:
            self.low[5] = min(max(actions.distribution.blur_sigma[0], VISIBLE_BLUR), float(self.high[5]))
        self.low[:3].clamp_min_(0.05)
        choices = [[0.0, 1.0] if self.high[c] > 0 else [0.0] for c in _SWITCHED]
        self.switches = torch.tensor([[g, b, s] for g in choices[0] for b in choices[1] for s in choices[2]])

    def params(self, point: Tensor, switches: Tensor) -> Tensor:
        """Photometries `[..., 7]` of points `[..., 5]` in the unit cube and switches `[..., 3]`."""
        low, high = self.low.to(point), self.high.to(point)
        logs = low[:3].log() + point[..., :3] * (high[:3] / low[:3]).log()
        colour = 1.0 - switches[..., :1]
        saturation = (logs[..., 2:3] * colour).exp()
        hue = (low[3] + point[..., 3:4] * (high[3] - low[3])) * colour
        sigma = (low[5] + point[..., 4:5] * (high[5] - low[5])) * switches[..., 1:2]
        return torch.cat(
            (logs[..., :2].exp(), saturation, hue, switches[..., :1], sigma, switches[..., 2:]), dim=-1
        )

    def points(self, params: Tensor) -> Tensor:
        """The points `[..., 5]` of photometries `[..., 7]`; where a parameter has no range, 0.5."""
        low, high = self.low.to(params), self.high.to(params)
        factors = (params[..., :3] / low[:3]).log() / (high[:3] / low[:3]).log()
        rest = [(params[..., c : c + 1] - low[c]) / (high[c] - low[c]) for c in SEARCHED[3:]]
        return torch.cat((factors, *rest), dim=-1).nan_to_num(0.5, 0.5, 0.5).clamp(0.0, 1.0)


def search(
    cost: Cost,
    space: SearchSpace,
    pairs: int,
    *,
    solver: Solver = "gradient",
    starts: int = 2,
    steps: int = 28,
    seed: int = 0,
    at_a_time: int = BATCH,
) -> list[list[Hypothesis]]:
    """The best photometry of every combination of switches, best first, for every pair.

    Args:
        cost: what to minimise.
        space: where.
        pairs: P.
        solver: `gradient` takes Adam steps from several starts, and drops what is far behind
            after a third of them; `cem`, the cross-entropy method, needs no gradient.
        starts: points of the cube that every combination starts from (`gradient`).
        steps: gradient steps in all (`gradient`).
        seed: of the starts and the populations.
        at_a_time: hypotheses of all pairs whose costs are asked for together, at least one a pair.

    Raises:
        InvalidConfigError: an unknown solver, numbers less than 1, or a negative seed.
    """
    if solver not in get_args(Solver):
        raise InvalidConfigError(f'No solver is called "{solver}".{nearest(str(solver), get_args(Solver))}')
    for name, value in (("starts", starts), ("steps", steps)):
        require_count(name, value)
    generator = torch.Generator().manual_seed(require_count("seed", seed, least=0) % 2**63)
    size = max(at_a_time // max(pairs, 1), 1)
    if solver == "cem":
        params, costs = _cross_entropy(cost, space, pairs, generator, size)
    else:
        params, costs = _descend(cost, space, pairs, starts, steps, generator, size)
    return [_best_of_each(p, c) for p, c in zip(params.cpu(), costs.cpu(), strict=True)]


def _descend(
    cost: Cost,
    space: SearchSpace,
    pairs: int,
    starts: int,
    steps: int,
    generator: torch.Generator,
    size: int,
) -> tuple[Tensor, Tensor]:
    """Photometries `[P, H, 7]` and costs `[P, H]`: those followed to the end and those dropped."""
    count = len(space.switches)
    switches = space.switches.repeat(starts, 1).expand(pairs, -1, -1)
    points = torch.rand(1, count * starts, 5, generator=generator)
    points[:, :count] = 0.5
    first = max(steps * 2 // 7, 1)
    points, costs = _adam(cost, space, points.expand(pairs, -1, -1), switches, first, 0.15, 0.1, size)
    rows = costs.topk(min(_KEPT, costs.shape[1]), dim=1, largest=False).indices.unsqueeze(-1)
    kept = points.gather(1, rows.expand(-1, -1, 5)), switches.gather(1, rows.expand(-1, -1, 3))
    ended, final = _adam(cost, space, *kept, max(steps - first, 1), 0.08, 0.01, size)
    params = torch.cat((space.params(ended, kept[1]), space.params(points, switches)), dim=1)
    return params, torch.cat((final, costs), dim=1)


def _adam(
    cost: Cost,
    space: SearchSpace,
    points: Tensor,
    switches: Tensor,
    steps: int,
    rate: float,
    last: float,
    size: int,
) -> tuple[Tensor, Tensor]:
    """The best points on the way and their costs; the step size falls from `rate` to `last`."""
    points = points.clone()
    best, least = points.clone(), torch.full(points.shape[:2], math.inf)
    mean, square = torch.zeros_like(points), torch.zeros_like(points)
    for step in range(1, steps + 1):
        costs, gradient = _gradient(cost, space, points, switches, size)
        better = costs < least
        least = torch.where(better, costs, least)
        best = torch.where(better.unsqueeze(-1), points, best)
        mean = torch.lerp(gradient, mean, 0.8)
        square = torch.lerp(gradient.square(), square, 0.95)
        move = mean / (1 - 0.8**step) / ((square / (1 - 0.95**step)).sqrt() + 1e-12)
        points = (points - rate * (last / rate) ** (step / steps) * move).clamp_(0.0, 1.0)
    return best, least


def _gradient(
    cost: Cost, space: SearchSpace, points: Tensor, switches: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Costs `[P, H]` and their gradients `[P, H, 5]`; the activations of `size` hypotheses are kept at a time."""
    found: list[Tensor] = []
    gradients: list[Tensor] = []
    for some, switched in zip(torch.split(points, size, 1), torch.split(switches, size, 1), strict=True):
        here = some.clone().requires_grad_()
        # Plain attention: its backward pass is the faster one at a few hundred tokens.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            costs = cost(space.params(here, switched))
            gradients += torch.autograd.grad(costs.sum(), here)
        found.append(costs.detach().to(points))
    return torch.cat(found, dim=1), torch.cat(gradients, dim=1)


@torch.no_grad()
def _cross_entropy(
    cost: Cost, space: SearchSpace, pairs: int, generator: torch.Generator, size: int
) -> tuple[Tensor, Tensor]:
    """Every candidate of every round: photometries `[P, H, 7]` and costs `[P, H]`.

    A Gaussian over the cube and one probability a switch are fitted to the best candidates of
    each round; the probabilities stay away from 0 and 1, so that no combination is given up.
    """
    centre, spread = torch.full((pairs, 1, 5), 0.5), torch.full((pairs, 1, 5), 0.35)
    open_switches = space.switches.amax(dim=0)
    chance = 0.5 * open_switches.expand(pairs, 1, 3)
    everything = []
    for _ in range(_ROUNDS):
        noise = torch.randn(pairs, _POPULATION, 5, generator=generator)
        points = (centre + spread * noise).clamp_(0.0, 1.0)
        switches = (torch.rand(pairs, _POPULATION, 3, generator=generator) < chance).to(points)
        params = space.params(points, switches)
        parts = torch.split(params, size, dim=1)
        costs = torch.cat([cost(part).float().cpu() for part in parts], dim=1)
        everything.append((params, costs))
        rows = costs.topk(_ELITE, dim=1, largest=False).indices.unsqueeze(-1)
        elite = points.gather(1, rows.expand(-1, -1, 5))
        centre, spread = elite.mean(1, keepdim=True), elite.std(1, keepdim=True).clamp_min(0.01)
        on = switches.gather(1, rows.expand(-1, -1, 3)).mean(1, keepdim=True)
        chance = on.clamp(0.1, 0.9) * open_switches
    return torch.cat([p for p, _ in everything], dim=1), torch.cat([c for _, c in everything], dim=1)


def _best_of_each(params: Tensor, costs: Tensor) -> list[Hypothesis]:
    """The least costly row of every combination of switches, least first."""
    found: dict[tuple[bool, ...], Hypothesis] = {}
    for row in costs.argsort().tolist():
        photometry = Photometry.from_params(params[row].round(decimals=4))
        key = tuple(bool(params[row, c] > 0) for c in _SWITCHED)
        found.setdefault(key, Hypothesis(photometry, float(costs[row])))
    return list(found.values())
