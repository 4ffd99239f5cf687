"""Whole runs on generated photographs: what is trained, what is written, killing and going on."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from labelled_files import write_class_folder
from quick_processes import run_quickly

import iwm
from iwm.adapter import Adapter
from iwm.checkpoint import load_weights, save_model
from iwm.errors import InvalidConfigError
from iwm.fields import from_dict, to_json
from iwm.finetuning.config import AugmentConfig, FinetuneConfig
from iwm.finetuning.folders import read_task
from iwm.finetuning.run import Finetuning, finetune, finetune_alone
from iwm.model_folder import read_config, task_file
from iwm.training.config import OptimConfig
from iwm.training.run_folder import RunFolder
from iwm.world_model import WorldModel

TIMING = {"images_per_second", "data_wait", "memory_mb"}

# Finetunes like `iwm finetune`, and kills its whole process group during one step.
CHILD = """
import json, os, signal, sys
from pathlib import Path
from iwm.fields import from_dict
from iwm.finetuning.config import FinetuneConfig
from iwm.finetuning.folders import read_task
from iwm.finetuning.run import Finetuning, finetune
from iwm.finetuning.task import FinetuneTask

config, model, data, out, fatal_step = sys.argv[1:]

def killed(self, step):
    if step == int(fatal_step):
        os.killpg(os.getpgrp(), signal.SIGKILL)
    return {}

