"""Mean reciprocal rank: how well a world model applies actions [arXiv 2403.00504, section 4.1].

For each image a bank of transformed views is encoded. A query is the world model's prediction
of one view from another; its rank is that of the true view among the bank, by Euclidean
distance over all normalised patch tokens. The paper reports 0.00 without conditioning, which
is below the floor of this protocol, so its protocol differs: figures here and there are not
directly comparable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from iwm.actions import CLEAN, Action, Photometry, draw_photometry
from iwm.distributions import STRENGTHS
from iwm.errors import InvalidConfigError, nearest
from iwm.evaluation.ranking import Scores, rank_of, squared_distances
from iwm.fields import require_count
from iwm.images import Images, count, iterate
from iwm.latent import Latent
from iwm.opening import ImageLike
from iwm.photometry import transform
from iwm.world_model import WorldModel

Protocol = Literal["apply", "undo", "transfer"]
Distribution = Literal["full", "jitter"]
_PROTOCOLS = ("apply", "undo", "transfer")
_DISTRIBUTIONS = ("full", "jitter")


@dataclass(frozen=True, kw_only=True)
class MRRReport:
    """Scores of one protocol, by transformation, beside their baselines.

    Attributes:
        protocol, distribution, images, bank_size, seed, strength: what was measured.
        overall: scores of all queries.
        per_transformation: of the queries whose transformed view has jitter alone, or
            (overlapping) grayscale, blur, solarize.
        baselines: `floor` (`apply`), what any action-blind query scores; `chance` (`undo`,
            `transfer`), a random ranking; `wrong_action`, predictions of other views' actions
            (`apply`, `transfer`); `no_action`, the source's own encoding as query (`undo`,
            `transfer`).
    """

    protocol: Protocol
    distribution: Distribution
    images: int
    bank_size: int
    seed: int
    overall: Scores
    per_transformation: dict[str, Scores]
    baselines: dict[str, Scores]
    strength: str | None = None

    @property
    def mrr(self) -> float:
        """Overall mean reciprocal rank."""
        return self.overall.mrr

    @property
    def hits(self) -> dict[int, float]:
        """Overall share of queries whose rank is at most k, by k in 1, 5, 10."""
        return self.overall.hits

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


@torch.no_grad()
def mrr(
    model: WorldModel,
    images: Images,
    *,
    bank_size: int = 256,
    protocol: Protocol = "apply",
    distribution: Distribution = "full",
    seed: int = 0,
    strength: str | None = None,
    progress: bool = False,
) -> MRRReport:
    """Rank predictions in banks of transformed views.

    Protocols: `apply` predicts every view from the clean image and ranks it among the views;
    `undo` predicts the clean image from every view and ranks it among itself and all views;
    `transfer` predicts view i + 1 from view i and ranks it among the views.

    Args:
        model: what is measured.
        images: photographs, one bank each.
        bank_size: views in a bank, at least 2.
        protocol: see above.
        distribution: `full` is what the model's source views were drawn from in training,
            `jitter` the same without grayscale, blur and solarize. Jitter is always on, so that
            no two views are equal.
        seed: of the views; every view is a function of (seed, image index, view index).
        strength: `paper` or `strong` views, to compare models that were trained with others; by
            default the model's own.
        progress: show a progress bar.

    Raises:
        InvalidConfigError: an unknown protocol, distribution or strength, or a bank of less than 2.
    """
    check_protocol(protocol)
    check_distribution(distribution)
    check_strength(strength)
    require_count("seed", seed, least=0)
    bank_size = require_count("bank_size", bank_size, least=2)
    stream: Iterable[ImageLike] = iterate(images)
    if progress:
        from iwm.display import track

        stream = track(stream, f"{protocol}-MRR", count(images))
    parts = []
    for index, image in enumerate(stream):
        params = draw_views(
            model, bank_size, distribution=distribution, seed=seed, index=index, strength=strength
        )
        parts.append((params, _rank_image(model, image, params, protocol)))
    if not parts:
        raise InvalidConfigError("No images to evaluate on.")
    params = torch.cat([p for p, _ in parts])
    ranks = {name: torch.cat([r[name] for _, r in parts]) for name in parts[0][1]}
    candidates = bank_size + (protocol == "undo")
    blind = "floor" if protocol == "apply" else "chance"
    baselines = {blind: Scores.of_chance(candidates, len(params))}
    baselines |= {name: Scores.of(r) for name, r in ranks.items() if name != "query"}
    return MRRReport(
        protocol=protocol,
        distribution=distribution,
        images=len(parts),
        bank_size=bank_size,
        seed=seed,
        strength=strength,
        overall=Scores.of(ranks["query"]),
        per_transformation=_by_transformation(_transformed(params, protocol, bank_size), ranks["query"]),
        baselines=baselines,
    )


def check_protocol(name: str) -> None:
    """Raise `InvalidConfigError` unless a protocol is called so."""
    if name not in _PROTOCOLS:
        raise InvalidConfigError(f'No protocol is called "{name}".{nearest(name, _PROTOCOLS)}')


def check_distribution(name: str) -> None:
    """Raise `InvalidConfigError` unless a distribution is called so."""
    if name not in _DISTRIBUTIONS:
        raise InvalidConfigError(f'No distribution is called "{name}".{nearest(name, _DISTRIBUTIONS)}')


def check_strength(name: str | None) -> None:
    """Raise `InvalidConfigError` unless a strength is called so, or none is given."""
    if name is not None and name not in STRENGTHS:
        raise InvalidConfigError(f'No strength is called "{name}".{nearest(name, STRENGTHS)}')


def draw_views(
    model: WorldModel, count: int, *, distribution: Distribution = "full", seed: int, index: int,
    strength: str | None = None,
) -> Tensor:  # fmt: skip
    """Photometries `[count, 7]` of the views of one bank, jitter always on.

    Args:
        model: whose training distribution they are drawn from.
        count: how many.
        distribution: `full`, or `jitter` for no grayscale, blur and solarize.
        seed, index: of the draws, and of the photograph.
        strength: of another distribution than the model's.
    """
    drawn_from = STRENGTHS[strength] if strength else model.config.actions.distribution
    drawn_from = drawn_from.replace(jitter_probability=1.0)
    if distribution == "jitter":
        drawn_from = drawn_from.without_destructive()
    return draw_photometry(drawn_from, seed=seed, keys=[(index, view) for view in range(count)])


def target_distribution(model: WorldModel) -> Distribution:
    """What the model was trained to lead to: jitter alone, unless its targets had everything."""
    return "full" if model.config.actions.symmetric else "jitter"


def _rank_image(model: WorldModel, image: ImageLike, params: Tensor, protocol: Protocol) -> dict[str, Tensor]:
    """Ranks of one image's queries, and of its baselines' queries, `[bank_size]` each."""
    clean_pixels = model.preprocess.one(image)[None].to(model.device)
    views = [Photometry.from_params(row) for row in params]
    bank = model.encode(transform(clean_pixels.expand(len(params), -1, -1, -1), params))
    everyone = torch.arange(len(views), device=bank.tokens.device)
    following = everyone.roll(-1)
    if protocol == "apply":
        clean = model.encode(clean_pixels)
        predicted = model.apply_action(clean, [Action.between(CLEAN, view) for view in views])
        distances = _distances(predicted, bank)
        # Row i + 1 is the prediction for another view's action.
        return {
            "query": rank_of(distances, everyone),
            "wrong_action": rank_of(distances[following], everyone),
        }
    if protocol == "undo":
        candidates = Latent.cat((bank, model.encode(clean_pixels)))
        clean_column = torch.full_like(everyone, len(views))
        predicted = model.apply_action(bank, [Action.between(view, CLEAN) for view in views])
        return {
            "query": rank_of(_distances(predicted, candidates), clean_column),
            "no_action": rank_of(_distances(bank, candidates), clean_column),
        }
    next_views = views[1:] + views[:1]
    actions = [Action.between(a, b) for a, b in zip(views, next_views, strict=True)]
    wrong = [Action.between(a, b) for a, b in zip(views, next_views[1:] + next_views[:1], strict=True)]
    return {
        "query": rank_of(_distances(model.apply_action(bank, actions), bank), following),
        "wrong_action": rank_of(_distances(model.apply_action(bank, wrong), bank), following),
        "no_action": rank_of(_distances(bank, bank), following),
    }


def _distances(queries: Latent, candidates: Latent) -> Tensor:
    return squared_distances(queries.tokens, candidates.tokens)


def _transformed(params: Tensor, protocol: Protocol, bank_size: int) -> Tensor:
    """Photometry of the view each query is about: the target's, for `undo` the source's."""
    if protocol != "transfer":
        return params
    return params.view(-1, bank_size, params.shape[1]).roll(-1, dims=1).flatten(0, 1)


def _by_transformation(params: Tensor, ranks: Tensor) -> dict[str, Scores]:
    grayscale, blur, solarize = (params[:, column] > 0 for column in (4, 5, 6))
    groups = {
        "jitter": ~(grayscale | blur | solarize),
        "grayscale": grayscale,
        "blur": blur,
        "solarize": solarize,
    }
    ranks = ranks.cpu()
    return {name: Scores.of(ranks[rows]) for name, rows in groups.items() if bool(rows.any())}
