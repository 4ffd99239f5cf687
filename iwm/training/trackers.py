"""Where the numbers of a run are shown besides `metrics.jsonl`: TensorBoard, Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from iwm.errors import InvalidConfigError
from iwm.training.config import RunConfig


class Tracker(Protocol):
    """Shows numbers."""

    def log(self, record: dict[str, Any]) -> None:
        """One logged step: `step`, and scalars by name."""

    def close(self) -> None:
        """No more will come."""


def make_trackers(config: RunConfig, out: Path) -> list[Tracker]:
    """Those that the configuration asks for.

    Raises:
        InvalidConfigError: a package is missing.
    """
    trackers: list[Tracker] = []
    try:
        if config.tensorboard:
            trackers.append(_TensorBoard(out))
        if config.wandb:
            trackers.append(_WandB(config.wandb, out))
    except ImportError as error:
        raise InvalidConfigError(f"{error}. Install it: pip install 'iwm[train]', or wandb.") from error
    return trackers


@contextmanager
def closing_all(trackers: list[Tracker]) -> Iterator[None]:
    """Close them when the block ends, however it ends."""
    try:
        yield
    finally:
        for tracker in trackers:
            tracker.close()


class _TensorBoard:
    """Events in `tensorboard/` of the run folder."""

    def __init__(self, out: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(out / "tensorboard"))

    def log(self, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "step":
                self.writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self.writer.close()


class _WandB:
    """A run of Weights & Biases, named after the run folder, and continued with it."""

    def __init__(self, project: str, out: Path) -> None:
        import wandb

        name = out.absolute().name
        self.run = wandb.init(project=project, name=name, id=name, dir=str(out), resume="allow")

    def log(self, record: dict[str, Any]) -> None:
        self.run.log({k: v for k, v in record.items() if k != "step"}, step=record["step"])

    def close(self) -> None:
        self.run.finish()
