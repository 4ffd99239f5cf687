"""What a finetuning run reports: scores, costs, and the table of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from iwm.finetuning.accounting import Cost

RESULT_FILE = "result.json"


def name_head(noun: str, head: str, batch_norm: bool, channels: int = 0) -> str:
    """A head or probe in words; a linear one is with or without batch norm, one of set width says it.

    >>> name_head("probe", "linear", batch_norm=False)
    'linear probe without batch norm'
    """
    norm = f" {'with' if batch_norm else 'without'} batch norm" if head == "linear" else ""
    return f"{head} {noun}{norm}{f' of {channels} channels' if channels else ''}"


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task's scores.

    Attributes:
        task: its name.
        kind: `classification` or `segmentation`.
        scores: of `ClassificationReport` or `SegmentationReport`, with `command`, which gives
            them again, and `files_sha256` of the images they are about.
        single: accuracy of the same recipe trained on this task alone, where it was asked for.
    """

    task: str
    kind: str
    scores: dict[str, Any]
    single: float | None = None

    @property
    def score(self) -> float:
        """Accuracy, or mean intersection over union."""
        return float(self.scores["miou" if self.kind == "segmentation" else "accuracy"])


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What `result.json` of a run holds.

    Attributes:
        tasks: the scores of each, measured on the folder as it was written.
        cost: see its class.
        tune, head, batch_norm, channels, init, output, action, branch: what was trained.
        steps, best_step: done, and the one whose weights were kept.
        train_images: how many.
        seconds: of training, over all sittings.
        seed: of the run.
        command: what was typed.
    """

    tasks: tuple[TaskResult, ...]
    cost: Cost
    tune: str
    head: str
    batch_norm: bool
    channels: int
    init: str
    output: str
    action: str
    branch: str
    steps: int
    best_step: int
    train_images: int
    seconds: float
    seed: int
    command: str

    @property
    def average(self) -> float:
        """Mean score over the tasks."""
        return sum(t.score for t in self.tasks) / len(self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the sums among them."""
        values = dataclasses.asdict(self)
        return values | {"cost": self.cost.to_dict(), "average": self.average}

    @property
    def title(self) -> str:
        """What was trained, in words."""
        if self.tune == "none":
            return name_head("probe", self.head, self.batch_norm)
        return f"{self.tune} finetuned, {name_head('head', self.head, self.batch_norm, self.channels)}"

    def rows(self) -> list[tuple[str, str]]:
        """What is printed: a name and a value a line."""
        lines = []
        for t in self.tasks:
            alone = "" if t.single is None else f"   alone {t.single:.1%} ({t.score - t.single:+.1%})"
            measure = "mIoU" if t.kind == "segmentation" else "accuracy"
            lines.append((t.task, f"{measure} {t.score:.1%} of {t.scores['images']} images{alone}"))
        if len(self.tasks) > 1:
            singles = [t.single for t in self.tasks if t.single is not None]
            alone = ""
            if len(singles) == len(self.tasks):
                mean = sum(singles) / len(singles)
                alone = f"   alone {mean:.1%} ({self.average - mean:+.1%})"
            lines.append(("average", f"{self.average:.1%}{alone}"))
        return [
            *lines,
            *self.cost.rows(),
            ("training", f"{self.seconds:,.0f} s, {self.steps} steps, best at {self.best_step}"),
        ]