FinetuneTask.after_step = killed
finetune(from_dict(FinetuneConfig, json.loads(config)), Finetuning(model=model, tasks=[read_task(data)], out=Path(out)))
"""


@pytest.fixture
def run(base, colours, tmp_path):
    """Finetunes the base model on the colours; returns the result and the folder."""

    def start(config, name="run", data=None, **changes):
        plan = Finetuning(
            model=str(base), tasks=data or [read_task(f"colours={colours}")], out=tmp_path / name, **changes
        )
        return finetune(config, plan), tmp_path / name

    return start


def _metrics(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in TIMING} for record in records]


def _adapter(folder, name="colours"):
    config = read_config(folder)
    adapter = Adapter(config.adapters[name], config)
    load_weights(folder / task_file(name), adapter)
    return adapter


@pytest.mark.parametrize(
    ("changes", "reads", "own", "tuned"),
    [
        ({"tune": "none", "head": "linear", "batch_norm": True}, "encoder", False, ""),
        ({"tune": "none"}, "encoder", False, ""),
        ({"tune": "predictor"}, "predictor", True, ""),
        ({"tune": "predictor", "output": "token", "action": "pretraining"}, "predictor", True, ""),
        ({"tune": "predictor", "init": "random", "predictor_depth": 1}, "predictor", True, ""),
        ({"tune": "encoder", "head": "linear", "layer_decay": 0.5}, "encoder", False, "encoder"),
        ({"tune": "all", "layer_decay": 0.9}, "predictor", False, "all"),
    ],
    ids=lambda v: "-".join(map(str, v.values())) if isinstance(v, dict) else None,
)
def test_every_protocol_changes_what_it_tunes_alone_and_loads(
    run, base, colours, make_config, changes, reads, own, tuned
):
    augment = AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1", mixup=0.8, cutmix=1.0, erasing=0.25)
    config = make_config(steps=3, monitor_every=2, drop_path=0.2, augment=augment, **changes)
    result, folder = run(config)
    described = read_config(folder)
    adapter = described.adapters["colours"]
    assert (adapter.reads, adapter.predictor is not None, described.tuned) == (reads, own, tuned)
    assert adapter.tasks["colours"].labels == ("blue", "red")

    before, after = iwm.load(str(base)), iwm.load(str(folder), task="colours")
    for part, trained in (("encoder", config.tunes_encoder), ("predictor", config.tune == "all")):
        old, new = (getattr(model, part).state_dict() for model in (before, after))
        changed = [name for name in old if not torch.equal(old[name], new[name])]
        assert bool(changed) == trained, part
    assert (after.space == before.space) == (not config.tunes_encoder)
    assert adapter.space == after.space
    if own and config.init == "pretrained":
        start, end = before.predictor.state_dict(), after.heads["colours"].predictor.state_dict()
        same = {name for name in start if torch.equal(start[name], end[name])}
        # The null action is the vector 0; three small steps from 1 may round to 1.
        assert {"mask_token"} <= same <= {"mask_token", "embed_action.0.weight", "norm.weight"}

    scores = result.tasks[0].scores
    assert scores["images"] == 8
    said = after.classify(sorted((colours / "val").rglob("*.png")), topk=1)
    right = [label == truth for (label,), truth in zip(said.labels, ["blue"] * 4 + ["red"] * 4, strict=True)]
    assert scores["accuracy"] == sum(right) / 8
    assert json.loads((folder / "result.json").read_text())["tasks"][0]["scores"] == scores
    assert described.adapters["colours"].metrics["colours"] == scores


def test_costs_are_counted(run, base, make_config):
    config = read_config(base)
    encoder, predictor = config.counts
    head = (
        48 + 2 * 48 + 48 * 96 + 96 + 48 * 48 + 48 + 48 * 2 + 2
    )  # Query, norm, keys and values, out, classes.
    costs = {}
    for tune in ("none", "predictor", "all"):
        result, _ = run(make_config(steps=1, tune=tune), tune)
        costs[tune] = result.cost
    assert costs["none"].parameters == encoder + head
    assert costs["none"].trained == head
    predictor -= 32  # The mask token is not read.
    assert costs["predictor"].parameters == costs["all"].parameters == encoder + predictor + head
    assert costs["predictor"].trained == predictor + head
    assert costs["all"].trained == encoder + predictor + head
    assert len({cost.encoder_flops for cost in costs.values()}) == 1
    assert costs["predictor"].task_flops == costs["all"].task_flops > 5 * costs["none"].task_flops > 0


@pytest.mark.parametrize("tune", ["predictor", "all"])
def test_a_learnable_task_is_learned(run, make_config, tune):
    config = make_config(
        steps=40, batch_size=8, monitor_every=10, tune=tune, predictor_lr_scale=1.0, optim=OptimConfig(
            lr=2e-3, lr_start=0.0, warmup=0.1, stretch=1.0, weight_decay=0.0, weight_decay_end=0.0),
    )  # fmt: skip
    result, folder = run(config)
    records = _metrics(folder)
    assert result.tasks[0].scores["accuracy"] == 1.0
    assert sum(r["loss"] for r in records[-5:]) < 0.5 * sum(r["loss"] for r in records[:5])


@pytest.mark.parametrize(
    "changes",
    [
        {"tune": "predictor", "cache_views": 2, "drop_path": 0.3},
        {"tune": "all", "drop_path": 0.3},
    ],
    ids=["cached", "all"],
)
def test_a_killed_run_goes_on_bit_for_bit(run, base, colours, tmp_path, make_config, changes):
    augment = AugmentConfig(label_smoothing=0.1)
    if changes["tune"] == "all":
        augment = AugmentConfig(
            rand_augment="rand-m9-mstd0.5-inc1", mixup=0.8, cutmix=1.0, erasing=0.25, photometry=True
        )
    config = make_config(steps=6, monitor_every=2, augment=augment, seed=3, **changes)
    whole, reference = run(config, "whole")
    environment = os.environ | {
        "PYTHONPATH": str(Path(iwm.__file__).parent.parent),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    out = tmp_path / "killed"
    words = [to_json(config), base, f"colours={colours}", out, 4]
    child = run_quickly("-c", CHILD, *words, env=environment)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert torch.load(out / "state.pt", weights_only=True)["step"] == 4
    assert iwm.load(str(out), task="colours").heads
    result, _ = run(config, "killed")
    assert _metrics(out) == _metrics(reference)
    for name in ("model.safetensors", "task-colours.safetensors"):
        assert (out / name).read_bytes() == (reference / name).read_bytes()
    assert result.tasks[0].scores["accuracy"] == whole.tasks[0].scores["accuracy"]
    assert result.best_step == whole.best_step


def test_the_student_is_built_on_where_asked_for(run, base, tiny_config, make_config):
    torch.manual_seed(7)
    save_model(base, tiny_config(), iwm.load(str(base)), student=WorldModel(tiny_config()).encoder)
    _, folder = run(make_config(steps=1, tune="predictor", branch="student"))
    spaces = {branch: iwm.load(str(base), branch=branch).space for branch in ("teacher", "student")}
    made = iwm.load(str(folder), task="colours")
    assert made.space == spaces["student"] != spaces["teacher"]
    assert made.config.adapters["colours"].space == made.space


def test_latents_that_a_kill_left_unfinished_are_removed_from_the_run_alone(run, make_config, tmp_path):
    config = make_config(steps=1, tune="none", cache_views=1)
    left = [tmp_path / folder / ".latents-0.npy.abcdefgh.tmp" for folder in ("run/cache", "shared")]
    for path in left:
        path.parent.mkdir(parents=True)
        path.touch()
    run(config)
    run(config, "other", cache=tmp_path / "shared")
    assert [path.exists() for path in left] == [False, True]
    with RunFolder(tmp_path / "busy", config, resume=False).alone():
        with pytest.raises(InvalidConfigError, match="Another process is training into"):
            run(config, "busy")
        assert not (tmp_path / "busy" / "cache").exists()


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"tune": "none"}, ["apply-mrr", "knn"]),
        ({"tune": "predictor"}, ["apply-mrr", "knn"]),
        ({"tune": "predictor", "branch": "student"}, []),
        ({"tune": "encoder", "head": "linear"}, []),
        ({"tune": "all"}, []),
    ],
    ids=lambda v: "-".join(v.values()) if isinstance(v, dict) else None,
)
def test_scores_are_kept_of_what_is_still_the_same(run, base, make_config, changes, kept):
    """The base's decoder is left out in any case."""
    metrics = {
        "apply-mrr": {"overall": {"mrr": 0.9}},
        "knn": {"accuracy": 0.4},
        "decoder-100x8": {"predicted": {"ssim": 0.8}, "encoded": {"ssim": 0.9}},
    }
    model = iwm.load(str(base))
    save_model(base, model.config.replace(metrics=metrics), model, student=model.encoder)
    _, folder = run(make_config(steps=1, **changes))
    assert list(read_config(folder).metrics) == kept


