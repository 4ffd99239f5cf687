"""The training loop: steps, schedules, logging, checkpoints, interruption and resume.

Knows nothing of what is trained: a `Task` supplies modules, a loss and what to export.
"""

from __future__ import annotations

import inspect
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from iwm.actions import SampleKey
from iwm.device import resolve_device
from iwm.errors import InvalidConfigError, SaveError, TrainingError
from iwm.fields import to_json
from iwm.training import schedules
from iwm.training.config import OptimConfig, RunConfig
from iwm.training.data import Source
from iwm.training.distributed import World
from iwm.training.execution import autocast
from iwm.training.optimizer import make_optimizer, set_schedule
from iwm.training.progress import Progress, Waits, memory_mb
from iwm.training.run_folder import RunFolder
from iwm.training.signals import stop_on_signal
from iwm.training.trackers import closing_all, make_trackers, require_packages
from iwm.training.workers import death_of_a_worker, what_ended

log = logging.getLogger(__name__)

_SINCE_2_15 = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_NO_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _SINCE_2_15 else "broadcast_buffers": False}
"""Buffers are constants, or statistics that each process has of its own rows (GPUs: of all rows)."""

_ODD = ("unreadable", "enlarged")
"""What a source counts."""


class Task(nn.Module, ABC):
    """What the loop trains; its forward pass is the loss, and every trained parameter is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.running: dict[str, float] = {}
        """Running means over the steps, which a continued run must not forget."""

    @abstractmethod
    def trained(self) -> list[nn.Module]:
        """Modules that the optimiser updates."""

    @abstractmethod
    def forward(
        self, crops: Tensor, step: int, keys: Sequence[SampleKey]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and scalars to log.

        Args:
            crops: `[B, 3, S, S]` uint8.
            step: counted over the whole run.
            keys: (epoch, index) of each sample.
        """

    @abstractmethod
    def after_step(self, step: int) -> dict[str, float]:
        """What follows an optimiser step; returns scalars to log."""

    def make_optimizer(self, config: OptimConfig) -> torch.optim.Optimizer:
        """The optimiser of what is trained; groups may carry what `set_schedule` reads."""
        return make_optimizer(self.trained(), config)

    @property
    def finished(self) -> bool:
        """Whether training may end before its last step, with nothing wrong."""
        return False

    def of_step(self, means: dict[str, float]) -> dict[str, float]:
        """Scalars of a step, from the means of what `forward` gave for its pieces."""
        return means

    def monitor(self, crops: Tensor, step: int, keys: Sequence[SampleKey]) -> dict[str, float]:
        """Scalars worth some time, asked for now and then."""
        return {}

    def sound(self, record: dict[str, float]) -> bool:
        """Whether a step's scalars, by themselves, say nothing of what `collapse` looks for."""
        return True

    def collapse(self, record: dict[str, float]) -> str | None:
        """What in a step's scalars says that going on is no use; None is nothing."""
        return None


def train(
    task: Task,
    source: Source,
    config: RunConfig,
    run: RunFolder,
    export: Callable[[int, float], None],
    world: World | None = None,
) -> bool:
    """Train until `config.steps`, or until interrupted.

    SIGINT and SIGTERM end the run after the current step, with a checkpoint; a task that has
    `finished` ends it as if it were the last step.

    Args:
        task: what to train, on its device already.
        source: where the images come from.
        config: see `RunConfig`.
        run: where metrics and state go; a state in it is continued.
        export: called with (steps done, seconds trained so far) at every checkpoint.
        world: the processes that train together; None is this one alone.

    Returns:
        Whether all is done that was to be done.

    Raises:
        TrainingError: the loss or its gradient is not finite, memory is short, or a process that
            reads images was killed; the last checkpoint is still good.
        SaveError: something cannot be written; the last checkpoint is still good.
        InvalidConfigError: the state in the folder belongs to other images, or is further on, or
            the batch cannot be shared evenly, or a package is missing, or another process trains
            into the folder.
    """
    world = world or World(resolve_device(config.device))
    config.rows(world.size)
    require_packages(config)
    with run.alone() if world.is_main else nullcontext():
        trainer = _Trainer(task, source, config, run, export, world)
        if task.finished and trainer.done < config.steps and world.is_main:
            log.warning(
                "The run ended by its patience at step %d of %d; --resume --patience 0 goes on.",
                trainer.done, config.steps,
            )  # fmt: skip
        if trainer.done == config.steps or task.finished:
            trainer.export_model()  # The last export may have been cut off.
            return True
        return _train(trainer)


