"""Where the numbers of a run are shown besides `metrics.jsonl`: TensorBoard, Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from iwm.errors import InvalidConfigError, SaveError, quoted
from iwm.files import write_text
from iwm.training.config import RunConfig


class Tracker(Protocol):
    """Shows numbers."""

    def log(self, record: dict[str, Any]) -> None:
        """One logged step: `step`, and scalars by name."""

    def close(self) -> None:
        """No more will come."""


def require_packages(config: RunConfig) -> None:
    """Look for the packages that the configuration asks for, before anything is written.

    Raises:
        InvalidConfigError: one is missing.
    """
    try:
        if config.tensorboard:
            import_module("torch.utils.tensorboard")
        if config.wandb:
            import_module("wandb")
    except ImportError as error:
        raise InvalidConfigError(f"{error}. Install it: pip install 'iwm[train]', or wandb.") from error


def make_trackers(config: RunConfig, out: Path, done: int = 0) -> list[Tracker]:
    """Those that the configuration asks for, of a run that goes on after so many steps."""
    trackers: list[Tracker] = []
    if config.tensorboard:
        trackers.append(_TensorBoard(out, done))
    if config.wandb:
        trackers.append(_WandB(config.wandb, out))
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
    """Events in `tensorboard/` of the run folder; those after `done` steps no longer count."""

    def __init__(self, out: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = out / "tensorboard"
        with self._writing():
            self.writer: Any = SummaryWriter(str(self.folder), purge_step=done + 1)

    def log(self, record: dict[str, Any]) -> None:
        with self._writing():
            for name, value in record.items():
                if name != "step":
                    self.writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        with self._writing():
            self.writer.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Another thread writes; what stops it is raised here, later."""
        try:
            yield
        except OSError as error:
            raise SaveError(f"Cannot write {self.folder}: {error}.") from error


class _WandB:
    """A run of Weights & Biases, named after the run folder, and continued with it.

    Its id is kept in the folder: two folders of the same name are two runs.
    """

    def __init__(self, project: str, out: Path) -> None:
        import wandb

        kept = out / "wandb" / "run-id.txt"
        run_id = kept.read_text(encoding="utf-8").strip() if kept.is_file() else uuid4().hex[:12]
        kept.parent.mkdir(exist_ok=True)  # Where the client puts its own files.
        try:
            self.run = wandb.init(
                project=project, name=out.absolute().name, id=run_id, dir=str(out), resume="allow"
            )
        except wandb.errors.Error as error:
            raise InvalidConfigError(
                f"Weights & Biases did not start: {quoted(error, 300).rstrip('.')}. Log in first (wandb login), or keep the curves "
                "on this machine: WANDB_MODE=offline"
            ) from error
        write_text(kept, f"{run_id}\n")

    def log(self, record: dict[str, Any]) -> None:
        self.run.log({k: v for k, v in record.items() if k != "step"}, step=record["step"])

    def close(self) -> None:
        self.run.finish()
