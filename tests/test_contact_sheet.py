"""Contact sheets: where pictures and captions stand."""

import pytest
from PIL import Image

from iwm.contact_sheet import check_sheet, save_sheet
from iwm.errors import InvalidConfigError, SaveError


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp"])
def test_pictures_stand_row_by_row(tmp_path, ending):
    colours = ["red", "lime", "blue", "cyan", "magenta", "yellow", "orange"]
    cells = [(Image.new("RGB", (300, 300), colour), f"{i}") for i, colour in enumerate(colours)]
    save_sheet([*cells, (None, "gone")], tmp_path / f"s{ending}")
    with Image.open(tmp_path / f"s{ending}") as sheet:
        assert sheet.size == (8 + 6 * 168, 8 + 2 * 190)
        for i, colour in enumerate(colours):
            middle = (8 + i % 6 * 168 + 80, 8 + i // 6 * 190 + 80)
            expected = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
            assert sheet.convert("RGB").getpixel(middle) == pytest.approx(expected, abs=6)
        assert sheet.convert("RGB").getpixel((8 + 168 + 80, 8 + 190 + 80)) == pytest.approx((221,) * 3, abs=3)
        caption = sheet.convert("L").crop((8, 168, 168, 190))
        assert caption.getextrema()[0] < 100


def test_pictures_keep_their_shape(tmp_path):
    save_sheet([(Image.new("RGB", (400, 100), "red"), "wide")], tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as sheet:
        red = [sheet.getpixel((88, y)) == (255, 0, 0) for y in range(sheet.height)]
        assert (sum(red), red.index(True)) == (40, 8 + 60)


def test_a_ribbon_keeps_a_line_of_pixels(tmp_path):
    save_sheet([(Image.new("RGB", (20_000, 40), "red"), "a")], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as sheet:
        assert (255, 0, 0) in [colour for _, colour in sheet.getcolors(1 << 20)]


def test_names_that_are_no_pictures(tmp_path):
    for name in ("s.txt", "s", "s.pdf"):
        with pytest.raises(InvalidConfigError, match=r"end its name in \.png, \.jpg or \.webp"):
            check_sheet(tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(SaveError, match="Cannot write"):
        save_sheet([(None, "")], tmp_path / "file" / "s.png")