def _train(trainer: _Trainer) -> bool:
    """From the step that is reached to the last, or to an interruption; whether all is done."""
    task, source, config = trainer.task, trainer.source, trainer.config
    run, world = trainer.run, trainer.world
    waits, last, due = Waits(), False, False
    trackers = make_trackers(config, run.path, trainer.done) if world.is_main else []
    with (
        trainer.telling_what_is_good(),
        closing_all(trackers),
        stop_on_signal() as stopped,
        Progress(config.steps, trainer.done, config.batch_size, shown=world.is_main) as progress,
        closing(source.batches(trainer.done, world, trainer.source_state)) as loader,
    ):
        for crops, epochs, indices in waits.over(loader):
            keys = list(zip(epochs.tolist(), indices.tolist(), strict=True))
            record = trainer.step(crops, keys)
            progress.advance(record["loss"])
            last = trainer.done == config.steps
            watched = config.monitor_every > 0 and (trainer.done % config.monitor_every == 0 or last)
            if world.is_main and watched:
                record |= task.monitor(crops.to(world.device), trainer.done, keys)
            stop = world.any(stopped())
            last = last or world.any(task.finished)
            logged = watched or trainer.done % config.log_every == 0 or last
            odd = trainer.odd_images() if logged else {}
            if world.is_main and logged:
                pace = {"images_per_second": round(progress.images_per_second, 2)}
                record |= pace | {"data_wait": waits.share()} | odd | {"memory_mb": memory_mb(world.device)}
                run.log(record)
                for tracker in trackers:
                    tracker.log(record)
            due = due or trainer.done % config.checkpoint_every == 0
            if (due and trainer.worth_keeping) or last or stop:
                trainer.checkpoint()
                due = False
            if last or stop:
                break
    odd, drawn = trainer.odd_images(), trainer.done * config.batch_size
    if odd["unreadable"] and world.is_main:
        log.warning(
            "%d of the %d images drawn could not be read, and others took their place; the log names them.",
            odd["unreadable"],
            drawn,
        )
    if odd["enlarged"] and world.is_main:
        log.warning("%d of the %d images drawn were smaller than their crops.", odd["enlarged"], drawn)
    return last


