"""Pictures of retrievals: kinds of file, what they show, and what a failure leaves."""

import re
import sys

import numpy as np
import pytest
from PIL import Image

from iwm.actions import Action
from iwm.demo import Retrieval
from iwm.errors import InvalidConfigError, SaveError
from iwm.figures import check_picture, save_retrievals

figure_module = pytest.importorskip("matplotlib.figure")

GREEN, RED = "#0a7d33", "#b3261e"
STARTS = {"png": b"\x89PNG\r\n\x1a\n", "pdf": b"%PDF-", "svg": b"<?xml"}


def _retrieval(rank, name="darker"):
    pixels = [np.full((3, 32, 32), value, dtype=np.float32) for value in (0.1, 0.3, 0.5, 0.7, 0.9)]
    return Retrieval(
        name=name, action=Action(brightness=0.6), source=pixels[0], asked=pixels[1], found=pixels[2:],
        right=[place == rank for place in (1, 2, 3)], rank=rank, bank_size=12,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["a.png", "a.pdf", "a.svg", "a.b.PNG"])
def test_the_name_decides_the_kind_of_file(tmp_path, name):
    path = tmp_path / "new" / name
    save_retrievals([_retrieval(1)], path)
    assert path.read_bytes().startswith(STARTS[name[-3:].lower()])
    assert [left.name for left in path.parent.iterdir()] == [name]


def test_a_path_may_be_a_string(tmp_path):
    save_retrievals([_retrieval(1)], str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_picture_grows_by_a_row_an_action(tmp_path):
    sizes = []
    for rows in (1, 2, 4):
        save_retrievals([_retrieval(1)] * rows, tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as picture:
            sizes.append(picture.size)
    widths, heights = zip(*sizes, strict=True)
    assert len(set(widths)) == 1
    assert 800 < widths[0] < 1200
    assert heights[2] - heights[1] == pytest.approx(2 * (heights[1] - heights[0]), abs=2)


def test_the_panels_show_the_views(tmp_path):
    save_retrievals([_retrieval(1)], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    middle = pixels[pixels.shape[0] // 2]
    grays = [value for value in range(255) if (middle == value).sum() > 80]
    assert grays == pytest.approx([25.5, 76.5, 127.5, 178.5, 229.5], abs=1.0)
    centres = [float(np.median(np.flatnonzero(middle == value))) for value in grays]
    assert centres == sorted(centres)


@pytest.mark.parametrize(("rank", "label", "marks"), [(1, GREEN, "✓✗✗"), (3, RED, "✗✗✓"), (7, RED, "✗✗✗")])
def test_right_and_wrong_are_marked(tmp_path, rank, label, marks):
    save_retrievals([_retrieval(rank, name="one thing")], tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "<!-- one thing -->" in text
    assert "".join(re.findall(r"<!-- ([✓✗]) ", text)) == marks
    assert (GREEN in text, RED in text) == ("✓" in marks, True)
    _, _, after = text.partition(f"<!-- rank {rank} of 12 -->")
    assert f"fill: {label}" in after.partition("</g>")[0]


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.png.txt"])
def test_an_unknown_kind_of_file_is_refused(tmp_path, name):
    with pytest.raises(InvalidConfigError, match=r"end its name in \.png, \.pdf or \.svg"):
        save_retrievals([_retrieval(1)], tmp_path / name)
    with pytest.raises(InvalidConfigError, match=r"end its name in \.png, \.pdf or \.svg"):
        check_picture(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"before")

    def full_disk(self, temporary, **_):
        temporary.write_bytes(b"half a pic")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure_module.Figure, "savefig", full_disk)
    with pytest.raises(SaveError, match=r"Cannot write .*a\.png: .*No space left on device"):
        save_retrievals([_retrieval(1)], path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(SaveError, match="Cannot write"):
        save_retrievals([_retrieval(1)], tmp_path / "file" / "a.png")
    assert (tmp_path / "file").read_text() == "a file"


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    for module in ("matplotlib.backends.backend_agg", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InvalidConfigError, match=r'pip install "iwm\[demo\]"'):
        save_retrievals([_retrieval(1)], tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
