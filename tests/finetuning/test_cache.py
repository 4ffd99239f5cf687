"""Kept latents: the same as encoding again, made once, under another name for anything else."""

import errno
import logging
import os

import numpy as np
import pytest
import torch

from iwm.actions import draw_photometry
from iwm.encoder import normalize_tokens
from iwm.errors import SaveError
from iwm.evaluation.marginal import marginalised
from iwm.finetuning.cache import LatentDataset, cached_latents, encode_views
from iwm.finetuning.config import AugmentConfig
from iwm.finetuning.datasets import CropDataset
from iwm.finetuning.folders import read_task
from iwm.photometry import IDENTITY
from iwm.training.config import DataConfig
from iwm.world_model import WorldModel


@pytest.fixture
def model(tiny_config):
    return WorldModel(tiny_config())


@pytest.fixture
def paths(colours):
    return read_task(str(colours)).train.images


def test_views_are_those_of_an_uncached_run(model, paths, make_config, tmp_path):
    config = make_config(
        cache_views=3, augment=AugmentConfig(photometry=True, rand_augment="rand-m9"), seed=2
    )
    kept = LatentDataset(cached_latents(model, paths, config, tmp_path), len(paths))
    views = CropDataset(paths, model.config.preprocess, config)
    assert (len(kept), kept.views) == (16, 3)
    for epoch, index in ((0, 0), (2, 15), (1, 7), (4, 7)):
        tokens, *key = kept[epoch, index]
        assert [int(k) for k in key] == [epoch, index]
        view = epoch % 3
        fresh = encode_views(model, views[view, index][0][None], [(view, index)], config)[0]
        torch.testing.assert_close(tokens.float(), fresh, atol=2e-3, rtol=2e-3)
    assert not torch.equal(kept[0, 7][0], kept[1, 7][0])


def test_a_file_is_made_once_and_for_exactly_one_case(model, tiny_config, paths, make_config, tmp_path):
    config = make_config(cache_views=1)
    path = cached_latents(model, paths, config, tmp_path)
    made = path.stat().st_mtime_ns
    same = config.replace(steps=99, tune="none", batch_size=2, data=DataConfig(workers=1))
    assert cached_latents(model, paths, same, tmp_path) == path
    assert path.stat().st_mtime_ns == made
    torch.manual_seed(5)
    others = [
        cached_latents(WorldModel(tiny_config()), paths, config, tmp_path),
        cached_latents(model, paths[1:], config, tmp_path),
        cached_latents(model, paths, config.replace(seed=1), tmp_path),
        cached_latents(model, paths, config.replace(cache_views=2), tmp_path),
        cached_latents(model, paths, config.replace(centre=True), tmp_path),
        cached_latents(model, paths, config.replace(data=DataConfig(workers=0, flip=0.0)), tmp_path),
        cached_latents(model, paths, config, tmp_path, marginalise=1),
        cached_latents(model, paths, config, tmp_path, marginalise=2),
    ]
    assert len({path, *others}) == len(list(tmp_path.iterdir())) == 9
    os.utime(paths[0])
    assert cached_latents(model, paths, config, tmp_path) not in {path, *others}


def test_a_centre_view_has_one_file_whatever_does_not_touch_it(model, paths, make_config, tmp_path):
    config = make_config(cache_views=1, centre=True)
    path = cached_latents(model, paths, config, tmp_path)
    elsewhere = config.replace(
        seed=3, data=DataConfig(workers=0, crop_scale=(0.5, 1.0), flip=0.0, on_unreadable="fail")
    )
    assert cached_latents(model, paths, elsewhere, tmp_path) == path
    anew = cached_latents(model, paths, elsewhere, tmp_path / "anew")
    assert anew.read_bytes() == path.read_bytes()
    for augment in (AugmentConfig(photometry=True), AugmentConfig(rand_augment="rand-m9")):
        one, other = (
            np.load(cached_latents(model, paths, c.replace(augment=augment), tmp_path))
            for c in (config, elsewhere)
        )
        assert not np.array_equal(one, other)
    averages = {cached_latents(model, paths, c, tmp_path, marginalise=1) for c in (config, elsewhere)}
    assert len(averages) == 2
    assert len(list(tmp_path.glob("*.npy"))) == 7


def test_a_file_that_was_cut_off_is_not_there(model, paths, make_config, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr("iwm.finetuning.cache.encode_views", fail)
        with pytest.raises(RuntimeError):
            cached_latents(model, paths, make_config(cache_views=1), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert cached_latents(model, paths, make_config(cache_views=1), tmp_path).is_file()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this platform cannot reserve room on a disk")
def test_a_full_disk_is_said_before_anything_is_encoded(model, paths, make_config, tmp_path, monkeypatch):
    asked = []

    def full(file, start, size):
        asked.append((start, size, os.fstat(file).st_size))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr("iwm.finetuning.cache.encode_views", lambda *_: pytest.fail("it was encoded"))
    with pytest.raises(SaveError, match="No space left"):
        cached_latents(model, paths, make_config(cache_views=2), tmp_path)
    assert list(tmp_path.iterdir()) == []
    ((start, size, whole),) = asked
    assert (start, size) == (0, whole)
    assert whole > 2 * len(paths) * 16 * 48 * 2


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this platform cannot reserve room on a disk")
def test_a_file_system_that_promises_no_room_is_written_all_the_same(
    model, paths, make_config, tmp_path, monkeypatch
):
    def unsupported(file, start, size):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    assert cached_latents(model, paths, make_config(cache_views=1), tmp_path).is_file()


@pytest.mark.parametrize("damage", ["cut", "empty", "words", "shape", "kind"])
def test_a_file_that_was_damaged_is_made_again(model, paths, make_config, tmp_path, caplog, damage):
    config = make_config(cache_views=1)
    path = cached_latents(model, paths, config, tmp_path)
    whole = path.read_bytes()
    if damage == "shape":
        np.save(path, np.load(path)[1:])
    elif damage == "kind":
        np.save(path, np.load(path).astype(np.float32))
    else:
        path.write_bytes({"cut": whole[:-100], "empty": b"", "words": b"no array"}[damage])
    with caplog.at_level(logging.WARNING):
        assert cached_latents(model, paths, config, tmp_path) == path
    assert path.read_bytes() == whole
    assert f"{path} is damaged" in caplog.text


def test_averages_of_predictions_are_that(model):
    tokens = normalize_tokens(torch.randn(3, 16, 48))
    averaged = marginalised(model, tokens, 4, seed=1, indices=[7, 8, 9])
    total = torch.zeros(16, 48)
    for number in range(4):
        target = draw_photometry(
            model.config.actions.distribution.without_destructive(), seed=1, keys=[(8, number)], stream=17
        )
        params = torch.stack((torch.tensor([IDENTITY]), target), dim=1)
        predicted = model.predictor(tokens[1:2], model.encode_photometry(params), (4, 4))
        total += normalize_tokens(predicted.detach())[0]
    torch.testing.assert_close(averaged[1], total / 4, atol=1e-5, rtol=1e-5)
    assert torch.equal(averaged[1:], marginalised(model, tokens[1:], 4, seed=1, indices=[8, 9]))
