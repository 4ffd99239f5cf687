"""What all pictures share: readable text, whole photographs, files that can be made again."""

import re
import zlib

import numpy as np
import pytest
from PIL import Image

from iwm.figures.picture import CURVES, MARKERS, Sheet


def sheet():
    made = Sheet(3.0, 2.0)
    pixels = np.zeros((3, 16, 16), dtype=np.float32)
    pixels[0] = np.arange(256, dtype=np.float32).reshape(16, 16) / 255
    made.photograph(0.5, 0.25, 1.0, pixels, "#00ff00")
    made.text(2.0, 1.0, "words $of$ a_b")
    return made


def test_the_page_is_as_large_as_it_says_and_its_text_is_text(tmp_path):
    sheet().save(tmp_path / "a.pdf", dpi=72)
    content = (tmp_path / "a.pdf").read_bytes()
    assert re.search(rb"/MediaBox \[ 0 0 216 144 \]", content)
    assert b"/Subtype /CIDFontType2" in content  # TrueType: what fonttype 42 is, and publishers ask for.
    assert b"/Type3" not in content


def test_photographs_keep_their_pixels(tmp_path):
    sheet().save(tmp_path / "a.pdf", dpi=72)
    content = (tmp_path / "a.pdf").read_bytes()
    assert b"/Width 16" in content
    assert b"/Height 16" in content
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, re.DOTALL)
    reds = bytes(range(256))
    unpacked = []
    for stream in streams:
        try:
            unpacked.append(zlib.decompress(stream))
        except zlib.error:
            continue
    assert any(set(reds) <= set(data) for data in unpacked)


def test_a_photograph_lies_where_it_was_put(tmp_path):
    sheet().save(tmp_path / "a.png", dpi=100)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (300, 200)
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    inside = pixels[75, 60:140]
    assert (inside[:, 1] == 0).all()
    green = np.argwhere((pixels[..., 1] > 200) & (pixels[..., 0] < 60))
    assert green.min(axis=0) == pytest.approx([25, 50], abs=2)
    assert green.max(axis=0) == pytest.approx([125, 150], abs=2)


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_the_same_numbers_give_the_same_file(tmp_path, kind):
    for name in ("a", "b"):
        sheet().save(tmp_path / f"{name}.{kind}", dpi=72)
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_curves_differ_in_more_than_colour():
    assert len(set(CURVES)) == len(set(MARKERS)) == len(CURVES) == len(MARKERS)