def test_the_best_validation_is_what_is_kept(run, make_config, monkeypatch):
    from iwm.finetuning import run as module

    given = iter([0.2, 0.9, 0.5, 0.9, 0.1])
    heads = []

    def validator(model, adapter, tasks, **options):
        def scores():
            heads.append(adapter.head("colours").classify.weight.detach().clone())
            return {"colours": next(given)}

        return scores

    monkeypatch.setattr(module, "validator", validator)
    result, folder = run(make_config(steps=10, monitor_every=2, tune="none"))
    assert result.best_step == 4
    kept = _adapter(folder).head("colours").classify.weight
    assert torch.equal(kept, heads[1].half().float())
    assert [r.get("val") for r in _metrics(folder)] == [None, 0.2, None, 0.9, None, 0.5, None, 0.9, None, 0.1]


def test_patience_ends_a_run(run, make_config, monkeypatch):
    from iwm.finetuning import run as module

    given = iter([0.2, 0.9, 0.5, 0.9])
    monkeypatch.setattr(module, "validator", lambda *parts, **options: lambda: {"colours": next(given)})
    result, folder = run(make_config(steps=10, monitor_every=2, tune="none", patience=2))
    assert (result.steps, result.best_step) == (8, 4)
    again, _ = run(make_config(steps=10, monitor_every=2, tune="none", patience=2))
    assert again.steps == 8
    assert len(_metrics(folder)) == 8


