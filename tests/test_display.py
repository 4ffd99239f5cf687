"""Progress: every item passes, and only a terminal shows anything."""

import pytest

from iwm.display import track


def _generator():
    yield from range(5)


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "items", [list(range(5)), range(5), _generator()], ids=["list", "range", "generator"]
)
@pytest.mark.parametrize("total", [None, 5])
def test_items_pass_in_order_and_a_pipe_shows_nothing(capsys, items, total):
    if not isinstance(items, list | range):
        items = _generator()
    assert list(track(items, "counting", total=total)) == [0, 1, 2, 3, 4]
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar_on_standard_error(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(track([1, 2], "counting")) == [1, 2]
    printed, shown = capsys.readouterr()
    assert printed == ""
    assert "counting" in shown
    assert "100%" in shown


def test_items_are_taken_one_at_a_time(capsys):
    taken = []

    def source():
        for i in range(3):
            taken.append(i)
            yield i

    stream = track(source(), "counting", total=3)
    assert taken == []
    assert next(stream) == 0
    assert taken == [0]
    stream.close()
    assert capsys.readouterr() == ("", "")


def test_an_error_of_the_items_passes_through():
    def source():
        yield 1
        raise KeyError("broken")

    stream = track(source(), "counting")
    assert next(stream) == 1
    with pytest.raises(KeyError, match="broken"):
        next(stream)
