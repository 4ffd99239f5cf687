"""Streams of images: every row once an epoch, an order that replays, and resuming from any place."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numbered_streams import (
    CPU,
    SIZE,
    assert_same_batches,
    image_folder,
    numbers_of,
    parquet_files,
    run_stream,
    stream_config,
    write_shards,
    write_tar,
)
from PIL import Image

import iwm
from iwm.config import EncoderConfig, PredictorConfig, PreprocessConfig, WorldModelConfig
from iwm.errors import InvalidConfigError, InvalidDataError
from iwm.fields import to_json
from iwm.pretraining.config import PretrainConfig
from iwm.pretraining.run import pretrain
from iwm.training import streams
from iwm.training.config import DataConfig
from iwm.training.distributed import World
from iwm.training.streams import AHEAD, StreamSource, is_stream

datasets = pytest.importorskip("datasets")

# Trains like `iwm pretrain` on a stream, and kills itself during one step.
CHILD = """
import json, os, signal, sys
from pathlib import Path
from iwm.fields import from_dict
from iwm.pretraining.config import PretrainConfig
from iwm.pretraining.run import pretrain
from iwm.pretraining.task import PretrainTask
from iwm.training import streams

config, data, out, fatal_step = sys.argv[1:]
streams.BLOCK = 4
after_step = PretrainTask.after_step

def killed(self, step):
    if step == int(fatal_step):
        os.kill(os.getpid(), signal.SIGKILL)
    return after_step(self, step)

PretrainTask.after_step = killed
pretrain(from_dict(PretrainConfig, json.loads(config)), [data], Path(out))
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("my shards")
    write_shards(folder)
    return f"{folder}/*.tar"


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(streams, "BLOCK", 4)
    # After arrow files, `datasets` waits for its threads, for five seconds.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