def test_several_tasks_share_a_predictor_beside_each_alone(run, base, colours, tmp_path, make_config):
    write_class_folder(tmp_path / "greens", ("dark", "green", "red"), count=6)
    data = [read_task(f"colours={colours}"), read_task(f"greens={tmp_path / 'greens'}")]
    config = make_config(steps=2, batch_size=8, monitor_every=2, augment=AugmentConfig(mixup=0.5))
    result, folder = run(config, data=data)
    described = read_config(folder)
    assert list(described.adapters) == ["colours-greens"]
    assert _metrics(folder)[0].keys() >= {"loss/colours", "loss/greens"}
    first = _metrics(folder)[0]
    assert first["loss"] == pytest.approx(first["loss/colours"] + first["loss/greens"], rel=1e-5)
    model = iwm.load(str(folder), task="greens")
    latent = model.encode(data[0].val.images)
    assert set(model.classify(latent, task="colours").labels[0]) == {"blue", "red"}
    assert set(model.classify(latent).labels[0]) == {"dark", "green", "red"}

    plan = Finetuning(model=str(base), tasks=data, out=folder)
    whole = finetune_alone(config, plan, result, resume=True)  # Of the joint run; none of these is there yet.
    assert [t.single for t in whole.tasks] == [
        json.loads((folder / "alone" / name / "result.json").read_text())["tasks"][0]["scores"]["accuracy"]
        for name in ("colours", "greens")
    ]
    again = finetune_alone(config.replace(steps=2), plan, result, resume=True)
    assert [t.single for t in again.tasks] == [t.single for t in whole.tasks]
    alone = from_dict(FinetuneConfig, json.loads((folder / "alone" / "greens" / "run.json").read_text()))
    assert (alone.batch_size, alone.steps) == (4, 2)
    assert any("alone" in value for _, value in whole.rows())


@pytest.mark.parametrize("tune", ["none", "predictor", "encoder", "all"])
def test_segmentation(run, scenes, make_config, tune):
    data = [read_task(f"scenes={scenes}", segmentation=True)]
    config = make_config(steps=2, task="segmentation", tune=tune, head="upernet", channels=6, monitor_every=2)
    result, folder = run(config, data=data)
    model = iwm.load(str(folder), task="scenes")
    head = model.load_adapter(model.config.adapter_of("scenes")).head("scenes")
    assert head.classify.weight.shape == (2, 6, 1, 1)
    said = model.segment(data[0].val.images[0])
    assert said.shape == (40, 48)
    assert model.labels() == ("sky", "road")
    scores = result.tasks[0].scores
    assert set(scores["per_class"]) == {"sky", "road"}
    assert result.tasks[0].score == scores["miou"]


def test_runs_that_cannot_be(run, base, colours, make_config, tmp_path):
    data = [read_task(f"a={colours}"), read_task(f"a={colours}")]
    with pytest.raises(InvalidConfigError, match='Two tasks are called "a"'):
        run(make_config(), data=data)
    with pytest.raises(InvalidConfigError, match="evenly between 2 tasks"):
        run(make_config(batch_size=5), data=[read_task(f"{n}={colours}") for n in "ab"])
    run(make_config(steps=1, tune="encoder", head="linear"), "tuned")
    with pytest.raises(InvalidConfigError, match="was finetuned as a whole already"):
        finetune(make_config(), Finetuning(model=str(tmp_path / "tuned"), tasks=data[:1], out=tmp_path / "x"))
    assert not (tmp_path / "x").exists()
    for place in ({"out": colours / "run"}, {"out": tmp_path / "x", "cache": colours}):
        with pytest.raises(InvalidConfigError, match="the data folder"):
            Finetuning(model=str(base), tasks=data[:1], **place)


def test_another_model_or_other_images_are_no_continuation(run, base, colours, make_config, tmp_path):
    run(make_config(steps=2))
    with pytest.raises(InvalidConfigError, match="on the encoder"):
        run(make_config(steps=2), data=[read_task(f"colours={colours}", images=8)])
    with pytest.raises(InvalidConfigError, match="validated on 16"):
        run(make_config(steps=2), data=[read_task(f"colours={colours}", colours / "train")])
