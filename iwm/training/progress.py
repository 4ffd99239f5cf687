"""The progress of a training run: loss, images a second, time to go, waiting, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

T = TypeVar("T")


class Progress:
    """A bar on a terminal; elsewhere (a log file) a line every half minute."""

    def __init__(self, steps: int, first_step: int, batch_size: int, shown: bool = True) -> None:
        self.shown = shown
        self.steps = steps
        self.done = first_step
        self.batch_size = batch_size
        self.images_per_second = 0.0
        self._console = Console(stderr=True)
        self._bar = RichProgress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[speed]:.0f} images/s"), TextColumn("left"), TimeRemainingColumn(),
            console=self._console, disable=not (shown and self._console.is_terminal),
        )  # fmt: skip
        self._task = self._bar.add_task("", total=steps, completed=first_step, loss=float("nan"), speed=0.0)
        self._last = time.monotonic()
        self._last_line = self._last

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, loss: float) -> None:
        """One more step is done."""
        now = time.monotonic()
        speed = self.batch_size / max(now - self._last, 1e-9)
        # A running mean: single steps vary with the number of visible tokens.
        self.images_per_second = (
            speed if self.images_per_second == 0 else 0.95 * self.images_per_second + 0.05 * speed
        )
        self._last = now
        self.done += 1
        self._bar.update(self._task, advance=1, loss=loss, speed=self.images_per_second)
        if self.shown and self._bar.disable and (now - self._last_line > 30 or self.done == self.steps):
            self._last_line = now
            left = (self.steps - self.done) * self.batch_size / self.images_per_second
            self._console.print(
                f"step {self.done}/{self.steps}  loss {loss:.4f}  "
                f"{self.images_per_second:.0f} images/s  {left / 60:.1f} min left"
            )


class Waits:
    """The share of time in which training waits for its data."""

    def __init__(self) -> None:
        self.waited = 0.0
        self.since = time.monotonic()

    def over(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, timed."""
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.waited += time.monotonic() - asked
            yield batch

    def share(self) -> float:
        """Since the last call, or the start."""
        now = time.monotonic()
        share = self.waited / max(now - self.since, 1e-9)
        self.waited, self.since = 0.0, now
        return round(share, 4)


def memory_mb(device: torch.device) -> float:
    """Peak memory so far, in 10^6 bytes: of the GPU, or else of this process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