@pytest.fixture(scope="module")
def whole(shards):
    """Three epochs and a little more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "BLOCK", 4)
        return run_stream(shards)


def test_every_row_comes_once_an_epoch_in_an_order_of_its_own(whole):
    batches, _ = whole
    assert all(crops.shape == (4, 3, SIZE, SIZE) and crops.dtype == torch.uint8 for crops, _, _ in batches)
    epochs = numbers_of(batches)
    assert [len(epoch) for epoch in epochs] == [22, 22, 22, 2]
    assert all(sorted(epoch) == list(range(22)) for epoch in epochs[:3])
    assert len({tuple(epoch) for epoch in epochs}) == 4
    keys = [(e, i) for _, es, ixs in batches for e, i in zip(es.tolist(), ixs.tolist(), strict=True)]
    assert sorted(keys[:66]) == [(epoch, index) for epoch in range(3) for index in range(22)]
    assert keys[:22] != sorted(keys[:22])


def test_shards_come_in_another_order_every_epoch_and_rows_move_within_their_block(shards, tmp_path):
    inside = write_shards(tmp_path)
    orders = []
    for epoch in numbers_of(run_stream(shards, steps=77)[0])[:14]:
        blocks = [sorted(epoch[start : start + 4]) for start in range(0, 22, 4)]
        for order in itertools.permutations(inside):
            # Read one after another, they fall into blocks of four rows, of which none leaves its own.
            read = [n for shard in order for n in sorted(shard)]
            if blocks == [sorted(read[start : start + 4]) for start in range(0, 22, 4)]:
                orders.append(order)
    assert len(orders) == 14
    assert len({tuple(map(min, order)) for order in orders}) > 7


def test_the_order_depends_on_the_seed_and_on_nothing_else(shards, whole):
    again, _ = run_stream(
        shards, steps=6, data=DataConfig(workers=0, crop_scale=(1, 1), crop_aspect=(1, 1), flip=0)
    )
    assert_same_batches(again, whole[0][:6])
    assert numbers_of(run_stream(shards, seed=4)[0])[:3] != numbers_of(whole[0])[:3]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_every_batch_between_them(shards, whole, processes):
    parts = [run_stream(shards, world=World(CPU, rank, processes)) for rank in range(processes)]
    joined = [
        tuple(torch.cat(pieces) for pieces in zip(*batch, strict=True))
        for batch in zip(*(batches for batches, _ in parts), strict=True)
    ]
    assert_same_batches(joined, whole[0])
    assert all(states == whole[1] for _, states in parts)


@pytest.mark.parametrize("block", [4, 3, 100])
@pytest.mark.parametrize("kind", ["tar", "parquet", "folder"])
def test_resuming_from_every_state_gives_the_tail(shards, tmp_path, monkeypatch, kind, block):
    """In the middle of blocks, shards and row groups, and across the ends of epochs."""
    monkeypatch.setattr(streams, "BLOCK", block)
    name = {"tar": lambda _: shards, "parquet": parquet_files, "folder": image_folder}[kind](tmp_path)
    batches, states = run_stream(name, steps=9)
    assert {state["epoch"] for state in states} == {0, 1}
    for done, state in enumerate(states, start=1):
        # As a checkpoint keeps it.
        torch.save(state, tmp_path / "state.pt")
        kept = torch.load(tmp_path / "state.pt", weights_only=True)
        assert_same_batches(run_stream(name, done, kept, steps=9)[0], batches[done:])


@pytest.mark.parametrize("make", [parquet_files, image_folder])
@pytest.mark.parametrize("suffix", ["", ":train", ":train:"])
def test_a_dataset_gives_every_image_once_an_epoch(tmp_path, make, suffix):
    batches, _ = run_stream(make(tmp_path) + suffix, steps=11)
    first, second = numbers_of(batches)
    assert sorted(first) == sorted(second) == list(range(22))
    assert first != second


def test_crops_are_those_of_the_same_files_in_a_folder(tmp_path):
    """A large photograph from a shard and one on a disk, decoded, cropped and flipped alike."""
    from iwm.training.data import CropDataset

    photo = tmp_path / "photo.jpg"
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC).save(photo)
    write_tar(tmp_path / "0.tar", {"photo.jpg": photo.read_bytes()})
    config = stream_config(steps=4, batch_size=3, data=DataConfig(workers=1))
    source = StreamSource(f"{tmp_path}/*.tar", 16, config)
    dataset = CropDataset([photo], 16, config)
    crops = torch.cat([crops for crops, _, _ in source.batches(0, World(CPU), None)])
    assert torch.equal(crops, torch.stack([dataset[(epoch, 0)][0] for epoch in range(12)]))
    assert len(crops.flatten(1).unique(dim=0)) == 12


def test_batches_are_read_while_one_is_trained_and_not_more_than_two(tmp_path):
    write_shards(tmp_path)
    source = StreamSource(f"{tmp_path}/*.tar", SIZE, stream_config(steps=6, batch_size=3))
    rows, read = source._rows, []
    source._rows = lambda state: (read.append(row) or row for row in rows(state))
    batches = source.batches(0, World(CPU), None)
    for done in range(1, 7):
        next(batches)
        expected = 3 * min(done + AHEAD, 6)
        for _ in range(1000):
            if len(read) == expected:
                break
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(read) == expected
    assert next(batches, None) is None


@pytest.mark.parametrize(
    ("name", "stream"),
    [("hf:org/name", True), ("s/*.tar", True), ("a.tar", True), ("photos", False), ("tar", False)],
)
def test_what_is_a_stream(name, stream):
    assert is_stream(name) is stream


def test_without_the_package_the_way_to_install_it_is_said(shards, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InvalidConfigError, match=r"need the package datasets: pip install 'iwm\[train\]'"):
        StreamSource(shards, SIZE, stream_config())


def test_a_run_that_was_not_begun_on_a_stream_does_not_go_on_with_one(shards):
    with pytest.raises(InvalidDataError, match="does not say where its stream was"):
        run_stream(shards, first=3)


def _pretrain_config():
    model = WorldModelConfig(
        encoder=EncoderConfig(width=32, depth=1, heads=2, patch_size=8, image_size=32),
        predictor=PredictorConfig(width=32, depth=1),
        preprocess=PreprocessConfig(size=32, resize=32),
    )
    return PretrainConfig(
        model=model, steps=10, batch_size=4, device="cpu", precision="float32", log_every=1,
        checkpoint_every=4, data=DataConfig(workers=1),
    )  # fmt: skip


def _records(out):
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: r[k] for k in ("step", "loss", "grad_norm", "target_std")} for r in records]


def _fresh(code, *arguments, **variables):
    # As many threads as here: sums are bit-identical for the same number only.
    environment = os.environ | {
        "PYTHONPATH": str(Path(iwm.__file__).parent.parent),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    return subprocess.run(
        [sys.executable, *code, *arguments], env=environment | variables,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_killed_run_on_shards_goes_on_as_if_nothing_had_happened(shards, tmp_path, photos):
    config = _pretrain_config()
    assert pretrain(config, [shards], tmp_path / "whole")
    out = tmp_path / "run"
    child = _fresh(["-c", CHILD], to_json(config), shards, str(out), "6")
    assert child.returncode == -signal.SIGKILL, child.stderr
    state = torch.load(out / "state.pt", weights_only=True)
    # Of the 22 rows, 16 are done: the next block begins in the middle of a shard.
    assert (state["step"], state["source"]["epoch"], state["source"]["block"]) == (4, 0, 3)
    assert len(_records(out)) == 6
    for data, message in (
        ([f"{shards[:-5]}0*.tar"], "trained on the stream"),
        ([photos], "now holds 12 images"),
    ):
        with pytest.raises(InvalidConfigError, match=message):
            pretrain(config, data, out)
    added = Path(shards).parent / "zz.tar"
    shutil.copy(sorted(added.parent.glob("*.tar"))[0], added)
    with pytest.raises(InvalidConfigError, match=r"trained on the stream .* now holds the stream"):
        pretrain(config, [shards], out)
    added.unlink()
    assert pretrain(config, [shards], out)
    assert _records(out) == _records(tmp_path / "whole")
    assert [record["step"] for record in _records(out)] == list(range(1, 11))
    for name in ("model.safetensors", "student.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    described = json.loads((out / "config.json").read_text())
    (data,) = described["provenance"]["data"]
    assert (data["stream"], len(data["files_sha256"])) == (shards, 64)


def test_one_stream_alone(shards, photos, tmp_path):
    with pytest.raises(InvalidConfigError, match="takes one stream alone"):
        pretrain(_pretrain_config(), [shards, photos], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dataset_of_the_hub_without_a_network(tmp_path):
    words = ["pretrain", "--recipe", "iwm-tiny", "--data", "hf:org/name", "--out", str(tmp_path / "run")]
    done = _fresh(["-m", "iwm"], *words, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Cannot stream hf:org/name: ")
    assert "OfflineMode" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
