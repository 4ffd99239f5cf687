"""Two real processes: the losses of one, and one folder."""

import json
import os
from pathlib import Path

import pytest
import torch
from quick_processes import run_ranks

import iwm
from iwm.finetuning.folders import read_task
from iwm.finetuning.run import Finetuning, finetune

ROOT = Path(__file__).parents[2]


def test_two_processes_are_one(base, colours, make_config, tmp_path):
    data = [f"{name}={colours}" for name in ("a", "b")]
    config = make_config(steps=4, batch_size=8, monitor_every=2, checkpoint_every=2)
    plan = Finetuning(model=str(base), tasks=[read_task(d) for d in data], out=tmp_path / "one")
    result = finetune(config, plan)
    words = [
        "--model", base, "--data", data[0], "--data", data[1], "--out", tmp_path / "two", "--tune", "predictor",
        "--recipe", "predictor", "--steps", 4, "--batch-size", 8, "--device", "cpu", "--precision", "float32",
        "--data.workers", 0, "--data.crop_scale", "[0.3, 1.0]", "--eval-every", 2, "--checkpoint-every", 2,
        "--log-every", 1, "--drop-path", 0, "--augment.rand_augment", "", "--augment.mixup", 0,
        "--augment.cutmix", 0, "--augment.erasing", 0, "--augment.label_smoothing", 0, "--optim.lr", 1e-3,
        "--optim.warmup", 0, "--optim.weight_decay", 0.04, "--optim.weight_decay_end", 0.4,
    ]  # fmt: skip
    child = run_ranks(2, "-m", "iwm.finetuning", *words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert child.returncode == 0, child.stderr
    assert [child.stdout.count(words) for words in ("Recipe ", "Use it:")] == [1, 1]
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for x, y in zip(one, two, strict=True):
        for name in ("step", "loss", "loss/a", "loss/b", "lr", "grad_norm"):
            assert x[name] == pytest.approx(y[name], rel=1e-4), name
    other = json.loads((tmp_path / "two" / "result.json").read_text())
    assert other["best_step"] == result.best_step
    first, second = (iwm.load(str(tmp_path / n), task="a").heads["a-b"].state_dict() for n in ("one", "two"))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=2e-3, rtol=2e-3)
