"""What every training run shares: data, optimiser, schedules, run folder.

Values marked in `iwm.pretraining.recipes` as the paper's, the I-JEPA lineage's or ours.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from iwm.fields import require, require_choice

Precision = Literal["float32", "bf16"]
OptimizerName = Literal["adamw", "lars"]
Schedule = Literal["cosine", "linear"]
OnUnreadable = Literal["skip", "fail"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How images are read and cropped.

    Attributes:
        crop_scale: range of the crop's share of the image area [App. A.1].
        crop_aspect: range of its width over its height.
        flip: probability of a horizontal flip.
        workers: processes that decode; 0 decodes in the training process.
        on_unreadable: `skip` names an image that cannot be read in the log and puts the next one
            in its place; `fail` ends the run.
    """

    crop_scale: tuple[float, float] = (0.3, 1.0)
    crop_aspect: tuple[float, float] = (0.75, 4.0 / 3.0)
    flip: float = 0.5
    workers: int = 1
    on_unreadable: OnUnreadable = "skip"

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        require(0 < low <= high <= 1, f"data.crop_scale is {self.crop_scale}; use 0 < low <= high <= 1.")
        low, high = self.crop_aspect
        require(0 < low <= high, f"data.crop_aspect is {self.crop_aspect}; use 0 < low <= high.")
        require(0 <= self.flip <= 1, f"data.flip is {self.flip}; it must be 0 to 1.")
        require(0 <= self.workers <= 256, f"data.workers is {self.workers}; it must be 0 to 256.")
        require_choice("data.on_unreadable", self.on_unreadable, OnUnreadable)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedules; see `iwm.training.schedules` for their form.

    Attributes:
        optimizer: `adamw`, or `lars`, momentum whose step is scaled to each matrix's norm.
        schedule: how the learning rate falls after the warmup: along a cosine, or `linear`.
        lr: peak learning rate.
        lr_start: learning rate at the first step of the warmup.
        warmup: share of the steps over which the learning rate rises.
        stretch: the fall is laid out over this many times the steps, so that training
            ends before it reaches zero [App. A.1].
        betas: AdamW's averaging coefficients.
        momentum: of LARS.
        weight_decay, weight_decay_end: cosine from one to the other; none on biases and
            other one-dimensional parameters.
        clip: bound on the gradient norm; 0 is none.
    """

    optimizer: OptimizerName = "adamw"
    schedule: Schedule = "cosine"
    lr: float = 1e-3
    lr_start: float = 2e-4
    warmup: float = 40 / 300
    stretch: float = 1.25
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    clip: float = 0.0

    def __post_init__(self) -> None:
        require_choice("optim.optimizer", self.optimizer, OptimizerName)
        require_choice("optim.schedule", self.schedule, Schedule)
        require(0 <= self.momentum < 1, f"optim.momentum is {self.momentum}; it must be 0 to 1.")
        require(0 < self.lr <= 100, f"optim.lr is {self.lr}; it must be positive, and 100 at most.")
        require(0 <= self.lr_start <= self.lr, f"optim.lr_start is {self.lr_start}; use 0 to lr.")
        require(0 <= self.warmup <= 1, f"optim.warmup is {self.warmup}; it must be 0 to 1.")
        require(self.stretch >= 1, f"optim.stretch is {self.stretch}; it must be at least 1.")
        require(all(0 <= b < 1 for b in self.betas), f"optim.betas is {self.betas}; use two of 0 to 1.")
        for name in ("weight_decay", "weight_decay_end"):
            value = getattr(self, name)
            require(value >= 0, f"optim.{name} is {value}; it must be at least 0.")
        require(self.clip >= 0, f"optim.clip is {self.clip}; it must be at least 0.")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Length, seed and bookkeeping of a run.

    Attributes:
        steps: optimiser steps.
        batch_size: images a step, over all processes.
        accumulate: pieces in which each process works through its share of a batch, which saves
            memory. Pretraining is the same but for rounding; finetuning with batch norm, drop path,
            mixing or erasing is not, as these look at, or are drawn for, one piece.
        seed: every random draw depends on it, on the epoch and on the sample alone.
        device: `auto` (CUDA where there is one), or a torch device.
        precision: `bf16` runs matrix products in bfloat16 under autocast, but on processors that
            only emulate it, which take float32.
        compile: run transformer blocks through `torch.compile`; slow to start.
        activation_checkpointing: keep only the input of every block for the backward pass, which
            runs the block again: less memory, more work.
        log_every: steps between lines of `metrics.jsonl`.
        checkpoint_every: steps between checkpoints.
        monitor_every: steps between the measurements that cost time; 0 is never.
        tensorboard: write events for TensorBoard into the run folder.
        wandb: project of Weights & Biases to log to; empty is none.
    """

    SHAPING: ClassVar[frozenset[str]] = frozenset()
    """Fields that shape this kind of run, though they do not shape every one; see `iwm.training.run_folder`."""

    steps: int = 1000
    batch_size: int = 64
    accumulate: int = 1
    seed: int = 0
    device: str = "auto"
    precision: Precision = "bf16"
    compile: bool = False
    activation_checkpointing: bool = False
    log_every: int = 50
    checkpoint_every: int = 500
    monitor_every: int = 500
    tensorboard: bool = False
    wandb: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every"):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}; it must be at least 1.")
        require(self.monitor_every >= 0, f"monitor_every is {self.monitor_every}; use 0 for never.")
        require(0 <= self.seed < 2**63, f"seed is {self.seed}; it must be 0 to 2^63 - 1.")

    def rows(self, processes: int) -> int:
        """Images that each of so many processes works on at a time.

        Raises:
            InvalidConfigError: they cannot share a batch evenly.
        """
        shares = processes * self.accumulate
        require(
            self.batch_size % shares == 0,
            f"batch_size {self.batch_size} cannot be shared evenly by {processes} processes in "
            f"{self.accumulate} pieces each; use a multiple of {shares}.",
        )
        return self.batch_size // shares
