"""Ablations: every arm's command, and what is read from its results."""

import contextlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from PIL import Image

OPTIONS = Namespace(steps=40, seed=0, data=["photos"], out=Path("out"), held_out="val", neighbours="train")


def test_every_arm_changes_what_its_name_says_and_nothing_else(ablate):
    folders = {}
    for name in ablate.ABLATIONS:
        arms = ablate.arms_of(name, OPTIONS)
        assert len({arm.folder for arm in arms}) == len(arms)
        for arm in arms:
            config = arm.config()
            assert (config.model.preprocess.size, config.batch_size) == (64, 16)
            # The same folder is the same run, whatever the ablation it belongs to.
            assert folders.setdefault(arm.folder, config) == config
            assert "pretrain" not in arm.words(OPTIONS)
    by_name = {a.name: a.config() for a in ablate.arms_of("layout", OPTIONS)}
    assert by_name["append, feature (the paper's)"].model.predictor.layout == "append"
    assert by_name["append, feature (the paper's)"].model.predictor.conditioning == "feature"
    assert by_name["inplace, adaln"] == folders[Path("out/base-40-seed0")]
    masks = {a.name: a.config().masks.unmasked for a in ablate.arms_of("masking", OPTIONS)}
    assert masks == {
        "none in 20 % of the steps": 0.2,
        "in every step": 0.0,
        "none in 60 %": 0.6,
        "never": 1.0,
    }


def test_the_words_of_an_arm_are_its_config(ablate, monkeypatch):
    """The command that is printed asks for the very run whose step is timed."""
    from iwm.cli.main import main
    from iwm.pretraining import run

    asked = []
    monkeypatch.setattr(run, "pretrain", lambda config, *rest, **options: asked.append(config) or True)
    for arm in ablate.arms_of("augmentation", OPTIONS):
        monkeypatch.setattr(sys, "argv", ["iwm", "pretrain", *arm.words(OPTIONS)])
        with contextlib.suppress(SystemExit):
            main()
        timed = arm.config().replace(steps=40, checkpoint_every=2000, monitor_every=1)
        assert asked.pop() == timed


def test_accuracies_are_measured_and_shown_where_they_are_asked_for(ablate, monkeypatch, tmp_path):
    """Every command is one that `iwm` understands; the words of a table's line are read from their results."""
    from typer.testing import CliRunner

    from iwm.cli.main import app

    scores = {"overall": {"mrr": 0.5}, "per_transformation": {"jitter": {"mrr": 0.25}}}
    said = json.dumps(scores | {"accuracy": 0.125, "average": 0.75})
    called = []
    monkeypatch.setattr(ablate, "_run", lambda words, threads: called.append(words) or said)
    tables = []
    for tasks in (False, True):
        options = Namespace(**vars(OPTIONS) | {"tasks": tasks, "images": 3, "out": tmp_path / str(tasks)})
        arm = ablate.arms_of("depth", options)[0]
        arm.folder.mkdir(parents=True)
        result = {arm.name: ablate.train_and_measure(arm, options, 1)}
        online = {"step": 40, "online_apply_mrr": 0.5, "online_undo_mrr": 0.5}
        (arm.folder / "metrics.jsonl").write_text(json.dumps(online))
        tables.append(ablate.table([arm], result, {arm.name: 1.0}, 40).splitlines())
    assert (
        [len(lines[0].split("|")) for lines in tables]
        == [len(lines[2].split("|")) for lines in tables]
        == [11, 14]
    )
    assert "| 12.5% | 12.5% | 12.5% | 75.0% | 1.00 |" in tables[1][2]
    ablate.draw_tasks([arm], result, tmp_path / "tasks.png")
    with Image.open(tmp_path / "tasks.png") as picture:
        assert picture.size == (990, 495)
    for words in called[5:]:
        command = words[: 2 if words[0] == "eval" else 1]
        shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).output
        if command != ["pretrain"]:
            fields = {"--epochs"}  # Of the recipe, which `iwm finetune` takes without listing them.
            assert all(word in fields or word in shown for word in words if word.startswith("--"))


def test_a_score_is_taken_again_when_its_command_is_another(ablate, monkeypatch, tmp_path):
    said = []

    def run(words, threads):
        said.append(words)
        return json.dumps({"images": words[words.index("--images") + 1] if "--images" in words else ""})

    monkeypatch.setattr(ablate, "_run", run)
    for images, commands in ((3, 5), (3, 1), (4, 4)):  # Training sees for itself what there is to do.
        options = Namespace(**vars(OPTIONS) | {"tasks": False, "images": images, "out": tmp_path})
        arm = ablate.arms_of("depth", options)[0]
        arm.folder.mkdir(exist_ok=True)
        said.clear()
        result = ablate.train_and_measure(arm, options, 1)
        assert len(said) == commands
        assert result["undo"]["images"] == str(images)


def test_curves_are_smoothed_and_read_at_a_step(ablate, tmp_path):
    records = [{"step": step, "online_apply_mrr": step / 100, "loss": 1} for step in range(10, 80, 10)]
    records.insert(3, {"step": 35, "loss": 2})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    points = ablate.readings(tmp_path, "online_apply_mrr")
    smooth = ablate.smooth(points)
    assert smooth[0] == (10, pytest.approx(0.2))
    assert smooth[3] == (40, pytest.approx(0.4))
    assert smooth[6] == (70, pytest.approx(0.6))
    assert ablate.at(points, 70) == pytest.approx(0.6)
    assert ablate.at(points, 45) == pytest.approx(0.3)  # What came later has no part in it.
