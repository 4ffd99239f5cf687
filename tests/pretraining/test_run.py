"""Whole runs on generated photographs: files, interruption by real signals, resuming."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from quick_processes import run_quickly

import iwm
from iwm.checkpoint import load_weights
from iwm.errors import InvalidConfigError, InvalidDataError
from iwm.fields import from_dict, to_json
from iwm.finetuning.config import FinetuneConfig
from iwm.model_folder import read_config
from iwm.pretraining.config import PretrainConfig
from iwm.pretraining.run import check_start, pretrain
from iwm.pretraining.task import PretrainTask
from iwm.training.config import DataConfig
from iwm.training.loop import TrainingError
from iwm.training.run_folder import RunFolder

TIMING = {"images_per_second", "data_wait", "memory_mb"}
FILES = [
    ".lock", "README.md", "config.json", "metrics.jsonl", "model.safetensors", "run.json", "state.pt", "student.safetensors",
]  # fmt: skip

# Trains like `iwm pretrain`, and sends a signal to its whole process group during one step.
CHILD = """
import json, os, subprocess, sys
from dataclasses import replace
from pathlib import Path
from iwm.fields import from_dict
from iwm.pretraining.config import PretrainConfig
from iwm.pretraining.run import pretrain
from iwm.pretraining.task import PretrainTask

config, data, out, number, fatal_step = sys.argv[1:]
after_step = PretrainTask.after_step

def interrupted(self, step):
    if step == int(fatal_step):
        # From another process: a DataLoader's workers take its own process's signals for an end without error.
        # Twice, as `torchrun` repeats what a scheduler has sent to all already.
        send = f"kill -{number} -{os.getpgrp()}"
        subprocess.run(["sh", "-c", send if int(number) != 15 else f"{send}; sleep 0.1; {send}"])
    return after_step(self, step)

