import os
import signal
import subprocess
import sys

import pytest

from iwm.training import signals
from iwm.training.signals import SAME_SIGTERM, stop_on_signal

# A worker that is told to end, as often as is said, and says how often it was not.
WORKER = """
import os, signal, sys, time
from iwm.training import signals
signals.outlive_first_signal(0)
for number, wait in zip(sys.argv[1::2], sys.argv[2::2]):
    now = time.monotonic()
    signals.time.monotonic = lambda: now + float(wait)
    os.kill(os.getpid(), int(number))
    print("alive", flush=True)
"""


@pytest.fixture
def heard():
    """What the handler hears that was there before."""
    numbers = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


def test_a_sigterm_that_is_repeated_within_seconds_is_one(heard, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: clock[0])
    with stop_on_signal() as stopped:
        assert not stopped()
        for passed in (0.0, 0.01, SAME_SIGTERM):
            clock[0] = 100.0 + passed
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopped()
        assert heard == []
        clock[0] = 100.1 + SAME_SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGTERM] * 2


@pytest.mark.parametrize(
    ("sent", "survived"),
    [
        ([(signal.SIGTERM, 0), (signal.SIGTERM, 1), (signal.SIGTERM, 99)], 2),
        ([(signal.SIGINT, 0), (signal.SIGINT, 1)], 1),
        ([(signal.SIGINT, 0), (signal.SIGTERM, 1), (signal.SIGTERM, 2)], 3),
    ],
)
def test_workers_outlive_it_too(sent, survived):
    words = [str(word) for number, wait in sent for word in (int(number), wait)]
    child = subprocess.run(
        [sys.executable, "-c", WORKER, *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert child.stdout.count("alive") == survived, child.stderr
    assert child.returncode == (0 if survived == len(sent) else -sent[-1][0])
