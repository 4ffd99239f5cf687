"""Everything a user may pass as an image, and the way to the model's input."""

import hashlib
import io
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import ExifTags, Image
from smooth_pictures import smooth

import iwm
from iwm.config import PreprocessConfig
from iwm.device import usable_cpus
from iwm.errors import InvalidDataError, InvalidImageError
from iwm.images import (
    Preprocess,
    batched,
    count,
    file_list_hash,
    iterate,
    list_images,
    open_header,
    open_rgb,
    spread,
    to_pil,
    to_tensor,
    upright_size,
)
from iwm.index.encoding import Job, read_jobs
from iwm.index.walk import Found

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
        "from iwm.images import open_rgb\n"
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


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.rand(1, 32, 32), "shape"),
        (torch.rand(32, 32, 3), "shape"),
        (torch.rand(32, 32), "shape"),
        (torch.rand(2, 4, 32, 32), "shape"),
        (torch.rand(1, 2, 3, 32, 32), "shape"),
        (torch.rand(3, 0, 32), "shape"),
        (torch.zeros(3, 32, 32, dtype=torch.long), r"torch\.int64"),
        (torch.zeros(3, 32, 32, dtype=torch.bool), r"torch\.bool"),
        (torch.full((3, 32, 32), 200.0), "Divide by 255"),
        (torch.full((3, 32, 32), -0.01), r"Write tensor\.clamp\(0, 1\)"),
        (torch.full((3, 32, 32), 1.01), r"Write tensor\.clamp\(0, 1\)"),
        (torch.linspace(-2, 2, 3 * 32 * 32).view(3, 32, 32), "Do not normalise"),
        (torch.full((3, 32, 32), torch.nan), "It must be finite"),
        (torch.rand(3, 32, 32).index_fill(2, torch.tensor([5]), float("nan")), "nan"),
        (torch.rand(3, 50, 50).index_fill(2, torch.tensor([5]), float("inf")), "inf"),
    ],
)
def test_bad_tensors(preprocess, tensor, message):
    with pytest.raises(InvalidImageError, match=message):
        preprocess(tensor)


def test_eight_bits_in_a_deep_mode_are_not_taken_for_black(preprocess):
    with pytest.raises(
        InvalidImageError, match=r'none above 200: if they go to 255, write image\.convert\("L"\)'
    ):
        preprocess(Image.new("L", (32, 32), 200).convert("I"))
    assert preprocess(Image.new("I", (32, 32), 0)).max() == 0


@pytest.mark.parametrize("images", [None, 3, object(), [None], b"abc", [[Image.new("RGB", (4, 4))]]])
def test_no_images_at_all(preprocess, images):
    with pytest.raises(InvalidImageError, match="expected a path"):
        preprocess(images)


@pytest.mark.parametrize("images", [[], (), iter([]), torch.rand(0, 3, 32, 32)])
def test_nothing_given(preprocess, images):
    with pytest.raises(InvalidImageError, match="No images were given"):
        preprocess(images)


class Wrapper:
    """An open file that is no `io.IOBase`, as temporary files and uploads are."""

    def __init__(self, path):
        self.file = io.BytesIO(path.read_bytes())

    def read(self, size=-1):
        return self.file.read(size)

    def __iter__(self):
        return iter(self.file)


@pytest.mark.parametrize(
    "opened",
    [lambda p: p.read_bytes(), lambda p: io.BytesIO(p.read_bytes()), Wrapper],
    ids=["bytes", "file", "wrapper"],
)
def test_what_is_not_opened_yet_is_said(tmp_path, preprocess, opened):
    smooth(40, 40).save(tmp_path / "photo.png")
    with pytest.raises(InvalidImageError, match=r"Cannot read a \w+ as .* Open it: PIL\.Image\.open"):
        preprocess(opened(tmp_path / "photo.png"))
    with pytest.raises(InvalidImageError, match=r"^Image 1 of the list: Cannot read a \w+ as .* Open it"):
        preprocess([tmp_path / "photo.png", opened(tmp_path / "photo.png")])
    assert count(opened(tmp_path / "photo.png")) is None


def test_an_image_of_a_list_is_named_by_its_number_or_path(tmp_path, preprocess):
    good, bad = smooth(40, 40), torch.full((3, 40, 40), 7.0)
    with pytest.raises(
        InvalidImageError, match=r"^Image 2 of the list: Float tensor with values from 7 to 7"
    ):
        preprocess([good, good, bad])
    with pytest.raises(InvalidImageError, match=r"^Image 66 of the list: Float tensor"):
        preprocess([good, good, bad], first=64)
    with pytest.raises(InvalidImageError, match=r"^Float tensor"):
        preprocess(bad)
    with pytest.raises(InvalidImageError, match=r"^No such image file: .*gone\.jpg$"):
        preprocess([good, tmp_path / "gone.jpg"])


