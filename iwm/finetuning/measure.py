"""Scores of adapters on validation images: during a run, and of a finished folder."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from iwm.adapter import Adapter
from iwm.evaluation.classification import ClassificationReport, class_logits
from iwm.evaluation.segmentation import measured
from iwm.finetuning.folders import Split, TaskData
from iwm.loading import load
from iwm.training.config import Precision
from iwm.training.execution import autocast
from iwm.world_model import WorldModel

_BATCH = 64


def validator(
    model: WorldModel,
    adapter: Adapter,
    tasks: Sequence[TaskData],
    *,
    keep: bool,
    precision: Precision = "float32",
) -> Callable[[], dict[str, float]]:
    """A function that measures model and adapter as they are, in eval mode, on the validation images.

    Args:
        model: what encodes.
        adapter: what is measured.
        tasks: supply images and labels.
        keep: hold the images' latents in the machine's memory after the first time; for a frozen encoder.
        precision: of matrix products; the final scores are always computed in float32.
    """
    kept: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def accuracy(task: TaskData) -> float:
        if not keep:
            logits = class_logits(model, adapter, task.name, task.val.images, _BATCH)
            return ClassificationReport.of(logits, task.val.classes).accuracy
        if task.name not in kept:
            paths = task.val.images
            kept[task.name] = [
                model.encode(paths[i : i + _BATCH]).tokens.cpu().half() for i in range(0, len(paths), _BATCH)
            ]
        side = model.preprocess.size // model.config.encoder.patch_size
        outputs = [
            adapter(model, tokens.to(model.device).float(), (side, side), task.name).cpu()
            for tokens in kept[task.name]
        ]
        return ClassificationReport.of(torch.cat(outputs), task.val.classes).accuracy

    def score(task: TaskData) -> float:
        if task.val.masks:
            return measured(model, adapter, task.name, task.val.segmented).miou
        return accuracy(task)

    def scores() -> dict[str, float]:
        with autocast(model.device, precision):
            return {task.name: score(task) for task in tasks}

    return scores


def measure(model_name: str, task: str, split: Split, device: str = "cpu") -> dict[str, Any]:
    """Scores of a task of a model folder on labelled images, with the command that gives them again.

    Args:
        model_name: folder, zoo name or repository.
        task: name of the task.
        split: images and classes, numbered as the task's labels.
        device: where to compute.
    """
    model = load(model_name, task=task, device=device)
    adapter = model.load_adapter(model.config.adapter_of(task))
    if split.masks:
        scores = measured(model, adapter, task, split.segmented).to_dict()
    else:
        logits = class_logits(model, adapter, task, split.images, _BATCH)
        scores = ClassificationReport.of(logits, split.classes).to_dict()
    name = "segment" if split.masks else "finetune"
    words = ["iwm", "eval", name, "--model", model_name, "--task", task, "--data", str(split.root)]
    words += split.options
    words += ["--device", device] if device != "cpu" else []
    return scores | {"command": shlex.join(words), "files_sha256": split.files_sha256}
