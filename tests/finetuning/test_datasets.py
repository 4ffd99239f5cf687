"""Views that replay, masks that follow their image, batches split evenly."""

import multiprocessing
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from iwm.config import PreprocessConfig
from iwm.errors import InvalidConfigError, InvalidDataError
from iwm.evaluation.labelled import IGNORED
from iwm.finetuning import datasets
from iwm.finetuning.cache import cached_latents
from iwm.finetuning.config import AugmentConfig
from iwm.finetuning.datasets import (
    CropDataset,
    SegmentationDataset,
    SplitSampler,
    TaskSource,
    check_shares,
    joint_crop,
)
from iwm.finetuning.folders import read_task
from iwm.images import Preprocess
from iwm.training.config import DataConfig
from iwm.training.data import CropDataset as PretrainingCrops
from iwm.training.data import StepSampler
from iwm.training.distributed import World
from iwm.world_model import WorldModel

PREPROCESS = PreprocessConfig(size=32, resize=36)


def test_plain_views_are_those_of_pretraining(colours, make_config):
    paths = read_task(str(colours)).train.images
    ours, theirs = CropDataset(paths, PREPROCESS, make_config()), PretrainingCrops(paths, 32, make_config())
    for key in ((0, 1), (3, 1), (0, 9)):
        assert torch.equal(ours[key][0], theirs[key][0])
    assert [int(v) for v in ours[3, 1][1:]] == [3, 1]


def test_centre_views_are_what_the_model_sees_in_use(colours, make_config):
    paths = read_task(str(colours)).train.images
    view = CropDataset(paths, PREPROCESS, make_config(centre=True))[5, 2][0]
    assert torch.equal(view / 255.0, Preprocess(PREPROCESS).one(paths[2]))


def test_rand_augment_replays_in_worker_processes(colours, make_config):
    config = make_config(augment=AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1"), seed=4)
    paths = read_task(str(colours)).train.images
    plain, augmented = (CropDataset(paths, PREPROCESS, c) for c in (make_config(seed=4), config))
    assert sum(not torch.equal(plain[0, i][0], augmented[0, i][0]) for i in range(16)) > 8

    def batches(workers):
        c = config.replace(data=DataConfig(workers=workers))
        return list(TaskSource(augmented, [16], c, "").batches(2, World(torch.device("cpu"))))

    one, two = batches(0), batches(2)
    assert len(one) == 4
    for a, b in zip(one, two, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("batch_size", "processes", "expected"),
    [(64, 1, (8, 4)), (1024, 1, (8, 4)), (16_384, 1, (2, 1)), (16_384, 8, (8, 2))],
)
def test_large_batches_are_read_less_far_ahead(make_config, monkeypatch, batch_size, processes, expected):
    asked = {}

    def loader(_, **options):
        asked.update(options)
        return []

    monkeypatch.setattr(datasets, "DataLoader", loader)
    monkeypatch.setattr(datasets, "batches_of", iter)
    config = make_config(batch_size=batch_size, data=DataConfig(workers=8))
    assert list(TaskSource([], [5], config, "").batches(0, World(torch.device("cpu"), 0, processes))) == []
    assert (asked["num_workers"], asked["prefetch_factor"]) == expected


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["image", "mask", "kept"])
def test_a_file_that_breaks_is_named_in_one_sentence(
    colours, scenes, tiny_config, make_config, tmp_path, kind, workers
):
    shutil.copytree(scenes if kind == "mask" else colours, tmp_path / "data")
    data = read_task(str(tmp_path / "data"), segmentation=kind == "mask")
    broken = (data.train.masks or data.train.images)[0]
    broken.write_text("no image")
    config = make_config(data=DataConfig(workers=workers), cache_views=int(kind == "kept"))
    dataset = CropDataset(data.train.images, PREPROCESS, config)
    if kind == "mask":
        dataset = SegmentationDataset(data.train, 32, config)

    def read():
        if kind == "kept":
            cached_latents(WorldModel(tiny_config()), data.train.images, config, tmp_path / "cache")
        return list(TaskSource(dataset, [len(dataset)], config, "").batches(0, World(torch.device("cpu"))))

    with pytest.raises(InvalidDataError) as caught:
        read()
    said = rf"Cannot read (the mask )?{broken}[^\n]*: [^\n]+[^.]\. Mend it; the same command goes on\."
    assert re.fullmatch(said, str(caught.value))
    # The error, which was raised in one, is still here.
    assert multiprocessing.active_children() == []


