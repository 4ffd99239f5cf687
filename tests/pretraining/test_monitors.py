"""What is measured during training against plain arithmetic, and what a collapse does to a run."""

import json
import math
import os
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from iwm.errors import TrainingError
from iwm.evaluation import mrr
from iwm.pretraining import monitors
from iwm.pretraining.monitors import effective_rank, monitor
from iwm.pretraining.run import pretrain
from iwm.pretraining.task import PretrainTask
from iwm.pretraining.views import make_views
from iwm.training.config import OptimConfig
from iwm.training.data import CropDataset, StepSampler
from iwm.training.run_folder import RunFolder
from iwm.world_model import WorldModel

SCORES = {"effective_rank", "cosine", "online_apply_mrr", "online_undo_mrr"}
TIMING = {"images_per_second", "data_wait", "memory_mb"}


def _crops(count=10, size=32):
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(coarse, size=(size, size), mode="bilinear") * 255).to(torch.uint8)


def _records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def _model(make_config, **changes):
    """A model whose latents and predictions differ from image to image and action to action."""
    torch.manual_seed(3)
    model = WorldModel(make_config(**changes).model)
    for name, weights in model.named_parameters():
        torch.nn.init.normal_(weights, std=0.5 if "action" in name or "modulation" in name else 0.2)
    return model


@pytest.mark.parametrize(("rank", "width"), [(1, 8), (2, 8), (7, 16), (8, 8)])
def test_effective_rank_of_equal_axes_is_their_number(rank, width):
    axes = torch.linalg.qr(torch.randn(width, width))[0][:rank]
    assert effective_rank(torch.cat((axes, -axes))) == pytest.approx(rank, rel=1e-4)
    # Neither the place nor the scale matters.
    assert effective_rank(5 + 0.01 * torch.cat((axes, -axes))) == pytest.approx(rank, rel=1e-3)


def test_effective_rank_of_points_on_a_line_and_of_a_single_point_is_one():
    line = torch.outer(torch.randn(20), torch.randn(6)) + torch.randn(6)
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.ones(20, 6)) == 1.0


