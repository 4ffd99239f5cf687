"""Large JPEG files, decoded at a half, a quarter or an eighth of their size."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image
from smooth_pictures import smooth

from iwm.config import PreprocessConfig
from iwm.errors import InvalidImageError
from iwm.images import Preprocess, to_pil, to_tensor
from iwm.opening import open_rgb


@pytest.fixture
def preprocess():
    return Preprocess(PreprocessConfig(size=32, resize=36))


@pytest.mark.parametrize("size", [(400, 400), (401, 300), (250, 799), (64, 900), (99, 99)])
@pytest.mark.parametrize("at_least", [1, 33, 50, 100, 200, 400])
def test_a_large_jpeg_is_decoded_smaller_and_never_below_what_is_asked_for(tmp_path, size, at_least):
    smooth(*size).save(tmp_path / "a.jpg", quality=90)
    shorter = min(open_rgb(tmp_path / "a.jpg", at_least=at_least).size)
    assert shorter >= min(at_least, *size)
    # A half of it, if there were one of the four sizes left, would be too small.
    assert shorter <= -(-min(size) // 8) or shorter < 2 * at_least + 1


def save_rotated(path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    smooth(640, 480).save(path, quality=95, exif=exif)


LARGE = {
    "colour": lambda path: smooth(480, 640).save(path, quality=95),
    "gray": lambda path: smooth(480, 640).convert("L").save(path, quality=95),
    "cmyk": lambda path: smooth(480, 640).convert("CMYK").save(path, quality=95),
    "progressive": lambda path: smooth(480, 640).save(path, quality=95, progressive=True),
    "rotated": save_rotated,
}


@pytest.mark.parametrize("kind", LARGE)
def test_what_is_decoded_smaller_is_the_same_picture(tmp_path, kind):
    LARGE[kind](tmp_path / "a.jpg")
    whole, small = open_rgb(tmp_path / "a.jpg"), open_rgb(tmp_path / "a.jpg", at_least=100)
    assert (whole.size, small.size, small.mode) == ((480, 640), (120, 160), "RGB")
    expected = whole.resize((120, 160), Image.Resampling.BOX)
    assert np.abs(np.subtract(small, expected, dtype=float)).max() < 6


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp"])
def test_small_jpegs_and_other_files_are_decoded_whole(tmp_path, name):
    side = 190 if name == "a.jpg" else 800
    smooth(side + 30, side).save(tmp_path / name)
    whole, asked = (open_rgb(tmp_path / name, at_least=n) for n in (None, 100))
    assert np.array_equal(whole, asked)


@pytest.mark.parametrize("at_least", [None, 40])
def test_the_bytes_of_a_file_are_read_like_the_file(tmp_path, at_least):
    for name, save in (("a.jpg", LARGE["rotated"]), ("b.png", smooth(50, 40).save)):
        save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        assert np.array_equal(open_rgb(content, at_least), open_rgb(tmp_path / name, at_least))
        with pytest.raises(InvalidImageError, match="Cannot read picture 7 as an image"):
            open_rgb(content[:60], at_least, name="picture 7")
    for content in (b"", b"words"):
        with pytest.raises(
            InvalidImageError, match=r"^Cannot read image as an image: no format that Pillow knows$"
        ):
            open_rgb(content)


@pytest.mark.parametrize("size", [(640, 480), (480, 700)])
def test_large_jpegs_are_prepared_from_fewer_pixels_with_less_loss_than_saving_them_again(
    tmp_path, monkeypatch, preprocess, size
):
    """Four times the pixels that remain are decoded at least: 144 here, of 480."""
    noise = np.random.default_rng(0).normal(0, 8, (size[1], size[0], 3))
    picture = Image.fromarray((np.array(smooth(*size)) + noise).clip(0, 255).astype(np.uint8))
    picture.save(tmp_path / "photo.jpg", quality=90)
    decoded = []
    resize = preprocess._resize
    monkeypatch.setattr(preprocess, "_resize", lambda image: decoded.append(image.size) or resize(image))
    small = preprocess.one(tmp_path / "photo.jpg")
    whole = preprocess.one(Image.open(tmp_path / "photo.jpg"))
    assert decoded == [(size[0] // 2, size[1] // 2), size]
    again = io.BytesIO()
    to_pil(whole).save(again, "jpeg", quality=90)
    again = to_tensor(Image.open(again))
    assert (small - whole).abs().mean() < 0.2 * (again - whole).abs().mean()
