"""The training loop: steps, schedules, logging, checkpoints, interruption and resume.

Knows nothing of what is trained: a `Task` supplies modules, a loss and what to export.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from iwm.actions import SampleKey
from iwm.device import resolve_device
from iwm.errors import IWMError
from iwm.training import schedules
from iwm.training.config import RunConfig
from iwm.training.data import make_loader
from iwm.training.optimizer import adamw, set_schedule
from iwm.training.progress import Progress
from iwm.training.run_folder import RunFolder

log = logging.getLogger(__name__)


class TrainingError(IWMError, RuntimeError):
    """Training cannot go on: the loss is no longer a number."""


class Task(Protocol):
    """What the loop trains."""

    def trained(self) -> list[nn.Module]:
        """Modules that the optimiser updates."""

    def loss(self, crops: Tensor, step: int, keys: Sequence[SampleKey]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and scalars to log."""

    def after_step(self, step: int) -> dict[str, float]:
        """What follows an optimiser step; returns scalars to log."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors to resume from."""

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Restore them."""


def train(
    task: Task,
    paths: list[Path],
    size: int,
    config: RunConfig,
    run: RunFolder,
    export: Callable[[int, float], None],
) -> bool:
    """Train until `config.steps`, or until interrupted.

    SIGINT and SIGTERM end the run after the current step, with a checkpoint.

    Args:
        task: what to train, on its device already.
        paths: image files.
        size: side of the crops in pixels.
        config: see `RunConfig`.
        run: where metrics and state go; a state in it is continued.
        export: called with (steps done, seconds trained so far) at every checkpoint.

    Returns:
        Whether all steps are done.

    Raises:
        TrainingError: the loss is not finite; the last checkpoint is still good.
    """
    device = resolve_device(config.device)
    optimizer = adamw(task.trained(), config.optim)
    first_step, seconds = 0, 0.0
    if run.has_state:
        state = run.load_state()
        task.load_state_dict(state["task"])
        optimizer.load_state_dict(state["optimizer"])
        first_step, seconds = state["step"], state["seconds"]
    run.forget_metrics_from(first_step)
    started = time.monotonic()

    def checkpoint(done: int) -> None:
        elapsed = seconds + time.monotonic() - started
        run.save_state(
            {"step": done, "seconds": elapsed, "task": task.state_dict(), "optimizer": optimizer.state_dict()}
        )
        export(done, elapsed)

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    bf16 = config.precision == "bf16"
    loader = make_loader(paths, size, config, first_step)
    saved = first_step
    with _stop_on_signal() as stopped, Progress(config.steps, first_step, config.batch_size) as progress:
        for step, (crops, epochs, indices) in enumerate(loader, start=first_step):
            lr = schedules.learning_rate(step, config.steps, config.optim)
            decay = schedules.weight_decay(step, config.steps, config.optim)
            set_schedule(optimizer, lr, decay)
            keys = list(zip(epochs.tolist(), indices.tolist(), strict=True))
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss, scalars = task.loss(crops.to(device, non_blocking=True), step, keys)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.optim.clip or math.inf).item()
            value = loss.item()
            if not (math.isfinite(value) and math.isfinite(norm)):
                raise TrainingError(
                    f"The loss is {value} and its gradient norm {norm} at step {step}. "
                    f"{_good_checkpoint(run, saved)} Try a smaller optim.lr."
                )
            optimizer.step()
            after = task.after_step(step)
            done = step + 1
            progress.advance(value)
            if done % config.log_every == 0 or done == config.steps:
                record = {
                    "step": done,
                    "loss": value,
                    "lr": lr,
                    "weight_decay": decay,
                    "grad_norm": norm,
                }
                record |= {k: v.item() for k, v in scalars.items()} | after
                run.log(record | {"images_per_second": round(progress.images_per_second, 2)})
            if done % config.checkpoint_every == 0 or done == config.steps or stopped():
                checkpoint(done)
                saved = done
            if stopped():
                return done == config.steps
    return True


def prefer_plain_attention(module: nn.Module) -> None:
    """On a CPU, attention over a few hundred tokens trains faster as plain matrix products.

    Measured on two cores at 64 tokens: 1.5 times the images a second of the fused kernel, whose
    backward pass is the slow part.
    """
    for part in module.modules():
        if isinstance(part, Attention):
            part.fused_attn = False  # type: ignore[misc]


def _good_checkpoint(run: RunFolder, saved: int) -> str:
    return (
        f"The checkpoint of step {saved} in {run.path} is good."
        if run.has_state
        else "There is no checkpoint yet."
    )


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a flag for the duration; a second one acts at once."""
    received: list[int] = []
    previous: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, previous[signal.Signals(number)])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:
        previous.clear()  # Not the main thread: signals stay as they are.
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
