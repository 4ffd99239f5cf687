"""A loader's processes end with it whatever happens, and a killed one is said."""

import errno
import multiprocessing
import os
import signal
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from iwm.training.config import RunConfig
from iwm.training.run_folder import RunFolder
from iwm.training.signals import outlive_first_signal
from iwm.training.workers import batches_of, death_of_a_worker, what_ended

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

KILLED = "DataLoader worker (pid 7) is killed by signal: Killed. "


class Slow(Dataset):
    """Whose images take a while."""

    def __len__(self):
        return 100

    def __getitem__(self, index):
        time.sleep(0.3)
        return index


@pytest.fixture
def loader():
    return DataLoader(Slow(), num_workers=2, worker_init_fn=outlive_first_signal)


@pytest.fixture
def started():
    """Children that are there once a test has begun."""
    before = set(multiprocessing.active_children())
    return lambda: set(multiprocessing.active_children()) - before


def test_workers_end_with_the_last_batch_and_with_a_closed_generator(loader, started):
    assert len(list(batches_of(DataLoader(range(6), num_workers=2)))) == 6
    assert started() == set()
    batches = batches_of(loader)
    next(batches)
    assert len(started()) == 2
    batches.close()
    assert started() == set()


def test_an_interrupt_ends_the_workers(loader, started):
    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    batches = batches_of(loader)
    next(batches)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            list(batches)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught.value.__traceback__ is not None
    assert started() == set()


def test_where_not_all_can_be_started_none_is_left(loader, started, monkeypatch):
    fork, forks = os.fork, []

    def refuse():
        forks.append(1)
        if len(forks) > 1:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return fork()

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        list(batches_of(loader))
    assert len(forks) == 2
    assert started() == set()


class Breaking:
    """A loader whose worker ends in the midst of a batch: a connection is what breaks first."""

    def __init__(self, end):
        self.end = end

    def __iter__(self):
        multiprocessing.get_context("fork").Process(target=self._run, daemon=True).start()
        return self._batches()

    def _run(self):
        time.sleep(0.3)
        self.end()

    def _batches(self):
        raise ConnectionResetError("Connection reset by peer")
        yield


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "ended with status -9"),
        (lambda: os._exit(3), "ended with status 3"),
    ],
)
def test_a_broken_connection_is_a_workers_end(started, end, words):
    with pytest.raises(RuntimeError, match=words) as caught:
        list(batches_of(Breaking(end)))
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert death_of_a_worker(caught.value) is caught.value
    assert started() == set()


def test_a_broken_connection_may_be_just_that():
    with pytest.raises(ConnectionResetError):
        list(batches_of(Breaking(lambda: time.sleep(60))))


def test_what_is_said():
    said = what_ended(RuntimeError(KILLED))
    assert said.startswith("A process that reads images was ended (Killed), often for want of memory. ")
    assert "--data.workers 0" in said
    assert "(DataLoader worker ended with status 3)" in what_ended(
        RuntimeError("DataLoader worker ended with status 3")
    )


def test_an_end_that_is_heard_of_while_the_state_is_saved_is_no_failure_to_write(tmp_path, monkeypatch):
    def save(state, file):
        try:
            raise RuntimeError(KILLED)
        finally:  # As torch does, which closes its archive.
            raise RuntimeError("unexpected pos 64 vs 0")

    run = RunFolder(tmp_path / "run", RunConfig(), resume=False)
    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RuntimeError, match="killed by signal"):
        run.save_state({"step": 1})
    assert death_of_a_worker(ValueError(KILLED)) is None
    assert death_of_a_worker(RuntimeError("another")) is None