def test_effective_rank_is_the_exponential_of_the_entropy():
    axes = torch.eye(4)[:2] * torch.tensor([[3.0], [1.0]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.cat((axes, -axes))) == pytest.approx(math.exp(entropy), rel=1e-5)
    vectors = torch.randn(30, 12)
    centred = vectors.double().numpy() - vectors.double().numpy().mean(0)
    share = np.sqrt(np.linalg.eigvalsh(centred.T @ centred).clip(0))
    share = share / share.sum()
    assert effective_rank(vectors) == pytest.approx(float(np.exp(-(share * np.log(share)).sum())), rel=1e-4)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_scores_are_those_of_the_evaluation(make_config, symmetric):
    model, crops = _model(make_config, symmetric=symmetric), _crops()
    views = make_views(crops, model.config.actions, seed=0, keys=[(0, i) for i in range(10)])
    scores = monitor(model, crops, views.target)
    assert scores.keys() == SCORES
    distribution = "full" if symmetric else "jitter"
    for protocol, drawn in (("apply", distribution), ("undo", "full")):
        report = mrr(model, crops[:8], bank_size=32, protocol=protocol, distribution=drawn)
        assert scores[f"online_{protocol}_mrr"] == report.mrr
        assert report.images == 8
    assert report.overall.queries == 8 * 32
    clean, moved = (model.embed(images).double().numpy() for images in (crops, views.target))
    clean, moved = clean - clean.mean(0), moved - moved.mean(0)
    norms = np.linalg.norm(clean, axis=1) * np.linalg.norm(moved, axis=1)
    assert scores["cosine"] == pytest.approx(float(((clean * moved).sum(1) / norms).mean()), abs=1e-4)
    assert scores["effective_rank"] == pytest.approx(effective_rank(model.embed(crops)), rel=1e-4)


def test_untouched_views_are_all_alike_and_other_images_are_not(make_config):
    model, crops = _model(make_config), _crops()
    assert monitor(model, crops, crops.float() / 255)["cosine"] == pytest.approx(1, abs=1e-5)
    assert monitor(model, crops, crops.float().roll(1, 0) / 255)["cosine"] < 0.5


def test_a_large_batch_costs_no_more_than_its_beginning(make_config, monkeypatch):
    monkeypatch.setattr(monitors, "IMAGES", 6)
    monkeypatch.setattr(monitors, "BANKS", 3)
    monkeypatch.setattr(monitors, "BANK_SIZE", 4)
    model, crops = _model(make_config), _crops()
    assert monitor(model, crops, crops.float() / 255) == monitor(model, crops[:6], crops[:6].float() / 255)


def test_the_floor_that_is_documented():
    ranks = range(1, monitors.BANK_SIZE + 1)
    assert sum(1 / rank for rank in ranks) / monitors.BANK_SIZE == pytest.approx(0.127, abs=5e-4)


def test_a_run_logs_the_scores_of_its_teacher_on_its_last_batch(make_config, photos, tmp_path):
    config = make_config(steps=4, monitor_every=2, symmetric=True, optim=OptimConfig(lr=0.02))
    pretrain(config, [photos], tmp_path)
    records = _records(tmp_path)
    assert [record.keys() >= SCORES for record in records] == [False, True, False, True]
    task = PretrainTask(config)
    task.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True)["task"])
    paths = sorted(photos.rglob("*.jpg"))
    keys = list(StepSampler(12, config))[-1]
    dataset = CropDataset(paths, 32, config)
    crops = torch.stack([dataset[key][0] for key in keys])
    for protocol in ("apply", "undo"):
        expected = mrr(task.model, crops, bank_size=32, protocol=protocol).mrr
        assert records[-1][f"online_{protocol}_mrr"] == pytest.approx(expected, rel=1e-6)
    embedded = task.model.embed(crops)
    assert records[-1]["effective_rank"] == pytest.approx(effective_rank(embedded), rel=1e-5)


def test_monitoring_changes_nothing_in_the_training(make_config, photos, tmp_path):
    for every in (0, 1):
        config = make_config(steps=5, monitor_every=every, masks=make_config().masks)
        pretrain(config, [photos], tmp_path / str(every))
    plain, watched = (_records(tmp_path / str(every)) for every in (0, 1))
    assert all(record.keys() >= SCORES for record in watched)
    assert all(not record.keys() & SCORES for record in plain)
    dropped = SCORES | TIMING
    assert [{k: v for k, v in r.items() if k not in dropped} for r in watched] == [
        {k: v for k, v in r.items() if k not in dropped} for r in plain
    ]
    assert (tmp_path / "0" / "model.safetensors").read_bytes() == (
        tmp_path / "1" / "model.safetensors"
    ).read_bytes()


@pytest.fixture
def black(tmp_path):
    """Black images: no jitter tells their views apart, so that all targets are the same."""
    folder = tmp_path / "black"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (40, 40)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("warmup", "below", "step", "words"),
    [
        (0.1, 0.02, 37, r"There is no checkpoint yet\."),
        (0.1, 0.05, 28, r"There is no checkpoint yet\."),
        (0.8, 0.02, 40, r"The checkpoint of step 40 in .*run may be collapsed already; every step had signs of it\."),
    ],
)  # fmt: skip
def test_a_collapse_after_the_warmup_stops_the_run(make_config, black, tmp_path, warmup, below, step, words):
    """The running mean of a spread of nothing falls by a tenth a step, from 1."""
    config = make_config(
        steps=50, collapse_below=below, optim=OptimConfig(warmup=warmup), checkpoint_every=10, monitor_every=0
    )
    spread = 0.9 ** (step + 1)
    with pytest.raises(
        TrainingError,
        match=rf"^Collapse at step {step}: target tokens differ between images by a standard deviation of "
        rf"{spread:.4f} only \(collapse_below is {below}; at 0 nothing is looked for\)\. {words}$",
    ):
        pretrain(config, [black], tmp_path / "run")
    records = _records(tmp_path / "run")
    assert [record["step"] for record in records] == list(range(1, step + 1))
    assert max(record["target_std"] for record in records) < 1e-6