PretrainTask.after_step = interrupted
done = pretrain(from_dict(PretrainConfig, json.loads(config)), [Path(data)], Path(out))
sys.exit(0 if done else 3)
"""


def _run_in_child(config, data, out, number, step):
    environment = os.environ | {
        "PYTHONPATH": str(Path(iwm.__file__).parent.parent),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    return run_quickly("-c", CHILD, to_json(config), data, out, int(number), step, env=environment)


def _metrics(out):
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in TIMING} for record in records]


def _state(out):
    return torch.load(out / "state.pt", weights_only=True)


@pytest.fixture(scope="module")
def config(make_config):
    return make_config(checkpoint_every=4, seed=5)


@pytest.fixture(scope="module")
def whole(config, photos, tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    assert pretrain(config, [photos], out, command="iwm pretrain --seed 5")
    return out


def _assert_same_run(out, whole):
    assert _metrics(out) == _metrics(whole)
    for name in ("model.safetensors", "student.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    ours, theirs = _state(out), _state(whole)
    assert ours["step"] == theirs["step"]
    assert ours["task"].keys() == theirs["task"].keys()
    assert all(torch.equal(ours["task"][name], theirs["task"][name]) for name in theirs["task"])
    moments = [state["optimizer"]["state"] for state in (ours, theirs)]
    for ours_one, theirs_one in zip(moments[0].values(), moments[1].values(), strict=True):
        assert all(torch.equal(ours_one[name], theirs_one[name]) for name in theirs_one)


def test_a_run_leaves_a_model_folder_and_its_records(config, whole):
    assert sorted(path.name for path in whole.iterdir()) == FILES
    records = _metrics(whole)
    assert [record["step"] for record in records] == list(range(1, 11))
    every_step = {
        "step",
        "loss",
        "lr",
        "weight_decay",
        "grad_norm",
        "target_std",
        "ema",
        "unreadable",
        "enlarged",
    }
    monitored = {"effective_rank", "cosine", "online_apply_mrr", "online_undo_mrr"}
    assert all(record.keys() == every_step for record in records[:-1])
    assert records[-1].keys() == every_step | monitored
    assert from_dict(PretrainConfig, json.loads((whole / "run.json").read_text())) == config
    described = read_config(whole)
    assert described.replace(recipe={}, provenance={}) == config.model
    assert described.provenance["images"] == 12
    assert (described.provenance["steps"], described.provenance["images_seen"]) == (10, 40)
    assert described.recipe["command"] == "iwm pretrain --seed 5"
    assert described.recipe["seed"] == 5
    assert "model" not in described.recipe


def test_exported_weights_are_the_trained_ones_in_half_precision(config, whole):
    state = _state(whole)["task"]
    task = PretrainTask(config)
    for file, module, prefix in (
        ("model.safetensors", task.model, "model."),
        ("student.safetensors", task.student, "student."),
    ):
        load_weights(whole / file, module)
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, state[prefix + name].half().float())
    assert not torch.equal(
        state["model.encoder.patch_embed.proj.weight"], state["student.patch_embed.proj.weight"]
    )


def test_training_changes_the_weights_and_the_seed_decides_them(config, whole, photos, tmp_path):
    torch.manual_seed(config.seed)
    initial = PretrainTask(config).state_dict()
    assert all(not torch.equal(initial[name], trained) for name, trained in _state(whole)["task"].items())
    pretrain(config.replace(seed=6, steps=2), [photos], tmp_path / "seed")
    assert _metrics(tmp_path / "seed")[0]["loss"] != _metrics(whole)[0]["loss"]
    torch.manual_seed(99)
    pretrain(config, [photos], tmp_path / "again")
    _assert_same_run(tmp_path / "again", whole)


@pytest.mark.parametrize(
    ("number", "workers", "code", "left"),
    [
        (signal.SIGINT, 1, 3, 6),
        (signal.SIGTERM, 2, 3, 6),  # torchrun and schedulers end whole process groups so.
        (signal.SIGKILL, 0, -signal.SIGKILL, 4),
    ],
    ids=["SIGINT", "SIGTERM", "SIGKILL"],
)
def test_resuming_after_a_signal_is_bit_identical(
    config, whole, photos, tmp_path, number, workers, code, left
):
    out = tmp_path / "run"
    child = _run_in_child(config.replace(data=DataConfig(workers=workers)), photos, out, number, step=5)
    assert child.returncode == code, child.stderr
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert _state(out)["step"] == read_config(out).provenance["steps"] == left
    assert _metrics(out) == _metrics(whole)[: 5 if number == signal.SIGKILL else 6]
    assert pretrain(config, [photos], out, resume=True, command="iwm pretrain --seed 5")
    _assert_same_run(out, whole)


def test_a_finished_run_stays_as_it_is_and_other_steps_need_resume(config, whole, photos):
    weights = (whole / "model.safetensors").read_bytes()
    assert pretrain(config, [photos], whole)
    assert (whole / "model.safetensors").read_bytes() == weights
    with pytest.raises(
        InvalidConfigError, match=r"steps was 10, now 20\. .* or --resume to go on with the new ones"
    ):
        pretrain(config.replace(steps=20), [photos], whole)
    assert (whole / "model.safetensors").read_bytes() == weights


def test_resuming_with_other_settings_names_them(config, whole, photos, make_config):
    before = {name: (whole / name).read_bytes() for name in FILES}
    other = make_config(
        checkpoint_every=4, seed=5, batch_size=3, layout="append", conditioning="feature", steps=20
    )
    with pytest.raises(InvalidConfigError) as caught:
        pretrain(other, [photos], whole, resume=True)
    for part in ("batch_size was 4, now 3", "model.predictor.layout was 'inplace', now 'append'"):
        assert part in str(caught.value)
    assert {name: (whole / name).read_bytes() for name in FILES} == before


def test_a_loss_that_is_no_number_leaves_the_last_checkpoint(config, photos, tmp_path, monkeypatch):
    loss = PretrainTask.forward

    def broken(self, crops, step, keys):
        value, scalars = loss(self, crops, step, keys)
        return (value * float("nan") if step == 6 else value), scalars

    monkeypatch.setattr(PretrainTask, "forward", broken)
    half = config.optim.lr / 2
    with pytest.raises(
        TrainingError,
        match=r"The loss is nan and its gradient norm nan at step 6. The checkpoint of step 4 in .*run is good. "
        rf"Try a smaller learning rate from there on: --resume --optim.lr {half:g}$",
    ):
        pretrain(config, [photos], tmp_path / "run")
    assert read_config(tmp_path / "run").provenance["steps"] == 4
    assert all(tensor.isfinite().all() for tensor in _state(tmp_path / "run")["task"].values())
    monkeypatch.undo()
    slower = config.replace(optim=replace(config.optim, lr=half))
    assert pretrain(slower, [photos], tmp_path / "run", resume=True)
    rates = {r["step"]: r["lr"] for r in _metrics(tmp_path / "run")}
    assert max(rate for step, rate in rates.items() if step > 4) <= half < max(rates.values())
    assert read_config(tmp_path / "run").provenance["sittings"] == [
        {"from_step": 0, "optim.lr": config.optim.lr},
        {"from_step": 4, "optim.lr": half},
    ]


def test_a_missing_image_folder_is_refused_before_anything_is_written(config, tmp_path):
    with pytest.raises(InvalidDataError, match="No such folder"):
        pretrain(config, [tmp_path / "missing"], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_start_would_refuse_is_refused_without_one(config, photos, tmp_path):
    for changes, processes, message in (
        ({}, 3, "batch_size 4 cannot be shared evenly by 3 processes in 1 pieces each"),
        ({"device": "cpux"}, 1, 'Cannot use device "cpux"'),
    ):
        with pytest.raises(InvalidConfigError, match=message):
            check_start(config.replace(**changes), [photos], tmp_path / "run", processes=processes)
    assert check_start(config, [photos], tmp_path / "run", processes=4) == config
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_kind_is_called_that_whatever_the_encoder(config, tmp_path):
    out = tmp_path / "run"
    RunFolder(out, FinetuneConfig(), resume=False).start(FinetuneConfig(), 0)
    (out / "state.pt").touch()
    with pytest.raises(InvalidConfigError, match="holds a run of another kind"):
        check_start(config.replace(init_encoder="vit.safetensors"), out=out)