def test_tensors_of_the_exact_size_are_named_and_mixed_like_others(preprocess):
    good, bad = torch.rand(3, 32, 32), torch.full((3, 32, 32), 7.0)
    with pytest.raises(
        InvalidImageError, match=r"^Image 1 of the list: Float tensor with values from 7 to 7"
    ):
        preprocess([good, bad])
    with pytest.raises(InvalidImageError, match=r"^Image 1 of the list: A batch of shape \[1, 3, 32, 32\]"):
        preprocess([good, good[None]])
    eighths = (good * 255).round().to(torch.uint8)
    mixed = preprocess([good, eighths])
    assert torch.equal(mixed[0], good)
    assert torch.equal(mixed[1], eighths / 255.0)


@pytest.mark.parametrize(
    ("most", "expected"), [(1, [0]), (3, [0, 3, 6]), (9, list(range(9))), (99, list(range(10)))]
)
def test_some_are_spread_evenly(most, expected):
    assert spread(range(10), most) == expected
    assert spread([], most) == []


def test_exact_size_tensors_pass_untouched(preprocess):
    image = torch.rand(3, 32, 32)
    assert torch.equal(preprocess(image), image[None])
    assert torch.equal(preprocess(image.double()), image.double().float()[None])
    levels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    assert torch.equal(preprocess(levels), levels[None] / 255)
    batch = torch.rand(4, 3, 32, 32)
    assert torch.equal(preprocess(batch), batch)
    assert torch.equal(preprocess(list(batch)), batch)


