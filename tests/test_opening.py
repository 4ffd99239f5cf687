"""Files of every kind become upright RGB images, and what is none is said."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from smooth_pictures import smooth

import iwm
from iwm.config import PreprocessConfig
from iwm.errors import InvalidImageError
from iwm.images import Preprocess
from iwm.opening import open_header, open_rgb, upright_size

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def preprocess():
    return Preprocess(PreprocessConfig(size=32, resize=36))


def pixel(path):
    image = open_rgb(path)
    assert image.mode == "RGB"
    return image.getpixel((image.width // 2, image.height // 2))


UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize(
    "settings", [{"suffix": ".jpg", "quality": 95, "subsampling": 0}, {"suffix": ".png"}, {"suffix": ".tif"}]
)
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path, orientation, settings):
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :16], stored[8:, :16], stored[:8, 16:] = RED, BLUE, WHITE
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = (tmp_path / "photo").with_suffix(settings["suffix"])
    Image.fromarray(stored).save(path, exif=exif, **{k: v for k, v in settings.items() if k != "suffix"})
    upright = np.array(open_rgb(path)).astype(int)
    assert np.array_equal(upright, open_rgb(open_rgb(path)))
    with Image.open(path) as opened:
        assert upright_size(opened) == upright.shape[1::-1]
        assert np.array_equal(upright, open_rgb(opened))
    expected = UPRIGHT[orientation](stored).astype(int)
    assert upright.shape == expected.shape
    assert np.abs(upright - expected).max() < 25


@pytest.mark.parametrize("mode", ["L", "CMYK", "I;16"])
def test_stored_pixels_that_could_be_mapped_are_turned_too(tmp_path, mode):
    image = smooth(20, 30).convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    elif mode != "L":
        image = image.convert("RGB").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.tif", exif=exif)
    image.save(tmp_path / "plain.tif")
    plain = np.array(open_rgb(tmp_path / "plain.tif"))
    assert np.array_equal(open_rgb(tmp_path / "turned.tif"), np.rot90(plain, -1))
    with Image.open(tmp_path / "turned.tif") as opened:
        assert np.array_equal(open_rgb(opened), np.rot90(plain, -1))
        assert opened.filename == str(tmp_path / "turned.tif")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize(
    "header", [b"Exif\0\0garbage!!!!!!", b"Exif\0\0II", b"Exif\0\0MM\0*\xff\xff\xff\xff"]
)
def test_a_header_that_is_no_exif_hides_no_photograph(tmp_path, suffix, header):
    path = tmp_path / f"odd{suffix}"
    Image.new("RGB", (40, 50), RED).save(path, exif=header)
    assert open_rgb(path).size == (40, 50)
    with open_header(path) as opened:
        assert upright_size(opened) == (40, 50)
        assert open_rgb(opened).size == (40, 50)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_reads_whatever_its_parent_was_reading(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    code = (
        "import os, sys, threading, warnings\n"
        "from iwm.opening import open_rgb\n"
        "def read():\n"
        "    while True: open_rgb(sys.argv[1])\n"
        "before = warnings.filters[:]\n"
        "threading.Thread(target=read, daemon=True).start()\n"
        "for _ in range(40):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        open_rgb(sys.argv[1])\n"
        "        os._exit(0 if warnings.filters == before else 3)\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(iwm.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def save_rgba(path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 51)).save(path)


def save_transparent_palette(path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([*RED, *BLUE])
    image.save(path, transparency=bytes([255, 0]))


def save_opaque_palette(path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([*RED, *BLUE])
    image.save(path)


def save_16_bit(path):
    Image.fromarray(np.full((8, 8), 0x4000, np.uint16)).save(path)


SAVED = {
    "rgb.png": (lambda p: Image.new("RGB", (8, 8), (1, 2, 3)).save(p), (1, 2, 3)),
    "alpha.png": (save_rgba, (255, 204, 204)),
    "alpha.webp": (lambda p: Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(p, lossless=True), WHITE),
    "palette.png": (save_opaque_palette, BLUE),
    "palette-alpha.png": (save_transparent_palette, WHITE),
    "palette-alpha.gif": (lambda p: Image.new("P", (8, 8), 0).save(p, transparency=0), WHITE),
    "gray.png": (lambda p: Image.new("L", (8, 8), 77).save(p), (77, 77, 77)),
    "gray-alpha.png": (lambda p: Image.new("LA", (8, 8), (0, 51)).save(p), (204, 204, 204)),
    "gray-key.png": (lambda p: Image.new("L", (8, 8), 9).save(p, transparency=9), WHITE),
    "bilevel.png": (lambda p: Image.new("1", (8, 8), 1).save(p), WHITE),
    "cmyk.jpg": (lambda p: Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(p, quality=100), RED),
    "16-bit.png": (save_16_bit, (64, 64, 64)),
    "float.tiff": (lambda p: Image.new("F", (8, 8), 0.2).save(p), (51, 51, 51)),
}


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("as_text", [True, False])
def test_files_become_rgb(tmp_path, name, as_text):
    save, expected = SAVED[name]
    path = tmp_path / name
    save(path)
    assert np.abs(np.subtract(pixel(str(path) if as_text else path), expected)).max() <= 2


def test_a_program_is_no_photograph(tmp_path):
    """Pillow would hand PostScript to an interpreter, which may never end."""
    (tmp_path / "a.eps").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n"
    )
    with pytest.raises(InvalidImageError, match="is PostScript, a program; save it as PNG first"):
        open_rgb(tmp_path / "a.eps")


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_deep_images_span_65535(dtype):
    values = np.array([[0, 257, 32896, 51529, 65535]]).astype(dtype)
    assert np.array(open_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 1, 128, 201, 255]


def test_a_transparent_value_of_a_deep_png_is_white(tmp_path):
    values = np.array([[1000, 1001, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "plain.png")
    data = (tmp_path / "plain.png").read_bytes()
    chunk = b"tRNS" + (1000).to_bytes(2, "big")
    at = data.index(b"IDAT") - 4
    extra = (2).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    (tmp_path / "clear.png").write_bytes(data[:at] + extra + data[at:])
    assert np.array(open_rgb(tmp_path / "plain.png"))[0, :, 0].tolist() == [4, 4, 255]
    assert np.array(open_rgb(tmp_path / "clear.png"))[0, :, 0].tolist() == [255, 4, 255]


@pytest.mark.parametrize(
    "values", [[[-1, 5]], [[0, 65536]], [[0.0, 1.5]], [[-0.1, 0.5]], [[0.0, float("nan")]]]
)
def test_deep_images_out_of_range(values):
    array = np.array(values)
    image = Image.fromarray(array.astype("int32" if array.dtype.kind == "i" else "float32"))
    with pytest.raises(InvalidImageError, match="outside 0 to"):
        open_rgb(image)


@pytest.mark.parametrize("channels", [1, 3, 4, None])
def test_arrays(channels):
    shape = (6, 5) if channels is None else (6, 5, channels)
    array = np.full(shape, 100, np.uint8)
    if channels == 4:
        array[..., 3] = 255
    image = open_rgb(array)
    assert image.size == (5, 6)
    assert (np.array(image) == 100).all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3)), "expected uint8"),
        (np.zeros((4, 4), np.uint16), "expected uint8"),
        (np.zeros((3, 8, 8), np.uint8), "expected height x width x 3"),
        (np.zeros((1, 4, 4, 3), np.uint8), "expected height x width x 3"),
        (np.zeros(4, np.uint8), "expected height x width x 3"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
    ],
)
def test_bad_arrays(preprocess, array, message):
    with pytest.raises(InvalidImageError, match=message):
        preprocess(array)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".webp", ".bmp"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5])
def test_truncated_files(tmp_path, preprocess, suffix, kept):
    path = tmp_path / f"broken{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(InvalidImageError, match=f"broken{suffix}"):
        preprocess(path)


def test_truncated_file_opened_by_the_caller(tmp_path, preprocess):
    path = tmp_path / "broken.jpg"
    smooth(64, 64).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    with Image.open(path) as opened, pytest.raises(InvalidImageError, match="truncated"):
        preprocess(opened)


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere.jpg", "No such image file: .*nowhere.jpg"), ("notes.jpg", "Cannot read .*notes.jpg"),
     ("folder", "folder is a folder; pass the image files"), ("nul\0byte", "Cannot read")],
)  # fmt: skip
def test_no_image_file(tmp_path, preprocess, name, message):
    (tmp_path / "notes.jpg").write_text("not a picture\n" * 100)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidImageError, match=message):
        preprocess([Image.new("RGB", (40, 40)), f"{tmp_path}/{name}"])


@pytest.mark.parametrize("side", [12, 20])
def test_decompression_bombs(tmp_path, monkeypatch, side):
    path = tmp_path / "huge.png"
    Image.new("RGB", (side, side)).save(path)
    open_rgb(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InvalidImageError, match="more than 100 pixels"):
        open_rgb(path)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation_is_honoured_where_other_fields_are_malformed(tmp_path, orientation):
    image = Image.new("RGB", (40, 20), "white")
    image.paste("black", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(tmp_path / "plain.jpg", exif=exif, quality=95)
    expected = open_rgb(tmp_path / "plain.jpg")
    data = (tmp_path / "plain.jpg").read_bytes()
    # A ResolutionUnit (0x0128) of ASCII type, as broken writers leave it.
    exif[ExifTags.Base.ResolutionUnit] = 2
    image.save(tmp_path / "odd.jpg", exif=exif, quality=95)
    odd = (tmp_path / "odd.jpg").read_bytes()
    entry = next(e for e in (b"\x01\x28\x00\x03", b"\x28\x01\x03\x00") if e in odd)
    ascii_entry = entry.replace(b"\x03", b"\x02")
    (tmp_path / "odd.jpg").write_bytes(odd.replace(entry, ascii_entry))
    assert data != odd
    assert open_rgb(tmp_path / "odd.jpg").size == expected.size
    assert np.array_equal(np.array(open_rgb(tmp_path / "odd.jpg")), np.array(expected))
