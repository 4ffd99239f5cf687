"""Accuracy of a classifying adapter on labelled photographs, seen as in use: resized, centre crop."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iwm.adapter import Adapter
from iwm.errors import InvalidDataError
from iwm.images import batched
from iwm.opening import ImageLike
from iwm.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class ClassificationReport:
    """How often the right class comes first.

    Attributes:
        accuracy: share of images whose first class is right.
        top5: share whose right class is among the first five.
        chance: share of the most frequent class.
        images, classes: what was measured.
    """

    accuracy: float
    top5: float
    chance: float
    images: int
    classes: int

    @classmethod
    def of(cls, logits: Tensor, classes: Sequence[int]) -> ClassificationReport:
        """The scores of logits `[n, K]` for true classes.

        Raises:
            InvalidDataError: no images, or logits that are no numbers.
        """
        true = torch.tensor(classes)
        if not len(true) or not bool(logits.isfinite().all()):
            raise InvalidDataError(
                "The scores are not finite numbers." if len(true) else "No images to evaluate on."
            )
        first = logits.topk(min(5, logits.shape[1]), dim=1).indices
        right = first == true[:, None]
        return cls(
            accuracy=float(right[:, 0].double().mean()),
            top5=float(right.any(dim=1).double().mean()),
            chance=float(true.bincount().max()) / len(true),
            images=len(true),
            classes=logits.shape[1],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


@torch.no_grad()
def class_logits(
    model: WorldModel, adapter: Adapter, task: str, images: Iterable[ImageLike], batch_size: int = 64
) -> Tensor:
    """Scores `[n, K]` of every image, on the CPU.

    Args:
        model: what encodes them.
        adapter: what classifies them, in eval mode.
        task: its name.
        images: photographs.
        batch_size: at a time.
    """
    like = model.predictor.project_in.weight
    outputs = []
    for batch in batched(images, batch_size):
        pixels = model.preprocess(batch).to(like)
        source = adapter.encode(model.encoder, pixels, task)
        outputs.append(adapter(model, source, model.encoder.grid_of(pixels), task).float().cpu())
    return torch.cat(outputs)
