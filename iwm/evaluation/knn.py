"""k-nearest-neighbour accuracy of pooled latents: what an encoder knows without training.

Latents are averaged over the grid and centred on the training mean; neighbours are found by
cosine similarity s and vote with weight exp(s / 0.1).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from iwm.errors import IncompatibleWeightsError, InvalidDataError
from iwm.evaluation.labelled import read_class_folder
from iwm.fields import require_count
from iwm.opening import ImageLike
from iwm.world_model import WorldModel

TEMPERATURE = 0.1
_CHUNK = 1024

LabelledSet: TypeAlias = "str | os.PathLike[str] | tuple[Sequence[ImageLike], Sequence[str]]"
"""A folder with one subfolder a class, or images and their labels."""


@dataclass(frozen=True, kw_only=True)
class KNNReport:
    """Accuracy of nearest-neighbour classification.

    Attributes:
        accuracy: share of validation images whose winning label is right.
        random_encoder: the same with the same architecture at random weights, if asked for.
        chance: share of the most frequent validation label.
        k, classes, train_images, val_images: what was measured.
    """

    accuracy: float
    random_encoder: float | None
    chance: float
    k: int
    classes: int
    train_images: int
    val_images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def knn(
    model: WorldModel,
    train: LabelledSet,
    val: LabelledSet,
    k: int = 20,
    *,
    random_baseline: bool = False,
    batch_size: int = 64,
    progress: bool = False,
) -> KNNReport:
    """Classify validation images by their nearest training images.

    Args:
        model: whose encoder is measured.
        train: a folder with one subfolder a class, or (images, labels).
        val: the same; its labels must occur in `train`.
        k: neighbours that vote; all of them where there are fewer.
        random_baseline: also measure the same architecture at random weights (seed 0).
        batch_size: images encoded at a time.
        progress: show a progress bar.

    Raises:
        InvalidConfigError: `k` is no whole number of at least 1.
        InvalidDataError: a folder without classes, or labels that `train` does not have.
        InvalidImageError: an image that cannot be read.
    """
    k = require_count("k", k)
    train_images, train_labels = _labelled(train)
    k = min(k, len(train_images))
    val_images, val_labels = _labelled(val)
    unknown = sorted(set(val_labels) - set(train_labels))
    if unknown:
        raise InvalidDataError(
            f"Labels that only the validation images have: {', '.join(map(str, unknown[:5]))}."
        )
    classes = sorted(set(train_labels))
    index = {label: i for i, label in enumerate(classes)}
    train_y = torch.tensor([index[label] for label in train_labels])
    val_y = torch.tensor([index[label] for label in val_labels])

    def accuracy(of: WorldModel) -> float:
        """Share of validation images that `of` classifies right."""
        train_z = of.embed(train_images, batch_size, progress).float().cpu()
        val_z = of.embed(val_images, batch_size, progress).float().cpu()
        return float((vote(train_z, train_y, val_z, k, len(classes)) == val_y).double().mean())

    return KNNReport(
        accuracy=accuracy(model),
        random_encoder=accuracy(_at_random(model)) if random_baseline else None,
        chance=float(val_y.bincount().max()) / len(val_y),
        k=k,
        classes=len(classes),
        train_images=len(train_y),
        val_images=len(val_y),
    )


def vote(train_z: Tensor, train_y: Tensor, val_z: Tensor, k: int, classes: int) -> Tensor:
    """Winning class `[V]` of each validation vector.

    Args:
        train_z: `[T, D]`.
        train_y: `[T]` class indices.
        val_z: `[V, D]`.
        k: neighbours that vote.
        classes: number of classes.
    """
    if not bool(train_z.isfinite().all() and val_z.isfinite().all()):
        raise IncompatibleWeightsError("The model's latents are not finite numbers; its weights are damaged.")
    centre = train_z.mean(dim=0)
    train_z, val_z = F.normalize(train_z - centre, dim=1), F.normalize(val_z - centre, dim=1)
    winners = []
    for start in range(0, len(val_z), _CHUNK):
        similarity = val_z[start : start + _CHUNK] @ train_z.T
        nearest = similarity.topk(min(k, len(train_z)), dim=1)
        votes = torch.zeros(len(similarity), classes)
        votes.scatter_add_(1, train_y[nearest.indices], (nearest.values / TEMPERATURE).exp())
        winners.append(votes.argmax(dim=1))
    return torch.cat(winners)


def _labelled(data: LabelledSet) -> tuple[list[ImageLike], list[str]]:
    if isinstance(data, str | os.PathLike):
        found = read_class_folder(Path(data))
        return list(found.images), found.labels
    images = list(data[0])
    labels = list(
        data[1].tolist() if hasattr(data[1], "tolist") else data[1]
    )  # Tensors equal nothing but themselves.
    if len(images) != len(labels) or not images:
        raise InvalidDataError(
            f"{len(images)} images and {len(labels)} labels; give one label to each image."
        )
    return images, labels


def _at_random(model: WorldModel) -> WorldModel:
    """The same architecture at random weights, always the same ones."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # And no GPU's, which would stay seeded.
        fresh = WorldModel(model.config)
    return fresh.to(model.predictor.project_in.weight.device)
