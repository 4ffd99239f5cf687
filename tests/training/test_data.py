"""Images from a folder: listing, order of samples, crops."""

import itertools
import math
import multiprocessing
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from iwm.errors import InvalidDataError, InvalidImageError
from iwm.training import data as data_module
from iwm.training.config import DataConfig, RunConfig
from iwm.training.data import (
    READ_AHEAD,
    CropDataset,
    FolderSource,
    PathArray,
    StepSampler,
    check_readable,
    cropped,
    make_loader,
    random_crop,
    read_ahead,
)
from iwm.training.distributed import World

CPU = World(torch.device("cpu"))


def _write(path, width, height, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def _config(**changes):
    changes.setdefault("data", DataConfig(workers=0))
    return RunConfig(**{"steps": 6, "batch_size": 4, "seed": 3, "precision": "float32"} | changes)


@pytest.fixture
def paths(tmp_path):
    return [_write(tmp_path / f"{i}.png", 40 + 6 * i, 48, seed=i) for i in range(5)]


@pytest.fixture
def broken(paths):
    """The same, of which two in the middle cannot be read."""
    paths[2].write_bytes(b"not an image")
    paths[3].write_bytes(paths[3].read_bytes()[:200])
    return paths


@pytest.mark.parametrize(("length", "batch_size"), [(10, 4), (7, 7), (3, 8), (1, 3)])
def test_every_sample_once_an_epoch_across_batches(length, batch_size):
    epochs = 4
    config = _config(steps=math.ceil(epochs * length / batch_size), batch_size=batch_size)
    batches = list(StepSampler(length, config))
    assert len(batches) == len(StepSampler(length, config)) == config.steps
    assert {len(batch) for batch in batches} == {batch_size}
    keys = list(itertools.chain.from_iterable(batches))
    assert [epoch for epoch, _ in keys] == [position // length for position in range(len(keys))]
    orders = [tuple(i for e, i in keys if e == epoch) for epoch in range(epochs)]
    assert all(sorted(order) == list(range(length)) for order in orders)
    if length > 5:
        assert len(set(orders)) == epochs


@pytest.mark.parametrize("first_step", [0, 1, 2, 5, 9])
def test_resumed_order_is_the_tail_of_the_whole(first_step):
    config = _config(steps=9)
    resumed = StepSampler(10, config, first_step)
    assert list(resumed) == list(StepSampler(10, config))[first_step:]
    assert len(resumed) == 9 - first_step


def test_order_depends_on_the_seed_and_not_on_the_number_of_steps():
    short, long = (list(StepSampler(10, _config(steps=steps))) for steps in (6, 12))
    assert long[:6] == short
    assert list(StepSampler(10, _config(seed=4))) != short


def test_crop_is_a_function_of_seed_epoch_and_index(paths):
    key, config = (2, 1), _config()
    crop, *rest = CropDataset(paths, 16, config)[key]
    assert (crop.shape, crop.dtype, rest) == ((3, 16, 16), torch.uint8, [(2, 1), [], ""])
    other = CropDataset(paths, 16, _config(steps=99, batch_size=2))
    for before in [(0, 0), (2, 4)]:
        other[before]
    assert torch.equal(other[key][0], crop)
    for changed in (
        other[(3, 1)],
        CropDataset(paths, 16, _config(seed=4))[key],
        CropDataset(paths[1:2] * 5, 16, config)[(2, 2)],
    ):
        assert not torch.equal(changed[0], crop)


def test_full_crop_is_the_resized_image_and_flip_mirrors_it(tmp_path):
    path = _write(tmp_path / "square.png", 32, 32)
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    for flip, reference in ((0.0, expected), (1.0, expected.flip(2))):
        data = DataConfig(crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=flip)
        assert torch.equal(CropDataset([path], 16, _config(data=data))[(0, 0)][0], reference)


def test_flip_has_its_probability(tmp_path):
    path = _write(tmp_path / "square.png", 8, 8)
    never, sometimes = (
        CropDataset(
            [path], 8, _config(data=DataConfig(crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=flip))
        )
        for flip in (0.0, 0.25)
    )
    flipped = [not torch.equal(never[(epoch, 0)][0], sometimes[(epoch, 0)][0]) for epoch in range(800)]
    assert sum(flipped) / 800 == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize(("width", "height"), [(400, 300), (300, 400), (2000, 900)])
def test_crop_area_and_aspect_fill_their_ranges(width, height):
    config = _config()
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop(width, height, config, rng) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    w, h = right - left, bottom - top
    area, aspect = w * h / (width * height), w / h
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= width + 1e-9).all()
    assert (bottom <= height + 1e-9).all()
    assert 0.3 <= area.min() < 0.32
    assert area.max() <= 1.0
    assert aspect.min() >= 0.75 - 1e-9
    assert aspect.max() <= 4 / 3 + 1e-9


def test_crop_aspect_is_log_uniform_where_every_box_fits():
    config = _config(data=DataConfig(crop_scale=(0.05, 0.1)))
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop(500, 500, config, rng) for _ in range(4000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share = (np.log(w / h) - np.log(0.75)) / (np.log(4 / 3) - np.log(0.75))
    np.testing.assert_allclose(
        np.quantile(share, [0.1, 0.25, 0.5, 0.75, 0.9]), [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.03
    )
    area = (w * h / 500**2 - 0.05) / 0.05
    np.testing.assert_allclose(np.quantile(area, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)


def test_an_image_too_narrow_for_any_box_gives_its_central_square():
    assert random_crop(1000, 10, _config(), np.random.default_rng(0)) == (495.0, 0.0, 505.0, 10.0)


def test_the_place_of_an_unreadable_file_is_taken_by_the_next(broken):
    crop, key, problems, _ = CropDataset(broken, 16, _config())[(1, 2)]
    assert key == (1, 2)
    assert [path.name in problem for path, problem in zip(broken[2:4], problems, strict=True)] == [True] * 2
    stand_in = [*broken[:2], broken[4], *broken[3:]]
    assert torch.equal(crop, CropDataset(stand_in, 16, _config())[(1, 2)][0])


def test_an_unreadable_last_file_is_replaced_by_the_first(paths):
    paths[4].unlink()
    crop, _, problems, _ = CropDataset(paths, 16, _config())[(0, 4)]
    assert problems == [f"No such image file: {paths[4]}"]
    assert torch.equal(crop, CropDataset([*paths[:4], paths[0]], 16, _config())[(0, 4)][0])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_are_named_once_and_counted_as_often_as_they_are_drawn(broken, caplog, workers):
    source = FolderSource(broken, 16, _config(data=DataConfig(workers=workers)))
    drawn, counts = [], []
    for _, _, indices in source.batches(0, CPU):
        drawn += indices.tolist()
        counts.append((len(drawn), source.unreadable))
    named = sorted(record.getMessage().split(" as an ")[0] for record in caplog.records)
    assert named == [f"skipped: Cannot read {path}" for path in broken[2:4]]
    assert len(drawn) == 24
    assert counts == [(n, sum(index in (2, 3) for index in drawn[:n])) for n in range(4, 25, 4)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_may_ask_to_end_at_an_unreadable_file(broken, caplog, workers):
    config = _config(data=DataConfig(workers=workers, on_unreadable="fail"))
    first = next(i for i, keys in enumerate(StepSampler(5, config)) if {2, 3} & {index for _, index in keys})
    batches = FolderSource(broken, 16, config).batches(0, CPU)
    for _ in range(first):
        next(batches)
    with pytest.raises(InvalidImageError) as caught:
        next(batches)
    assert re.fullmatch(
        r"Cannot read .*[23]\.png as an image: .*[^.]\. Mend it, or .*: --data\.on_unreadable skip",
        str(caught.value),
    )
    assert caplog.text == ""


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_any_more_is_said_in_one_line(tmp_path, workers):
    source = FolderSource(
        [tmp_path / f"{i}.jpg" for i in range(3)], 16, _config(data=DataConfig(workers=workers))
    )
    with pytest.raises(InvalidDataError) as caught:
        list(source.batches(0, CPU))
    assert str(caught.value) == (
        "None of the 3 images can be read any more. When they are back, the same command goes on."
    )
    # The error, which was raised in one, is still here.
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 2), (3, 5), (40, 1)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_the_tiniest_image_is_enlarged(tmp_path, width, height, suffix):
    path = tmp_path / f"tiny.{suffix}"
    Image.new("RGB", (width, height), (200, 80, 40)).save(path)
    with Image.open(path) as image:
        colour = image.convert("RGB").getpixel((0, 0))
    for index in range(20):
        crop, _ = cropped(path, (0, index), 16, _config())
        assert torch.equal(crop, torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 16))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_small_images_are_counted_and_the_first_few_named(tmp_path, caplog, workers):
    sides = [15] * 12 + [16, 40]
    paths = [_write(tmp_path / f"{i:02}.png", 20, side) for i, side in enumerate(sides)]
    config = _config(steps=7, batch_size=4, data=DataConfig(workers=workers))
    source = FolderSource(paths, 16, config)
    drawn = [index for _, _, indices in source.batches(0, CPU) for index in indices.tolist()]
    assert sorted(drawn) == sorted([*range(14)] * 2)
    assert (source.enlarged, source.unreadable) == (24, 0)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(set(said)) == 10
    assert all(
        re.fullmatch(rf"enlarged: {tmp_path}/\d\d\.png has 20 x 15 pixels, less than crops of 16.*", line)
        for line in said
    )
    assert [line.endswith("; more of them are only counted") for line in said] == [False] * 9 + [True]


def test_many_paths_are_two_arrays(tmp_path):
    """Names of all kinds, such as one that is no text."""
    paths = [tmp_path / "a.jpg", Path(os.fsdecode(b"b\xff.jpg")), Path("ä/c d.jpg"), Path("e")]
    held = PathArray(paths)
    assert list(held) == paths
    assert (len(held), held[-1], held[1:3], held[::-2]) == (4, paths[3], paths[1:3], paths[::-2])
    with pytest.raises(IndexError):
        held[4]
    assert list(PathArray([])) == []
    assert not [v for v in vars(held).values() if not isinstance(v, np.ndarray)]


def test_more_than_one_crop_of_an_image_where_a_batch_has_more_places(paths):
    source = FolderSource(paths[:2], 16, _config(steps=1, batch_size=7))
    ((crops, epochs, indices),) = source.batches(0, CPU)
    assert sorted(zip(epochs.tolist(), indices.tolist(), strict=True)) == [
        *itertools.product(range(3), range(2)), (3, int(indices[-1]))
    ]  # fmt: skip
    assert len(crops.flatten(1).unique(dim=0)) == 7


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # A machine with one core.
def test_workers_change_nothing(paths):
    alone, shared = (
        list(FolderSource(paths, 16, _config(data=DataConfig(workers=n))).batches(1, CPU)) for n in (0, 2)
    )
    assert len(alone) == len(shared) == 5
    for step, (one, other) in enumerate(zip(alone, shared, strict=True), start=1):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        crops, epochs, indices = one
        assert (crops.shape, crops.dtype) == ((4, 3, 16, 16), torch.uint8)
        keys = list(zip(epochs.tolist(), indices.tolist(), strict=True))
        assert keys == list(StepSampler(5, _config()))[step]
        dataset = CropDataset(paths, 16, _config())
        assert all(torch.equal(crop, dataset[key][0]) for crop, key in zip(crops, keys, strict=True))


@pytest.mark.parametrize(
    ("workers", "rows", "expected"),
    [
        (1, 16, (1, 4)),
        (8, 1024, (8, 4)),
        (8, 1025, (8, 3)),
        (12, 2048, (12, 1)),
        (8, 16_384, (2, 1)),
        (1, 16_384, (1, 2)),
        (8, 100_000, (1, 1)),
        (0, 16_384, (0, None)),
    ],
)
def test_so_many_images_are_read_ahead_at_most(workers, rows, expected):
    assert read_ahead(workers, rows) == expected
    started, batches = expected
    assert started * (batches or 0) * rows <= max(READ_AHEAD, rows)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_loader_reads_ahead_by_the_share_of_its_process(paths):
    config = _config(batch_size=16_384, data=DataConfig(workers=8))
    for processes, expected in ((1, (2, 1)), (4, (8, 1)), (16, (8, 4))):
        loader = make_loader(paths, 16, config, world=World(torch.device("cpu"), 0, processes))
        assert (loader.num_workers, loader.prefetch_factor) == expected
    small = make_loader(paths, 16, _config(data=DataConfig(workers=3)))
    assert (small.num_workers, small.prefetch_factor) == (3, 4)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # A machine with one core.
def test_reading_less_ahead_changes_nothing(paths, monkeypatch):
    config = _config(data=DataConfig(workers=2))
    far = list(FolderSource(paths, 16, config).batches(0, CPU))
    monkeypatch.setattr(data_module, "READ_AHEAD", 4)
    assert make_loader(paths, 16, config).num_workers == 1
    near = list(FolderSource(paths, 16, config).batches(0, CPU))
    for one, other in zip(far, near, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_readability_is_checked_before_any_worker_starts(tmp_path, caplog):
    bad = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    for path in bad:
        path.write_text("no image")
    with pytest.raises(InvalidDataError, match=r"None of the 2 images can be read; the first is .*a\.jpg"):
        check_readable(bad)
    check_readable([*bad, _write(tmp_path / "c.png", 8, 8)])


def _photo(path, width, height, mode="RGB", orientation=1):
    """Smooth colours under some grain, like a photograph."""
    rng = np.random.default_rng(width)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 50, width // 50, 3), dtype=np.uint8))
    smooth = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    grain = smooth + rng.normal(0, 6, (height, width, 1))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(grain.clip(0, 255).astype(np.uint8)).convert(mode).save(path, quality=92, exif=exif)
    return path


def _crop_by_hand(path, key, size, config):
    """Of the whole decoded image, without any short cut."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    rng = np.random.default_rng((config.seed, *key, 1))
    box = random_crop(image.width, image.height, config, rng)
    crop = np.array(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return torch.from_numpy(crop[:, ::-1].copy() if rng.random() < config.data.flip else crop).permute(
        2, 0, 1
    )


@pytest.mark.parametrize(
    ("size", "mode", "orientation", "bound"),
    [
        ((1200, 904), "RGB", 1, 1),
        ((1200, 904), "RGB", 6, 1),
        ((704, 1000), "L", 1, 1),
        ((704, 1000), "CMYK", 3, 1),
        ((701, 1001), "RGB", 1, 6),  # A side that four does not divide is rounded up.
    ],
)
def test_crops_of_a_large_jpeg_are_those_of_all_its_pixels(
    tmp_path, monkeypatch, size, mode, orientation, bound
):
    path = _photo(tmp_path / "photo.jpg", *size, mode, orientation)
    sizes = []
    opened = data_module.open_rgb
    monkeypatch.setattr(
        data_module, "open_rgb", lambda *a, **k: sizes.append((i := opened(*a, **k)).size) or i
    )
    apart = []
    for index in range(12):
        crop, _ = cropped(path, (0, index), 64, _config())
        apart.append(
            (crop.float() - _crop_by_hand(path, (0, index), 64, _config()).float()).abs().mean().item()
        )
    assert all(min(side) < min(size) for side in sizes)
    assert max(apart) < bound  # Of 255; crops of other boxes differ by some thirty.


@pytest.mark.parametrize("name", ["small.jpg", "large.png"])
def test_crops_of_other_files_are_bit_identical_to_those_of_all_pixels(tmp_path, name):
    path = _photo(tmp_path / name, 200, 150) if name == "small.jpg" else _write(tmp_path / name, 900, 700)
    for index in range(6):
        expected = _crop_by_hand(path, (1, index), 48, _config())
        assert torch.equal(cropped(path, (1, index), 48, _config())[0], expected)
        assert torch.equal(cropped(path.read_bytes(), (1, index), 48, _config())[0], expected)


@pytest.mark.parametrize("aspect", [(0.75, 4 / 3), (0.25, 1.0), (1.0, 4.0), (2.0, 3.0), (0.2, 0.5)])
def test_no_crop_is_enlarged_from_an_image_that_has_the_pixels(tmp_path, monkeypatch, aspect):
    path = _photo(tmp_path / "photo.jpg", 1600, 1600)
    boxes = []

    def spy(*arguments):
        boxes.append(random_crop(*arguments))
        return boxes[-1]

    monkeypatch.setattr(data_module, "random_crop", spy)
    config = _config(data=DataConfig(crop_scale=(0.3, 0.31), crop_aspect=aspect))
    for index in range(40):
        cropped(path, (0, index), 64, config)
    assert min(min(right - left, bottom - top) for left, top, right, bottom in boxes) >= 64


def test_bytes_that_are_no_image_are_named():
    with pytest.raises(InvalidImageError, match=r"Cannot read row 3 as an image"):
        cropped(b"no image", (0, 0), 8, _config(), "row 3")


def test_a_folder_has_nothing_to_remember(paths):
    source = FolderSource(paths, 16, _config(), "5 images")
    assert (source.state(), source.listing) == (None, "5 images")
    whole = list(source.batches(2, CPU))
    assert len(whole) == 4
    halves = [list(source.batches(2, World(torch.device("cpu"), rank, 2), {"any": 1})) for rank in (0, 1)]
    for one, first, second in zip(whole, *halves, strict=True):
        assert all(torch.equal(a, torch.cat(parts)) for a, *parts in zip(one, first, second, strict=True))