def test_masks_go_with_their_image(scenes, make_config):
    data = read_task(str(scenes), segmentation=True)
    dataset = SegmentationDataset(data.train, 32, make_config(task="segmentation", head="upernet"))
    for epoch in range(6):
        pixels, *_ = dataset[epoch, 2]
        assert pixels.shape == (4, 32, 32)
        image, mask = pixels[:3].float().mean(dim=0), pixels[3]
        assert set(mask.unique().tolist()) <= {0, 1, IGNORED}
        sure = torch.nn.functional.max_pool2d((mask != 0).float()[None], 3, 1, 1)[0] == 0
        assert (image[sure] > 150).float().mean() > 0.98  # The sky is bright.
        assert torch.equal(dataset[epoch, 2][0], pixels)
    assert not torch.equal(dataset[0, 2][0], dataset[1, 2][0])


def test_room_that_a_small_scale_leaves_does_not_count():
    image, mask = Image.new("RGB", (20, 20), "white"), Image.new("L", (20, 20), 1)
    for seed in range(20):
        both = joint_crop(image, mask, 32, np.random.default_rng(seed), 0.5)
        assert torch.equal(both[3] == IGNORED, both[0] == 0)
        assert (both[3] == 1).any()


def test_one_task_is_the_plain_order(make_config):
    config = make_config(steps=9)
    assert list(SplitSampler([7], config, 3)) == list(StepSampler(7, config, 3))


@pytest.mark.parametrize("processes", [1, 2])
def test_every_share_of_a_batch_is_split_evenly(make_config, processes):
    config = make_config(steps=10, batch_size=12)
    lengths = [5, 9, 4]
    shares = [list(SplitSampler(lengths, config, 0, rank, processes)) for rank in range(processes)]
    seen = {0: [], 1: [], 2: []}
    for step in range(10):
        for share in shares:
            owners = [0 if i < 5 else 1 if i < 14 else 2 for _, i in share[step]]
            assert owners == [0, 1, 2] * (4 // processes)
            for owner, key in zip(owners, share[step], strict=True):
                seen[owner].append(key)
    for task, (length, offset) in enumerate(zip(lengths, (0, 5, 14), strict=True)):
        first = [index - offset for epoch, index in seen[task] if epoch == 0]
        assert sorted(first) == list(range(length))


def test_batches_that_cannot_be_split_are_refused(make_config):
    check_shares(make_config(batch_size=12, accumulate=2), 3, 2)
    for tasks, processes, accumulate, said in (
        (3, 1, 1, "between 3 tasks; use a multiple of 3."),
        (1, 3, 1, "over 3 processes; use a multiple of 3."),
        (1, 1, 3, "into 3 pieces; use a multiple of 3."),
        (3, 2, 1, "between 3 tasks, over 2 processes; use a multiple of 6."),
        (3, 2, 2, "between 3 tasks, over 2 processes, into 2 pieces; use a multiple of 12."),
    ):
        with pytest.raises(InvalidConfigError) as caught:
            check_shares(make_config(batch_size=8, accumulate=accumulate), tasks, processes)
        assert str(caught.value) == f"batch_size 8 cannot be split evenly {said}"
    with pytest.raises(InvalidConfigError, match=r"in pairs within a task; .* a multiple of 4"):
        check_shares(make_config(batch_size=6, augment=AugmentConfig(mixup=1.0)), 2, 1)
    with pytest.raises(InvalidConfigError, match="use batch_size 6 at least"):
        check_shares(make_config(batch_size=3, tune="none", head="linear", batch_norm=True), 3, 1)
