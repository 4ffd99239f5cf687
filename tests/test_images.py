"""Everything a user may pass as an image, and the way to the model's input."""

import hashlib
import io
import os
import threading
import warnings

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from smooth_pictures import smooth

from iwm.config import PreprocessConfig
from iwm.device import usable_cpus
from iwm.errors import InvalidDataError, InvalidImageError, UnreadableFolderWarning
from iwm.images import (
    Preprocess,
    batched,
    count,
    file_list_hash,
    iterate,
    list_images,
    spread,
    to_pil,
    to_tensor,
)
from iwm.index.encoding import Job, read_jobs
from iwm.index.walk import Found

RED = (255, 0, 0)


@pytest.fixture
def preprocess():
    return Preprocess(PreprocessConfig(size=32, resize=36))


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


def test_batches_in_a_list_are_their_images(preprocess):
    batch, single = torch.rand(2, 3, 32, 32), torch.rand(3, 32, 32)
    images = [single, batch, batch[:1]]
    expected = torch.cat((single[None], batch, batch[:1]))
    assert count(images) == 4
    assert torch.equal(preprocess(images), expected)
    assert torch.equal(preprocess(iter(images)), expected)
    with pytest.raises(InvalidImageError, match=r"^Tensor of shape \[2, 2, 3, 32, 32\]"):
        preprocess(torch.rand(2, 2, 3, 32, 32))
    with pytest.raises(InvalidImageError, match=r"^Image 2 of the list: Tensor of shape \[1, 32, 32\]"):
        preprocess([batch, torch.rand(1, 1, 32, 32)])


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


def test_list_images_follows_links_to_folders_once(tmp_path):
    for name in ("photos/a.jpg", "photos/z/b.jpg", "elsewhere/c.jpg", "elsewhere/.hidden/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for link, target in [
        ("photos/more", "elsewhere"),
        ("photos/again", "photos/z"),
        ("elsewhere/up", "photos"),
    ]:
        (tmp_path / link).symlink_to(tmp_path / target)
    found = [str(path.relative_to(tmp_path)) for path in list_images(tmp_path / "photos")]
    assert found == ["photos/a.jpg", "photos/more/c.jpg", "photos/z/b.jpg"]


def test_list_images_tells_of_folders_that_it_cannot_list(tmp_path, monkeypatch):
    for name in ("a.jpg", "locked/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.warns(
        UnreadableFolderWarning, match=r"locked cannot be listed and is left out: Permission denied"
    ):
        assert list_images(tmp_path) == [tmp_path / "a.jpg"]
    with pytest.raises(InvalidDataError, match=r"locked cannot be listed: Permission denied"):
        list_images(tmp_path / "locked")


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