class _Trainer:
    """The state of a run: what is trained, its optimiser, steps done and time spent."""

    def __init__(
        self,
        task: Task,
        source: Source,
        config: RunConfig,
        run: RunFolder,
        export: Callable[[int, float], None],
        world: World,
    ) -> None:
        self.task = task
        self.source = source
        self.source_state: dict[str, Any] | None = None
        self.sittings: list[dict[str, Any]] = []
        self.config = config
        self.run = run
        self.export = export
        self.world = world
        self.optimizer = task.make_optimizer(config.optim)
        self.done = self.saved = 0
        self.odd_before: dict[str, int] = {}
        self.last_sound = 0
        self.saved_is_sound = True
        self.seconds = 0.0
        if run.has_state:
            self._restore(run.load_state())
        self._check_together()
        self.module: nn.Module = task
        if world.size > 1:  # Rank 0's weights go to all; gradients are averaged from here on.
            self.module = DistributedDataParallel(
                task,
                device_ids=[world.device] if world.device.type == "cuda" else None,
                **_NO_BUFFERS,
            )
        if world.is_main:
            run.start(config, self.done, self.sittings)
        self.started = time.monotonic()

    def _restore(self, state: dict[str, Any]) -> None:
        self.run.check_state(state, self.source.listing, self.config)
        self.task.load_state_dict(state["task"])
        self.task.running |= state.get("running", {})
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = self.saved = state["step"]
        self.last_sound = state.get("last_sound", self.done)
        self.saved_is_sound = self.last_sound == self.done
        self.seconds = state["seconds"]
        self.source_state = state.get("source")
        self.sittings = state.get("sittings", [])
        self.odd_before = {name: state.get(name, 0) for name in _ODD}

    def _check_together(self) -> None:
        """Refuse processes that would train different things: each has looked at its own disk."""
        settings = replace(self.config, device="", data=replace(self.config.data, workers=0))
        if not self.world.agree(to_json(settings)):
            raise InvalidConfigError("All processes that train together need the same options.")
        if not self.world.agree((self.done, self.source.listing)):
            raise InvalidConfigError(
                "--out and --data must be the same on all nodes: use storage that they share. "
                f"Process {self.world.rank} has done {self.done} steps, on {self.source.listing}."
            )

    def step(self, crops: Tensor, keys: list[SampleKey]) -> dict[str, Any]:
        """One optimiser step; returns what to log of it."""
        config, step = self.config, self.done
        lr = schedules.learning_rate(step, config.steps, config.optim)
        decay = schedules.weight_decay(step, config.steps, config.optim)
        set_schedule(self.optimizer, lr, decay)
        self.optimizer.zero_grad(set_to_none=True)
        means = self._backward(crops.to(self.world.device, non_blocking=True), step, keys)
        scalars = self.task.of_step(means)
        norm = self._clipped()
        value = scalars["loss"]
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise TrainingError(
                f"The loss is {value} and its gradient norm {norm} at step {step}. {self._good} "
                f"Try a smaller learning rate{self._slower}"
            )
        seen = scalars | {"step": step}
        collapse = self.task.collapse(seen)
        if collapse:
            raise TrainingError(f"Collapse at step {step}: {collapse}. {self._good}")
        self.optimizer.step()
        after = self.task.after_step(step)
        self.done += 1
        if self.task.sound(seen):
            self.last_sound = self.done
        return {"step": self.done, "lr": lr, "weight_decay": decay, "grad_norm": norm} | scalars | after

    def _clipped(self) -> float:
        """The norm of the gradient, which is cut to `optim.clip` where there is one."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.config.optim.clip:
            clip_grads_with_norm_(parameters, self.config.optim.clip, norm)
        return norm.item()

    @property
    def _good(self) -> str:
        if not self.run.has_state:
            return "There is no checkpoint yet."
        checkpoint = f"The checkpoint of step {self.saved} in {self.run.path}"
        if self.saved_is_sound:
            return f"{checkpoint} is good."
        last = f"the last step without signs of it was {self.last_sound}"
        return f"{checkpoint} may be collapsed already; {last if self.last_sound else 'every step had signs of it'}."

    @property
    def _slower(self) -> str:
        half = self.config.optim.lr / 2
        start = f" --optim.lr_start {half:g}" if half < self.config.optim.lr_start else ""
        from_there = " from there on: --resume" if self.run.has_state else ":"
        return f"{from_there} --optim.lr {half:g}{start}"

    @property
    def worth_keeping(self) -> bool:
        """Whether a checkpoint may take the place of the one before it.

        One of a step that may be collapsed may not, except in the warmup, where nobody knows yet.
        """
        return self.last_sound == self.done or self.done <= self.config.optim.warmup * self.config.steps

    def _backward(self, crops: Tensor, step: int, keys: list[SampleKey]) -> dict[str, float]:
        """Gradients of the whole batch's mean loss; the loss and scalars, over all processes."""
        pieces = self.config.accumulate
        rows = len(crops) // pieces
        totals: dict[str, Tensor] = {}
        for piece in range(pieces):
            part = slice(piece * rows, (piece + 1) * rows)
            # Gradients travel between processes once a step, with the last piece.
            wait = piece < pieces - 1 and isinstance(self.module, DistributedDataParallel)
            with self.module.no_sync() if wait else nullcontext():  # type: ignore[operator]
                with autocast(self.world.device, self.config.precision):
                    loss, scalars = self.module(crops[part], step, keys[part])
                (loss / pieces).backward()
            for name, value in ({"loss": loss.detach()} | scalars).items():
                totals[name] = totals.get(name, 0) + value.float() / pieces
        means = self.world.mean(torch.stack(list(totals.values())))
        return dict(zip(totals, means.tolist(), strict=True))

    def checkpoint(self) -> None:
        """Save the resumable state, then the model."""
        odd = self.odd_images()
        if not self.world.is_main:
            self._saved()
            return
        self.run.save_state(
            {
                "step": self.done,
                "seconds": self.elapsed,
                "listing": self.source.listing,
                "source": self.source.state(),
                "sittings": self.run.sittings,
                **odd,
                "running": self.task.running,
                "last_sound": self.last_sound,
                "task": self.task.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
        )
        self._saved()
        self.export_model()

    def _saved(self) -> None:
        self.saved, self.saved_is_sound = self.done, self.last_sound == self.done

    def odd_images(self) -> dict[str, int]:
        """Images drawn so far that could not be read or were small, in all sittings and processes; all must ask."""
        return {
            name: self.odd_before.get(name, 0) + self.world.total(getattr(self.source, name)) for name in _ODD
        }

    @contextmanager
    def telling_what_is_good(self) -> Iterator[None]:
        """Add to a failure to write, of memory, or of a reader, which checkpoint there is, and what to do."""
        try:
            yield
        except SaveError as error:
            raise SaveError(f"{error} {self._good} Mend that, and the same command goes on.") from error
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"{self.world.device} has not memory enough for step {self.done} ({str(error).splitlines()[0]}) "
                f"{self._good} Work through a batch in pieces, --accumulate {2 * self.config.accumulate}; keep less "
                "of it, --activation-checkpointing; or take a smaller --batch-size."
            ) from error
        except RuntimeError as error:
            death = death_of_a_worker(error)
            if death is None:
                raise
            raise TrainingError(f"{what_ended(death)} {self._good} The same command goes on.") from error

    def export_model(self) -> None:
        """Write the model as it is now."""
        if self.world.is_main:
            self.export(self.done, self.elapsed)

    @property
    def elapsed(self) -> float:
        """Seconds trained, over all sittings."""
        return self.seconds + time.monotonic() - self.started
