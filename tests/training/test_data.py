"""Images from a folder: listing, order of samples, crops."""

import itertools
import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image

from iwm.errors import InvalidDataError
from iwm.training.config import DataConfig, RunConfig
from iwm.training.data import CropDataset, StepSampler, check_readable, make_loader, random_crop


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
    crop, epoch, index = CropDataset(paths, 16, config)[key]
    assert (crop.shape, crop.dtype, epoch, index) == ((3, 16, 16), torch.uint8, 2, 1)
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


def test_unreadable_file_is_named_and_replaced_by_the_next(paths, caplog):
    paths[2].write_bytes(b"not an image")
    paths[3].write_bytes(paths[3].read_bytes()[:200])
    dataset = CropDataset(paths, 16, _config())
    with caplog.at_level(logging.WARNING, logger="iwm"):
        crop, epoch, index = dataset[(1, 2)]
    assert [
        path.name in record.getMessage() for path, record in zip(paths[2:4], caplog.records, strict=True)
    ] == [
        True,
        True,
    ]
    assert (epoch, index) == (1, 2)
    stand_in = [*paths[:2], paths[4], *paths[3:]]
    assert torch.equal(crop, CropDataset(stand_in, 16, _config())[(1, 2)][0])


def test_an_unreadable_last_file_is_replaced_by_the_first(paths, caplog):
    paths[4].unlink()
    crop = CropDataset(paths, 16, _config())[(0, 4)][0]
    assert paths[4].name in caplog.text
    assert torch.equal(crop, CropDataset([*paths[:4], paths[0]], 16, _config())[(0, 4)][0])


def test_nothing_readable_is_an_error(tmp_path):
    paths = [tmp_path / f"{i}.jpg" for i in range(3)]
    for path in paths:
        path.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(InvalidDataError, match="None of the images can be read"):
        list(make_loader(paths, 16, _config()))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # A machine with one core.
def test_workers_change_nothing(paths):
    alone, shared = (list(make_loader(paths, 16, _config(data=DataConfig(workers=n)), 1)) for n in (0, 2))
    assert len(alone) == len(shared) == 5
    for step, (one, other) in enumerate(zip(alone, shared, strict=True), start=1):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        crops, epochs, indices = one
        assert (crops.shape, crops.dtype) == ((4, 3, 16, 16), torch.uint8)
        keys = list(zip(epochs.tolist(), indices.tolist(), strict=True))
        assert keys == list(StepSampler(5, _config()))[step]
        dataset = CropDataset(paths, 16, _config())
        assert all(torch.equal(crop, dataset[key][0]) for crop, key in zip(crops, keys, strict=True))


def test_readability_is_checked_before_any_worker_starts(tmp_path, caplog):
    bad = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    for path in bad:
        path.write_text("no image")
    with pytest.raises(InvalidDataError, match=r"None of the 2 images can be read; the first is .*a\.jpg"):
        check_readable(bad)
    check_readable([*bad, _write(tmp_path / "c.png", 8, 8)])
