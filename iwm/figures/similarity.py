"""How alike the latents of transformed views are [arXiv 2403.00504, appendix G, figure S3].

Each photograph is augmented a few times and every view compared with every other. An invariant
model's latents hardly differ between views of one photograph; an equivariant one's do, because what
was done to the pixels is in them. Not in the paper: the same views *undone* by the world model, which
brings those of an equivariant model together again.

Shapes: P photographs with V views each; matrices are `[P V, P V]`, view by view, photograph by photograph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iwm.actions import CLEAN, Action, Photometry
from iwm.errors import InvalidConfigError, nearest
from iwm.evaluation.mrr import draw_views
from iwm.opening import ImageLike
from iwm.photometry import transform
from iwm.world_model import WorldModel

Compared = Literal["tokens", "pooled"]
COMPARED = ("tokens", "pooled")


@dataclass(frozen=True, eq=False)
class Similarity:
    """Similarities between all views, by one model.

    Attributes:
        model: its name.
        undone: whether the world model undid every view's transformation first.
        compare: `pooled` latents, or all `tokens`.
        photographs, views: how many; the matrix has a row and a column for each view of each.
        matrix: cosine similarities.
    """

    model: str
    undone: bool
    compare: Compared
    photographs: int
    views: int
    matrix: np.ndarray[tuple[int, ...], np.dtype[np.float32]]

    @property
    def within(self) -> tuple[float, float]:
        """Mean and standard deviation over pairs of different views of one photograph."""
        pairs = self.matrix[self._same() & ~np.eye(len(self.matrix), dtype=bool)]
        return float(pairs.mean()), float(pairs.std())

    @property
    def between(self) -> tuple[float, float] | None:
        """The same over pairs of views of different photographs; None if there is one photograph."""
        pairs = self.matrix[~self._same()]
        return (float(pairs.mean()), float(pairs.std())) if pairs.size else None

    @property
    def what(self) -> str:
        """What was compared, in words."""
        return "views undone" if self.undone else "views as encoded"

    @property
    def summary(self) -> tuple[str, ...]:
        """What the eye should see, in numbers: mean and standard deviation of similarities."""
        lines = [f"same photo {_spread(self.within)}"]
        if self.between is not None:
            lines.append(f"other photos {_spread(self.between)}")
        return tuple(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "model": self.model, "undone": self.undone, "compare": self.compare,
            "photographs": self.photographs, "views": self.views, "within": self.within,
            "between": self.between, "matrix": self.matrix.tolist(),
        }  # fmt: skip

    def _same(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        photograph = np.repeat(np.arange(self.photographs), self.views)
        return np.equal.outer(photograph, photograph)


def draw_augmentations(model: WorldModel, photographs: int, views: int = 16, *, seed: int = 0) -> Tensor:
    """Photometries `[P, V, 7]` to compare models on, from what one was trained on.

    Args:
        model: whose training distribution they are drawn from.
        photographs: P, at least 1.
        views: V, at least 2.
        seed: of the draw.

    Raises:
        InvalidConfigError: too few.
    """
    if photographs < 1:
        raise InvalidConfigError("The picture needs at least one photograph.")
    if views < 2:
        raise InvalidConfigError(f"views is {views}; at least 2 are needed to compare them.")
    return torch.stack([draw_views(model, views, seed=seed, index=i) for i in range(photographs)])


def check_compared(compare: str) -> None:
    """Raise `InvalidConfigError` unless this can be compared."""
    if compare not in COMPARED:
        raise InvalidConfigError(f'Cannot compare "{compare}".{nearest(compare, COMPARED)}')


@torch.no_grad()
def similarity(
    model: WorldModel,
    images: Sequence[ImageLike],
    params: Tensor,
    *,
    compare: Compared = "tokens",
    undo: bool = False,
) -> Similarity:
    """Cosine similarity between the latents of all views of all photographs.

    The paper does not say of what it takes similarities. `tokens` compares all patch tokens in place, as
    retrieval does; `pooled` latents are centred on their mean over all views, without which their common
    part makes everything alike.

    Args:
        model: what encodes, and undoes.
        images: P photographs.
        params: `[P, V, 7]`, of their views; see `draw_augmentations`.
        compare: see above.
        undo: let the world model undo every view's transformation before comparing.

    Raises:
        InvalidConfigError: an unknown `compare`.
    """
    check_compared(compare)
    rows = []
    for image, views in zip(images, params, strict=True):
        pixels = model.preprocess.one(image).expand(len(views), -1, -1, -1)
        latent = model.encode(transform(pixels, views))
        if undo:
            backward = [Action.between(Photometry.from_params(view), CLEAN) for view in views]
            latent = model.apply_action(latent, backward)
        rows.append(latent.tokens.flatten(1) if compare == "tokens" else latent.mean())
    vectors = torch.cat(rows).double()
    if compare == "pooled":
        vectors = vectors - vectors.mean(dim=0)
    vectors = F.normalize(vectors, dim=1)
    return Similarity(
        model=model.config.name,
        undone=undo,
        compare=compare,
        photographs=params.shape[0],
        views=params.shape[1],
        matrix=(vectors @ vectors.T).float().cpu().numpy(),
    )


def _spread(numbers: tuple[float, float]) -> str:
    return f"{numbers[0]:.2f} ± {numbers[1]:.2f}"