@pytest.mark.parametrize(("width", "height"), [(72, 54), (40, 90), (36, 36), (20, 20), (64, 32), (32, 32)])
def test_resize_and_crop_match_torchvision(preprocess, width, height):
    image = smooth(width, height)
    resized = tv.resize(image, [36], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
    expected = tv.to_dtype(tv.pil_to_tensor(tv.center_crop(resized, [32])), torch.float32, scale=True)
    torch.testing.assert_close(preprocess(image)[0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(preprocess(np.array(image))[0], expected, atol=1e-6, rtol=0)

    pixels = to_tensor(image)
    resized = tv.resize(pixels, [36], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
    exact = pixels if (width, height) == (32, 32) else tv.center_crop(resized, [32]).clamp(0, 1)
    torch.testing.assert_close(preprocess(pixels)[0], exact, atol=1e-5, rtol=0)
    if (width, height) != (32, 32):
        torch.testing.assert_close(exact, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize(("width", "height"), [(37, 500), (501, 33), (7, 5)])
def test_any_shape_fills_the_input(preprocess, width, height):
    image = smooth(width, height)
    for kind in (image, to_tensor(image)):
        out = preprocess(kind)
        assert out.shape == (1, 3, 32, 32)
        assert 0 <= out.min() < out.max() <= 1
    middle = to_tensor(image)[:, height // 2, width // 2]
    torch.testing.assert_close(preprocess(image)[0, :, 16, 16], middle, atol=0.15, rtol=0)


def test_mixed_lists_keep_their_order(tmp_path, preprocess):
    path = tmp_path / "a.png"
    Image.new("RGB", (50, 40), RED).save(path)
    items = [
        path,
        Image.new("L", (33, 64), 51),
        np.full((40, 40, 3), 102, np.uint8),
        torch.full((3, 45, 38), 0.6),
    ]
    expected = [
        to_tensor(Image.new("RGB", (32, 32), RED)),
        *(torch.full((3, 32, 32), v) for v in (0.2, 0.4, 0.6)),
    ]
    for images in (items, tuple(items), iter(items), (i for i in items)):
        torch.testing.assert_close(preprocess(images), torch.stack(expected), atol=1e-6, rtol=0)


def test_files_are_read_by_several_threads_and_come_in_order(tmp_path, preprocess):
    paths = [tmp_path / f"{i:02}.png" for i in range(40)]
    for i, path in enumerate(paths):
        Image.new("RGB", (40 + i, 33), (i, 2 * i, 5 * i)).save(path)
    threads = set()

    class Watched(Preprocess):
        def one(self, image, name="image"):
            threads.add(threading.get_ident())
            return super().one(image, name)

    assert torch.equal(Watched(preprocess.config)(paths), torch.cat([preprocess(path) for path in paths]))
    assert (threading.get_ident() in threads) == (usable_cpus() == 1)
    for broken in (7, 3):
        paths[broken].write_text("no image")
    with pytest.raises(InvalidImageError, match=r"03\.png"):
        preprocess(paths)


def test_reading_in_threads_leaves_the_filters_of_warnings(tmp_path, preprocess):
    paths = [tmp_path / f"{i}.png" for i in range(32)]
    for path in paths:
        Image.new("RGB", (40, 40)).save(path)
    before = list(warnings.filters)
    preprocess(paths * 8)
    jobs = [Job(Found(str(path), path.stat().st_size, 1)) for path in paths]
    assert len(read_jobs(jobs * 8, preprocess).photos) == 8 * len(paths)
    assert warnings.filters == before


def test_an_open_image_may_be_several_of_a_list(tmp_path, preprocess):
    """Pillow reads it at first use, which two threads may not do at once."""
    smooth(500, 400).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as opened:
        pixels = preprocess([opened] * 8)
    assert all(torch.equal(one, pixels[0]) for one in pixels)


def test_inputs_are_not_changed(preprocess):
    picture, array, tensor = smooth(50, 40), np.array(smooth(50, 40)), torch.rand(3, 32, 32)
    kept = picture.copy(), array.copy(), tensor.clone()
    preprocess(picture).zero_()
    preprocess(array).zero_()
    preprocess(tensor).zero_()
    assert picture == kept[0]
    assert np.array_equal(array, kept[1])
    assert torch.equal(tensor, kept[2])


def test_iterate_reads_nothing_ahead(tmp_path):
    stream = iterate(f"{tmp_path}/{i}.jpg" for i in range(3))
    assert next(stream) == f"{tmp_path}/0.jpg"
    assert list(stream) == [f"{tmp_path}/1.jpg", f"{tmp_path}/2.jpg"]
    picture = Image.new("RGB", (4, 4))
    for single in ("a.jpg", tmp_path, picture, np.zeros((4, 4, 3), np.uint8), torch.rand(3, 4, 4)):
        assert [one is single for one in iterate(single)] == [True]
    assert [tuple(one.shape) for one in iterate(torch.rand(2, 3, 4, 4))] == [(3, 4, 4)] * 2


def test_batched_is_lazy_and_complete():
    seen = []
    stream = batched((seen.append(i) or i for i in range(5)), 2)
    assert next(stream) == [0, 1]
    assert seen == [0, 1]
    assert list(stream) == [[2, 3], [4]]
    assert list(batched(iter(range(4)), 2)) == [[0, 1], [2, 3]]
    with pytest.raises(InvalidImageError, match="No images were given"):
        list(batched([], 2))
    with pytest.raises(ValueError, match="batch_size is 0"):
        list(batched([1], 0))


def test_list_images(tmp_path):
    wanted = ["a/b/two.PNG", "a/one.jpg", "z.webp"]
    for name in [*wanted, "a/notes.txt", "a/b/c.jpg/inside.tiff"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = sorted([*wanted, "a/b/c.jpg/inside.tiff"])
    assert [str(p.relative_to(tmp_path)) for p in list_images(tmp_path)] == found
    (tmp_path / "empty").mkdir()
    for folders, message in [
        ("empty", "No images in .*empty; looked for .*\\.jpg"),
        ("gone", "No such folder: .*gone"),
    ]:
        with pytest.raises(InvalidDataError, match=message):
            list_images(tmp_path / folders)


def test_every_level_survives_the_round_trip():
    levels = torch.arange(256).repeat(3).view(3, 16, 16)
    array = levels.permute(1, 2, 0).to(torch.uint8).numpy()
    tensor = to_tensor(Image.fromarray(array))
    torch.testing.assert_close(tensor, levels / 255, atol=1e-7, rtol=0)
    assert np.array_equal(np.array(to_pil(tensor)), array)
    assert np.array_equal(np.array(to_pil(torch.tensor([-0.1, 1.1, 0.5]).view(3, 1, 1)))[0, 0], [0, 255, 128])


def test_file_list_hash_is_that_of_the_sorted_names(tmp_path):
    files = [tmp_path / "b.jpg", tmp_path / "a" / "c.jpg"]
    expected = hashlib.sha256(b"a/c.jpg\nb.jpg\n").hexdigest()
    assert file_list_hash(tmp_path, files) == file_list_hash(tmp_path, files[::-1]) == expected


def test_hidden_files_and_folders_are_left_out(tmp_path):
    for name in ("a.jpg", "._a.jpg", ".thumbs/b.jpg", "sub/.c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(tmp_path) == [tmp_path / "a.jpg"]
    inside = tmp_path / ".thumbs"
    assert list_images(inside) == [inside / "b.jpg"]


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
