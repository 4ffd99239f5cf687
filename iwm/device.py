"""From a device's name to a device that works."""

import contextlib
import os
import platform

import torch

from iwm.errors import InvalidConfigError


def resolve_device(name: str | torch.device) -> torch.device:
    """A `torch.device`; `auto` is CUDA where there is one, else the CPU.

    Raises:
        InvalidConfigError: not a device, or one that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        if device.type == "meta":
            raise RuntimeError("it holds no values")
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InvalidConfigError(f'Cannot use device "{name}"; try "cpu" or "auto". ({reason}.)') from error
    return device


def planned_device(name: str) -> tuple[torch.device, bool]:
    """The device of a run that is only planned, and whether this machine has it.

    Raises:
        InvalidConfigError: not a device; of those that are not here, only CUDA's are known.
    """
    if name.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):
            return torch.device(name), False
    return resolve_device(name), True


def usable_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(device: torch.device) -> str:
    """A device in words, for the records of a run."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU {'thread' if threads == 1 else 'threads'}, {platform.machine()}"
