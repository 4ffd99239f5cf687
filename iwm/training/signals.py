"""SIGINT and SIGTERM: the first one asks for an end after the step, a second one acts at once.

Schedulers signal every process of a job, and `torchrun`, one of them, then signals its own processes
again. So a SIGTERM that follows another within seconds is the same one.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SAME_SIGTERM = 5.0
"""Seconds after a SIGTERM in which another one says nothing new."""

_ASKED = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a flag for the duration."""
    received: list[int] = []
    previous: dict[signal.Signals, Any] = {}
    try:
        for number in _ASKED:
            handler = _Once(signal.getsignal(number) or signal.SIG_DFL, received)
            signal.signal(number, handler)
            previous[number] = handler.previous
    except ValueError:
        previous.clear()  # Not the main thread: signals stay as they are.
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def outlive_first_signal(worker: int) -> None:
    """For `DataLoader(worker_init_fn=...)`: a worker ends when its training process is done with it.

    Schedulers and `torchrun` signal whole process groups. Were a worker gone at once, the checkpoint
    that its training process writes on the same signal would fail.
    """
    for number in _ASKED:
        signal.signal(number, _Once(signal.SIG_DFL, []))


class _Once:
    """A handler that notes the first signal, and lets what was there before act on the second."""

    def __init__(self, previous: Any, received: list[int]) -> None:
        self.previous = previous
        self.received = received
        self.first: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.first is None:
            self.first = time.monotonic()
            self.received.append(number)
        elif number != signal.SIGTERM or time.monotonic() - self.first > SAME_SIGTERM:
            signal.signal(number, self.previous)
            signal.raise_signal(number)
