"""Solving tasks with a model: which there are, their adapters, classes of images and of pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from iwm.adapter import Adapter
from iwm.checkpoint import load_weights
from iwm.config import AdapterConfig, TaskKind, WorldModelConfig
from iwm.errors import (
    IncompatibleWeightsError,
    UnknownTaskError,
    WeightsUnavailableError,
)
from iwm.model_folder import task_file
from iwm.opening import ImageLike

if TYPE_CHECKING:
    from iwm.stored import StoredModel
    from iwm.world_model import WorldModel

_CALLS: dict[TaskKind, str] = {"classification": "classify", "segmentation": "segment"}
_COMMANDS: dict[TaskKind, str] = {"classification": "finetune", "segmentation": "segment"}
"""Of `iwm eval`."""
_CLASSES_AT_ONCE = 8
"""Brought to an image's own size together: all of 150 for a 12-megapixel image would take 7 GB."""


@dataclass(frozen=True, eq=False)
class Classification:
    """The likeliest classes of B images.

    Attributes:
        task: whose classes they are.
        labels: for each image, likeliest first.
        probabilities: `[B, k]`, of the same, in 0 to 1.
    """

    task: str
    labels: list[list[str]]
    probabilities: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        rows = zip(self.labels, self.probabilities.tolist(), strict=True)
        return "\n".join(
            ", ".join(f"{label} {p:.1%}" for label, p in zip(labels, row, strict=True))
            for labels, row in rows
        )


def find_task(
    config: WorldModelConfig, task: str | None, default: str | None = None, kind: TaskKind | None = None
) -> str:
    """The task that is meant.

    Args:
        config: of the model.
        task: as the user named it; None is `default`, or the only one.
        default: of the model, if it is of this kind.
        kind: that is needed; None is any.

    Raises:
        UnknownTaskError: none or several could be meant; the message says what to type.
    """
    if task is not None:
        config.adapter_of(task)
        found = config.tasks[task].kind
        if kind not in (None, found):
            raise UnknownTaskError(
                f'"{task}" is a task of {found}; write model.{_CALLS[found]}(image, task="{task}"), or '
                f"iwm eval {_COMMANDS[found]} --task {task}."
            )
        return task
    known = [name for name, described in config.tasks.items() if kind in (None, described.kind)]
    if default in known:
        return str(default)
    if len(known) == 1:
        return known[0]
    if known:
        raise UnknownTaskError(
            f'"{config.name}" has several tasks: {", ".join(known)}. Choose one: task="{known[0]}", or --task '
            f"{known[0]} of a command."
        )
    others = [f"{name} (model.{_CALLS[t.kind]})" for name, t in config.tasks.items()]
    raise UnknownTaskError(
        f'"{config.name}" has no task of {kind or "any kind"}'
        + (f"; it has {', '.join(others)}." if others else "; train one with `iwm finetune`.")
    )


def check_space(config: AdapterConfig, name: str, model: StoredModel) -> None:
    """Raise `IncompatibleWeightsError` unless an adapter was trained on this model's encoder."""
    if config.space != model.space:
        raise IncompatibleWeightsError(
            f'The adapter "{name}" was trained on another encoder (space {config.space}, this model\'s is '
            f"{model.space}). Take both from one checkpoint and branch, or train it again: `iwm finetune`."
        )


def read_adapter(model: StoredModel, name: str) -> Adapter:
    """An adapter of a model, from where the model came from.

    Raises:
        WeightsUnavailableError: the model came from no folder, or its file cannot be had.
        IntegrityError: the file is not what was published.
        IncompatibleWeightsError: it belongs to another encoder, or does not fit its config.
    """
    described = model.config.adapters[name]
    if model.source is None:
        raise WeightsUnavailableError(
            f'The adapter "{name}" is described and not loaded, and the model came from no folder. Load '
            "it with iwm.load."
        )
    check_space(described, name, model)
    model.source.have([task_file(name)])
    with torch.device("meta"):
        adapter = Adapter(described, model.config)
    load_weights(model.source.folder / task_file(name), adapter)
    return adapter


def classify(
    model: WorldModel, batches: Iterable[tuple[Tensor, tuple[int, int]]], task: str, topk: int
) -> Classification:
    """Classify encodings.

    Args:
        model: has the task.
        batches: tokens `[B, N, D]` and their grid.
        task: its name.
        topk: classes an image; all where there are fewer.
    """
    adapter = model.load_adapter(model.config.adapter_of(task))
    labels = model.config.tasks[task].labels
    found = [
        adapter(model, tokens, grid, task).float().softmax(dim=-1).topk(min(topk, len(labels)))
        for tokens, grid in batches
    ]
    indices = torch.cat([part.indices for part in found]).tolist()
    return Classification(
        task, [[labels[i] for i in row] for row in indices], torch.cat([part.values for part in found])
    )


def segment(model: WorldModel, image: ImageLike, task: str) -> Tensor:
    """Class of every pixel of one image, `[H, W]`, at its own size."""
    adapter = model.load_adapter(model.config.adapter_of(task))
    pixels, size = model.preprocess.whole(image, model.config.encoder.patch_size)
    batch = pixels[None].to(next(model.encoder.parameters()))
    source = adapter.encode(model.encoder, batch, task)
    return class_map(adapter(model, source, model.encoder.grid_of(batch), task), size)[0]


def class_map(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The likeliest class everywhere, at a size.

    Args:
        logits: `[B, K, h, w]`, resized bilinearly.
        size: height and width.

    Returns:
        `[B, H, W]`, int64.
    """
    shape = (len(logits), *size)
    best = torch.full(shape, -torch.inf, device=logits.device)
    classes = torch.zeros(shape, dtype=torch.int64, device=logits.device)
    for start in range(0, logits.shape[1], _CLASSES_AT_ONCE):
        some = logits[:, start : start + _CLASSES_AT_ONCE].float()
        scores, found = F.interpolate(some, size=size, mode="bilinear", align_corners=False).max(dim=1)
        better = scores > best
        best = torch.where(better, scores, best)
        classes = torch.where(better, found + start, classes)
    return classes
