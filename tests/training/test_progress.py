"""The progress line away from a terminal."""

import re
from types import SimpleNamespace

import pytest

from iwm.training import progress
from iwm.training.progress import Progress


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
