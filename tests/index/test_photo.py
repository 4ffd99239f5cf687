"""One photograph: hash, sizes, capture time and pixels from the same bytes; every kind of bad file."""

import io
import struct
import zlib
from datetime import datetime

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, PngImagePlugin, features

from iwm.errors import InvalidImageError
from iwm.index import photo
from iwm.index.photo import content_hash, read_bytes, read_photo
from iwm.index.walk import Found


def image_bytes(kind="JPEG", size=(50, 40), mode="RGB", exif=None, **settings):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    if exif is not None:
        settings["exif"] = exif
    Image.fromarray(pixels).convert(mode).save(stream, kind, **settings)
    return stream.getvalue()


def read(model, data, name="/photos/a.jpg"):
    return read_photo(Found(name, len(data), 1), data, model.preprocess)


def test_pixels_are_those_that_encode_reads(model, tmp_path):
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    assert torch.equal(read(model, image_bytes()).pixels, model.preprocess.one(tmp_path / "a.jpg"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_capture_time_and_upright_size(model, kind):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2024:05:17 18:30:05"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeDigitized] = "2025:01:01 00:00:00"
    found = read(model, image_bytes(kind, exif=exif.tobytes()))
    assert found.taken == datetime(2024, 5, 17, 18, 30, 5)
    assert (found.width, found.height) == (40, 50)
    assert found.remark == ""


@pytest.mark.parametrize("words", ["0000:00:00 00:00:00", "yesterday", "   ", "2024:13:45 99:00:00"])
def test_malformed_times_count_as_absent(model, words):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = words
    assert read(model, image_bytes(exif=exif)).taken is None


def test_broken_exif_does_not_hide_a_photograph(model):
    exif = image_bytes(exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert (read(model, exif).taken, read(model, exif).width) == (None, 50)


def deep_png():
    """16 bits a number in colour: Pillow gives 8 of them, and mode RGB."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 50, 40, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(range(240)) + bytes(60) for _ in range(40)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def deep_tiff():
    """The same in TIFF: the bits of each number are in tag 258, behind the pixels."""
    pixels = bytes(50 * 40 * 6)
    bits = 8 + len(pixels)
    tags = [
        (256, 3, 1, 50), (257, 3, 1, 40), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, 40), (279, 4, 1, len(pixels)),
    ]  # fmt: skip
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, bits + 6) + pixels + struct.pack("<3H", 16, 16, 16) + table


def two(kind):
    """A file of two pictures."""
    return image_bytes(kind, save_all=True, append_images=[Image.new("RGB", (50, 40))])


@pytest.mark.parametrize(
    ("data", "remark"),
    [
        (two("GIF"), "animated; its first frame"),
        (two("WEBP"), "animated; its first frame"),
        (two("PNG"), "animated; its first frame"),
        (two("MPO"), ""),
        (two("TIFF"), "further pictures in the file are left out"),
        (image_bytes("TIFF"), ""),
        (image_bytes("TIFF", mode="1"), ""),
        (deep_png(), "more than 8 bits a pixel"),
        (deep_tiff(), "more than 8 bits a pixel"),
        (image_bytes("JPEG", mode="CMYK"), "CMYK; converted to RGB"),
        (image_bytes("PNG", mode="I;16"), "more than 8 bits a pixel"),
        (image_bytes("PNG", mode="P"), ""),
        (image_bytes("PNG", mode="LA"), ""),
        (image_bytes("BMP"), ""),
    ],
    ids=["gif", "webp", "apng", "mpo", "tiff pages", "tiff", "tiff of 1 bit", "deep png", "deep tiff", "cmyk", "16 bits", "palette", "alpha", "bmp"],
)  # fmt: skip
def test_what_is_read_with_a_loss_says_so(model, data, remark):
    found = read(model, data)
    assert found.remark.startswith(remark)
    assert bool(found.remark) == bool(remark)
    assert found.pixels.shape == (3, 32, 32)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (image_bytes()[:600], "a.jpg", "Cannot read /p/a.jpg as an image"),
        (image_bytes("PNG")[:300], "a.png", "Cannot read /p/a.png as an image"),
        (b"not an image", "a.jpg", "Cannot read /p/a.jpg as an image: its format is not known"),
        (
            HEIC,
            "a.HEIC",
            r"/p/a.HEIC: no decoder for this format is installed; convert it to JPEG.*pillow-heif",
        ),
    ],
    ids=["truncated jpeg", "truncated png", "text", "heic"],
)
def test_what_cannot_be_read_says_why(model, data, name, message):
    with pytest.raises(InvalidImageError, match=message):
        read(model, data, f"/p/{name}")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_a_damaged_file_is_not_blamed_on_a_missing_decoder(model):
    with pytest.raises(InvalidImageError, match=r"Cannot read /p/a\.avif as an image") as caught:
        read(model, image_bytes("AVIF")[:40], "/p/a.avif")
    assert "decoder" not in str(caught.value)


def test_a_picture_of_too_many_pixels(model, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InvalidImageError, match="more than 1,000 pixels"):
        read(model, image_bytes())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InvalidImageError, match=r"/photos/a\.jpg"):
        read(model, image_bytes())


def test_a_picture_of_too_many_pixels_is_not_decoded_to_find_that_out(model, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(InvalidImageError, match="more than 1,000 pixels"):
        read(model, image_bytes("PNG"))


def test_bytes_that_cannot_be_had(tmp_path, monkeypatch):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(InvalidImageError, match=r"empty.jpg is empty: zero bytes"):
        read_bytes(Found(str(tmp_path / "empty.jpg"), 0, 1))
    with pytest.raises(InvalidImageError, match=r"Cannot read .*gone.jpg: No such file"):
        read_bytes(Found(str(tmp_path / "gone.jpg"), 5, 1))
    (tmp_path / "large.jpg").write_bytes(b"x" * 20)
    monkeypatch.setattr(photo, "LARGEST", 10)
    with pytest.raises(InvalidImageError, match=r"has 20 bytes, more than 10"):
        read_bytes(Found(str(tmp_path / "large.jpg"), 20, 1))


def test_the_hash_is_of_the_bytes():
    assert content_hash(b"") == "cae66941d9efbd404e4d88758ea67670"
    assert content_hash(b"a") != content_hash(b"b")


def test_an_address_is_read_like_a_file(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"abc")
    assert read_bytes(Found(f"file://{tmp_path}/a.jpg", 3, 1)) == b"abc"
    with pytest.raises(InvalidImageError, match="Cannot read file://"):
        read_bytes(Found(f"file://{tmp_path}/b.jpg", 3, 1))
