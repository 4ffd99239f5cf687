"""The progress line away from a terminal, the share of waiting, and memory."""

import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from iwm.training import progress
from iwm.training.progress import Progress, Waits, memory_mb


@pytest.fixture
def clock(monkeypatch):
    """Set the readings of the clock; no terminal, whatever the environment says."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")

    def set_readings(*seconds):
        readings = iter(seconds)
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(readings)))

    return set_readings


def test_last_step_prints_one_line(capsys, clock):
    clock(0.0, 2.0, 4.0)
    bar = Progress(steps=5, first_step=3, batch_size=8)
    bar.advance(1.5)
    assert capsys.readouterr() == ("", "")
    bar.advance(0.25)
    out, err = capsys.readouterr()
    assert out == ""
    assert " ".join(err.split()) == "step 5/5 loss 0.2500 4 images/s 0.0 min left"


def test_a_line_every_half_minute_with_the_time_left(capsys, clock):
    clock(0.0, 20.0, 40.0, 60.0, 80.0)
    with Progress(steps=100, first_step=0, batch_size=20) as bar:
        for _ in range(4):
            bar.advance(1.0)
    lines = capsys.readouterr().err.strip().splitlines()
    assert [re.search(r"step (\d+)/100", line)[1] for line in lines] == ["2", "4"]
    assert lines[0].rstrip().endswith("32.7 min left")


def test_speed_is_a_running_mean_of_images_a_second(clock):
    clock(0.0, 1.0, 1.5)
    bar = Progress(steps=10, first_step=0, batch_size=4)
    bar.advance(1.0)
    assert bar.images_per_second == 4.0
    bar.advance(1.0)
    assert bar.images_per_second == 0.95 * 4.0 + 0.05 * 8.0


def test_a_bar_that_is_not_shown_prints_nothing_and_measures_all_the_same(capsys, clock):
    clock(0.0, 40.0, 80.0)
    with Progress(steps=2, first_step=0, batch_size=20, shown=False) as bar:
        bar.advance(1.0)
        bar.advance(1.0)
    assert capsys.readouterr() == ("", "")
    assert bar.images_per_second == 0.5


def test_the_share_of_waiting_is_that_since_the_last_question(clock):
    # Made at 0; asked at 1, given at 4; asked at 6, given at 7; share at 8; asked at 8, the end; share at 9.
    clock(0.0, 1.0, 4.0, 6.0, 7.0, 8.0, 8.0, 9.0)
    waits = Waits()
    batches = waits.over(["a", "b"])
    assert next(batches) == "a"
    assert next(batches) == "b"
    assert waits.share() == 0.5
    assert list(batches) == []
    assert waits.share() == 0.0


def test_slow_data_are_seen_as_waiting_and_slow_training_is_not():
    def batches(seconds):
        for _ in range(3):
            time.sleep(seconds)
            yield None

    for data, training, low, high in ((0.03, 0.0, 0.8, 1.0), (0.0, 0.03, 0.0, 0.2)):
        waits = Waits()
        for _ in waits.over(batches(data)):
            time.sleep(training)
        assert low <= waits.share() <= high


def test_waiting_hands_on_errors_of_the_data():
    def broken():
        yield 1
        raise ValueError("no more")

    batches = Waits().over(broken())
    assert next(batches) == 1
    with pytest.raises(ValueError, match="no more"):
        next(batches)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_is_the_peak_of_this_process():
    measured = memory_mb(torch.device("cpu"))
    kilobytes = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    assert measured == pytest.approx(kilobytes * 1024 / 1e6, rel=0.02)
    assert measured > 100


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_on_a_gpu_is_that_of_the_gpu():
    device = torch.device("cuda")
    before = memory_mb(device)
    torch.cuda.reset_peak_memory_stats(device)
    filled = torch.zeros(50_000_000, device=device)
    assert memory_mb(device) >= filled.nbytes / 1e6
    assert before >= 0
