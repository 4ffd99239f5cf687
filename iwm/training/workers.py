"""The processes of a `DataLoader`: they end with it, and one that is killed is said in words.

A worker is deaf to one SIGTERM (`iwm.training.signals.outlive_first_signal`), and Python waits for its
children at its end: a worker that its loader has not told to end would keep the process for ever.
"""

from __future__ import annotations

import multiprocessing.connection
import re
import traceback
from collections.abc import Collection, Generator
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader

_SIGNALLED = re.compile(r"killed by signal: ([^.]+)")
_DEATH = "DataLoader worker"
"""How the words of a `DataLoader` begin that say of a worker's end; it handles SIGCHLD, whatever is being done."""


def batches_of(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    """All batches; the loader's workers end with the last one, and with an error too.

    The frames of an error that was raised in a worker, or while workers were started, keep the loader's
    iterator, and that its workers.
    """
    others, workers = set(multiprocessing.active_children()), set[BaseProcess]()
    batches = None
    try:
        try:
            batches = iter(loader)
        finally:
            workers = set(multiprocessing.active_children()) - others
        yield from batches
    except BaseException as error:
        death = None
        try:
            if workers and isinstance(error, OSError | EOFError | RuntimeError):
                death = _death_of_one(workers)
        finally:
            del batches
            if workers:
                traceback.clear_frames(error.__traceback__)
            for worker in workers:  # Nobody tells those of an iterator that could not be made.
                worker.kill()
                worker.join()
        if death is not None and death_of_a_worker(error) is None:
            raise death from error
        raise


def _death_of_one(workers: Collection[BaseProcess]) -> RuntimeError | None:
    """What there is to say of a worker that has just ended, where a connection that it broke is seen first."""
    try:
        ended = multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=1.0)
        for worker in workers:
            if worker.sentinel in ended:
                worker.join(1.0)
    except RuntimeError as error:  # The loader has heard of it.
        return error
    code = next((worker.exitcode for worker in workers if worker.exitcode), None)
    return None if code is None else RuntimeError(f"{_DEATH} ended with status {code}")


def death_of_a_worker(error: BaseException) -> RuntimeError | None:
    """The loader's word of a worker's end in an error or in what it arose from; None is another error."""
    for found in (error, error.__context__):
        if isinstance(found, RuntimeError) and str(found).startswith(_DEATH):
            return found
    return None


def what_ended(death: RuntimeError) -> str:
    """Words for a worker's end, and what to do."""
    signalled = _SIGNALLED.search(str(death))
    return (
        f"A process that reads images was ended ({signalled[1] if signalled else str(death)}), often for want of "
        "memory. Read with fewer, --data.workers 0 for none; in a container, allow more shared memory (docker run "
        "--shm-size)."
    )
