"""Mean intersection over union of class maps.

Counted over all pixels of a set, not image by image, and averaged over the classes that occur in
the masks or in the predictions: torchmetrics' `JaccardIndex(average="macro")` on the same maps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.adapter import Adapter
from iwm.errors import InvalidDataError
from iwm.evaluation.labelled import IGNORED, Segmented, read_mask
from iwm.tasks import class_map
from iwm.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class SegmentationReport:
    """Overlap of predicted and true regions.

    Attributes:
        miou: mean intersection over union of the classes that occur.
        accuracy: share of counted pixels whose class is right.
        per_class: intersection over union by label; None where a class does not occur.
        images: what was measured.
    """

    miou: float
    accuracy: float
    per_class: dict[str, float | None]
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


class Confusion:
    """Counts of pixels by true and predicted class.

    Args:
        classes: how many.
    """

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)
        self.images = 0

    def add(self, predicted: Tensor, true: Tensor) -> None:
        """Count one image.

        Args:
            predicted: class indices `[H, W]`.
            true: the same; `IGNORED` does not count.

        Raises:
            InvalidDataError: maps of different sizes, or classes that there are not.
        """
        if predicted.shape != true.shape:
            raise InvalidDataError(
                f"A class map of {list(predicted.shape)} and a mask of {list(true.shape)}; sizes must be equal."
            )
        classes = len(self.counts)
        counted = true != IGNORED
        rows, columns = true[counted].long().cpu(), predicted[counted].long().cpu()
        if (
            len(rows)
            and not 0
            <= int(torch.stack((rows, columns)).min())
            <= int(torch.stack((rows, columns)).max())
            < classes
        ):
            raise InvalidDataError(f"A class map holds classes outside 0 to {classes - 1}.")
        self.counts += torch.bincount(rows * classes + columns, minlength=classes**2).view(classes, classes)
        self.images += 1

    def report(self, labels: Sequence[str]) -> SegmentationReport:
        """The scores of all that was counted.

        Args:
            labels: names of the classes.

        Raises:
            InvalidDataError: not one pixel was counted.
        """
        hits = self.counts.diagonal()
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        if not int(self.counts.sum()):
            raise InvalidDataError("Not one pixel of the masks counts; look at their labels.")
        shares = [int(h) / int(u) if u else None for h, u in zip(hits, union, strict=True)]
        known = [share for share in shares if share is not None]
        return SegmentationReport(
            miou=sum(known) / len(known),
            accuracy=int(hits.sum()) / int(self.counts.sum()),
            per_class=dict(zip(labels, shares, strict=True)),
            images=self.images,
        )


def segmentation_scores(pairs: Iterable[tuple[Tensor, Tensor]], labels: Sequence[str]) -> SegmentationReport:
    """Scores of (predicted, true) class maps `[H, W]`, each pair of its own size.

    Raises:
        InvalidDataError: maps that do not fit each other or the labels.
    """
    confusion = Confusion(len(labels))
    for predicted, true in pairs:
        confusion.add(predicted, true)
    return confusion.report(labels)


@torch.no_grad()
def measured(model: WorldModel, adapter: Adapter, task: str, data: Segmented) -> SegmentationReport:
    """Scores of an adapter on images and masks, each at its own size.

    Args:
        model: what encodes them.
        adapter: what segments them, in eval mode.
        task: its name; classes are counted in the order of its labels.
        data: images and masks, numbered as the task's labels.

    Raises:
        InvalidImageError: an image or mask cannot be read, or they do not fit.
    """

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        like = model.predictor.project_in.weight
        for path, mask in zip(data.images, data.masks, strict=True):
            pixels, size = model.preprocess.whole(path, model.config.encoder.patch_size)
            batch = pixels[None].to(like)
            source = adapter.encode(model.encoder, batch, task)
            logits = adapter(model, source, model.encoder.grid_of(batch), task)
            true = read_mask(mask, data.numbers, (size[1], size[0]))
            yield class_map(logits, size)[0].cpu(), torch.from_numpy(np.array(true))

    return segmentation_scores(pairs(), adapter.config.tasks[task].labels)
