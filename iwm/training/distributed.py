"""Processes that train one model together, as `torchrun` starts them.

Every process holds the whole model and the whole plan (seed, order, schedules); they differ in
the rows of a step's batch they work on. Without `torchrun` there is one process and nothing here
does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from iwm.device import resolve_device


@dataclass(frozen=True)
class World:
    """The place of a process among those that train together.

    Attributes:
        device: what it computes on.
        rank: 0 to size - 1; rank 0 alone writes files and shows progress.
        size: number of processes.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds in any process; all of them must ask."""
        if self.size == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value.item())

    def total(self, count: int) -> int:
        """Sum over the processes; all of them must ask."""
        if self.size == 1:
            return count
        value = torch.tensor(count, device=self.device)
        dist.all_reduce(value, dist.ReduceOp.SUM)
        return int(value.item())

    def agree(self, value: object) -> bool:
        """Whether `value` is the same in all processes; all of them must ask."""
        if self.size == 1:
            return True
        values: list[object] = [None] * self.size
        dist.all_gather_object(values, value)
        return all(other == value for other in values)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes."""
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.SUM)
            values = values / self.size
        return values

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world that `torchrun` describes in the environment, for the duration.

    Args:
        device: `auto`, or a torch device; with CUDA each process takes the one of its local rank.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        here = resolve_device(device)
        if (
            here.type == "cuda" and here.index is not None
        ):  # Pinned memory, among others, is of the current one.
            torch.cuda.set_device(here)
        yield World(here)
        return
    if torch.cuda.is_available() and (device == "auto" or device.startswith("cuda")):
        # By its number from the first: `cuda` alone is the first GPU, on which every process would leave something.
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    here = resolve_device(device)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    # Rank 0 encodes and validates alone meanwhile, longer than the 10 or 30 minutes of the backends.
    backend = "nccl" if here.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(hours=2))
    try:
        yield World(here, dist.get_rank(), size)
    except BaseException:
        # NCCL's groups end together: the others, who wait for this process elsewhere, would keep it from
        # telling its error and from ending, at which `torchrun` ends them.
        if backend != "nccl":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()
