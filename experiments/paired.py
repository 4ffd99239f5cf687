"""Differences of finetuning runs and probes, paired by validation image.

What the seeds of a row average to is compared image by image. The interval of an accuracy is 1.96
standard errors of the mean over images, that of an mIoU, which is no mean over images, 1.96
standard deviations over sets of images drawn anew.
"""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from iwm.evaluation.classification import class_logits
from iwm.evaluation.labelled import read_mask
from iwm.evaluation.segmentation import Confusion
from iwm.files import write_text
from iwm.finetuning.folders import Split, read_task
from iwm.loading import load

ANSWERS_FILE = "answers.json"
"""What `iwm eval probe` writes of every validation image."""
_RESAMPLED = 2000


def gain(folders: Sequence[Path], others: Sequence[Path], task: str, labels: Path | None = None) -> str:
    """What one row's runs gain over another's, with its interval.

    Args:
        folders, others: the runs of either, one a seed.
        task: its name and the name of its data's folder.
        labels: the names of masks, for segmentation.
    """
    mine, theirs = (torch.stack([answers(f, task, labels) for f in group]) for group in (folders, others))
    if labels is not None:
        return overlap_interval(mine, theirs)
    return interval(mine.mean(dim=0) - theirs.mean(dim=0))


def gains_over_alone(folders: Sequence[Path], tasks: Sequence[str]) -> dict[str, str]:
    """What every task gains from being learned with the others, and their average, with intervals.

    Args:
        folders: multitask runs with `alone/TASK` in them, one a seed.
        tasks: their names and the names of their data's folders.
    """
    gains = []
    for task in tasks:
        joint = torch.stack([answers(folder, task) for folder in folders])
        alone = torch.stack([answers(folder / "alone" / task, task) for folder in folders])
        gains.append(joint.mean(dim=0) - alone.mean(dim=0))
    each = {task: interval(one) for task, one in zip(tasks, gains, strict=True)}
    return each | {"average": interval(*gains)}


def answers(folder: Path, task: str, labels: Path | None = None) -> Tensor:
    """What a run's model makes of every validation image; kept in its folder.

    Returns:
        Whether it is right, `[n]`; with labels of masks the pixels by true and predicted class,
        `[n, K, K]`.
    """
    probed = folder / ANSWERS_FILE
    if probed.is_file():
        said = json.loads(probed.read_text(encoding="utf-8"))
        return torch.tensor([a["class"] == a["answer"] for a in said], dtype=torch.float64)
    file = folder / f"answers-{task}.json"
    if not file.is_file():
        split = _validation(task, labels)
        found = _right(folder, task, split) if labels is None else _confusions(folder, task, split)
        write_text(file, json.dumps(found.tolist()) + "\n")
    return torch.tensor(json.loads(file.read_text(encoding="utf-8")), dtype=torch.float64)


@functools.cache
def _validation(task: str, labels: Path | None) -> Split:
    return read_task(f"{task}={task}", segmentation=labels is not None, labels=labels).val


def _right(folder: Path, task: str, split: Split) -> Tensor:
    model = load(folder, task=task)
    adapter = model.load_adapter(model.config.adapter_of(task))
    return class_logits(model, adapter, task, split.images).argmax(dim=1) == torch.tensor(split.classes)


def _confusions(folder: Path, task: str, split: Split) -> Tensor:
    model = load(folder, task=task)
    counts = []
    for image, mask in zip(split.images, split.masks, strict=True):
        true = torch.from_numpy(np.array(read_mask(mask, split.numbers)))
        confusion = Confusion(len(model.labels()))
        confusion.add(cast("Tensor", model.segment(image)), true)
        counts.append(confusion.counts)
    return torch.stack(counts)


def token_overlaps(task: str, labels: Path, classes: int, patch: int) -> Tensor:
    """Overlap of masks with what is left of them where every token has one answer, drawn up bilinearly.

    What segments from tokens is not bound by it, but to learn finer borders it needs more than their shares.

    Args:
        task: the name of the data's folder.
        labels: the names of masks.
        classes: how many of them count.
        patch: pixels of a side of a token.

    Returns:
        Intersection over union `[K]` of the validation split.
    """
    split = _validation(task, labels)
    confusion = Confusion(classes)
    for mask in split.masks:
        true = torch.from_numpy(np.array(read_mask(mask, split.numbers))).long()
        shares = torch.stack([true == index for index in range(classes)])[None].float()
        shares = avg_pool2d(shares, patch, ceil_mode=True)
        drawn = interpolate(shares, size=true.shape, mode="bilinear", align_corners=False)
        confusion.add(drawn[0].argmax(dim=0), true)
    hits = confusion.counts.diagonal().double()
    return hits / (confusion.counts.sum(dim=0) + confusion.counts.sum(dim=1) - hits)


def interval(*differences: Tensor) -> str:
    """Mean of paired differences and 1.96 of its standard errors, in points.

    Args:
        differences: of the images of one data set; of several, the mean of their means is told.
    """
    mean = statistics.fmean(float(d.mean()) for d in differences)
    error = sum(float(d.var()) / len(d) for d in differences) ** 0.5 / len(differences)
    return f"{mean:+.1%} ± {1.96 * error:.1%}"


def overlap_interval(results: Tensor, others: Tensor) -> str:
    """Difference of two mIoUs, and 1.96 of its standard deviations over sets of images drawn anew.

    Args:
        results, others: pixels by true and predicted class, `[seeds, n, K, K]`, of the same images.
    """
    count = results.shape[1]
    drawn = torch.randint(count, (_RESAMPLED, count), generator=torch.Generator().manual_seed(0))
    times = torch.zeros(_RESAMPLED, count, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(times))
    once = torch.ones(1, count, dtype=torch.float64)
    spread = (_overlaps(results, times) - _overlaps(others, times)).std()
    mean = _overlaps(results, once) - _overlaps(others, once)
    return f"{float(mean):+.1%} ± {1.96 * float(spread):.1%}"


def _overlaps(counts: Tensor, times: Tensor) -> Tensor:
    """MIoU `[r]`, averaged over seeds, of sets that hold every image so many times, `[r, n]`."""
    pixels = torch.einsum("rn,snij->srij", times, counts)
    hits = pixels.diagonal(dim1=-2, dim2=-1)
    union = pixels.sum(dim=-1) + pixels.sum(dim=-2) - hits
    return (hits / union).nanmean(dim=-1).mean(dim=0)  # Classes that do not occur are 0 / 0.