def _collapse_from(monkeypatch, first):
    """Target tokens that are all alike from a step on."""
    forward = PretrainTask.forward

    def collapsed(self, crops, step, keys):
        loss, _ = forward(self, crops, step, keys)
        return loss, {"target_std": torch.tensor(0.5 if step < first else 0.0)}

    monkeypatch.setattr(PretrainTask, "forward", collapsed)


def test_the_checkpoint_before_a_collapse_stays(make_config, photos, tmp_path, monkeypatch):
    _collapse_from(monkeypatch, 24)
    config = make_config(steps=80, optim=OptimConfig(warmup=0.1), checkpoint_every=10, monitor_every=0)
    with pytest.raises(
        TrainingError, match=r"^Collapse at step 5\d: .* The checkpoint of step 20 in .*run is good\.$"
    ):
        pretrain(config, [photos], tmp_path / "run")
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 20


def test_a_checkpoint_waits_for_a_step_without_signs_of_a_collapse(
    make_config, photos, tmp_path, monkeypatch
):
    saved = []
    forward = PretrainTask.forward

    def dips(self, crops, step, keys):
        loss, _ = forward(self, crops, step, keys)
        return loss, {"target_std": torch.tensor(0.0 if step in (9, 10) else 0.5)}

    monkeypatch.setattr(PretrainTask, "forward", dips)
    save = RunFolder.save_state
    monkeypatch.setattr(
        RunFolder, "save_state", lambda run, state: saved.append(state["step"]) or save(run, state)
    )
    config = make_config(steps=30, optim=OptimConfig(warmup=0.0), checkpoint_every=10, monitor_every=0)
    assert pretrain(config, [photos], tmp_path / "run")
    assert saved == [12, 20, 30]


def test_a_run_that_goes_on_remembers_the_spread_and_what_was_sound(
    make_config, photos, tmp_path, monkeypatch
):
    """Stopped while target tokens were alike already, it stops where it would have stopped."""
    _collapse_from(monkeypatch, 24)
    after_step = PretrainTask.after_step

    def stopped(self, step):
        if step == 39:
            os.kill(os.getpid(), signal.SIGINT)
        return after_step(self, step)

    config = make_config(steps=80, optim=OptimConfig(warmup=0.1), checkpoint_every=10, monitor_every=0)
    with pytest.raises(TrainingError) as whole:
        pretrain(config, [photos], tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretrainTask, "after_step", stopped)
        assert not pretrain(config, [photos], tmp_path / "run")
    state = tmp_path / "run" / "state.pt"
    earlier = torch.load(state, weights_only=True)
    with pytest.raises(TrainingError) as resumed:
        pretrain(config, [photos], tmp_path / "run")
    assert (
        str(resumed.value).partition("The checkpoint")[0] == str(whole.value).partition("The checkpoint")[0]
    )
    assert str(resumed.value).endswith(
        f"The checkpoint of step 40 in {tmp_path / 'run'} may be collapsed already; the last step without signs of it was 24."
    )
    del earlier["running"], earlier["last_sound"]  # As versions before wrote it.
    torch.save(earlier, state)
    with pytest.raises(
        TrainingError, match=r"^Collapse at step 77: .*The checkpoint of step 40 in .*run is good"
    ):
        pretrain(config, [photos], tmp_path / "run")


def test_a_collapse_is_let_be_where_that_is_asked_for(make_config, black, photos, tmp_path):
    optim = OptimConfig(warmup=0.0)
    config = make_config(steps=45, collapse_below=0.0, optim=optim, monitor_every=0)
    assert pretrain(config, [black], tmp_path / "black run")
    config = make_config(steps=45, collapse_below=0.02, optim=optim, monitor_every=0)
    assert pretrain(config, [photos], tmp_path / "run")
