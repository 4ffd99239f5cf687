"""`iwm finetune` and `iwm eval finetune|segment|probe`, and what they say about bad input."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from labelled_files import write_class_folder, write_segmentation_folder
from PIL import Image

import iwm
from iwm.model_folder import read_config

SHORT = [
    "--steps",
    "2",
    "--batch-size",
    "4",
    "--device",
    "cpu",
    "--precision",
    "float32",
    "--data.workers",
    "0",
]


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """A class folder with `train` and `val`."""
    root = tmp_path_factory.mktemp("labelled") / "colours"
    write_class_folder(root / "train")
    write_class_folder(root / "val", count=4, seed=1)
    return root


@pytest.fixture(scope="session")
def masked(tmp_path_factory):
    """Images and masks, `train` and `val`."""
    root = tmp_path_factory.mktemp("masked") / "roads"
    write_segmentation_folder(root / "train")
    write_segmentation_folder(root / "val", count=3, seed=1)
    return root


@pytest.fixture
def finetuned(command, model_folder, labelled, tmp_path):
    """Runs `iwm finetune` for two steps; returns its outcome and the folder."""

    def run(*words, data=labelled, out="run"):
        folder = tmp_path / out
        return command(
            "finetune", "--model", model_folder, "--data", data, "--out", folder, *SHORT, *words
        ), folder

    return run


def test_a_run_prints_its_result_and_how_to_use_it(finetuned, command, labelled):
    outcome, folder = finetuned("--license", "CC0-1.0")
    assert outcome.code == 0, outcome.err
    scores = json.loads((folder / "result.json").read_text())["tasks"][0]["scores"]
    assert f"accuracy {scores['accuracy']:.1%} of 8 images" in outcome.words
    assert "Recipe predictor-small on colours (16 images, 2 classes)" in outcome.words
    assert f'iwm.load("{folder}", task="colours").classify("photo.jpg")' in outcome.out.replace("\n", "")
    assert len(iwm.load(str(folder), task="colours").classify(Image.new("RGB", (50, 40)), topk=1)) == 1
    adapter = read_config(folder).adapters["colours"]
    assert adapter.license == "CC0-1.0"
    assert adapter.recipe["command"].startswith("iwm finetune --data ")
    assert "--precision float32" in adapter.recipe["command"]
    assert adapter.provenance["data"][0]["images"] == 16
    measured = command(*shlex.split(scores["command"])[1:], "--json").json
    assert measured == scores
    again, _ = finetuned("--license", "CC0-1.0")
    assert again.code == 0
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1


def test_overrides_are_typed_and_recorded(finetuned):
    outcome, folder = finetuned(
        "--tune", "none", "--head", "linear", "--optim.lr", "0.5", "--eval-every", "1", "--json"
    )
    assert (outcome.json["tune"], outcome.json["head"], outcome.json["steps"]) == ("none", "linear", 2)
    run = json.loads((folder / "run.json").read_text())
    assert (run["optim"]["lr"], run["monitor_every"], run["epochs"]) == (0.5, 1, 0.0)


def test_tasks_are_measured_beside_each_alone(finetuned, labelled):
    outcome, folder = finetuned("--data", f"again={labelled}", "--single-task-baseline")
    assert outcome.code == 0, outcome.err
    assert outcome.words.count("alone") >= 3
    result = json.loads((folder / "result.json").read_text())
    assert [t["task"] for t in result["tasks"]] == ["colours", "again"]
    assert all(t["single"] is not None for t in result["tasks"])


def test_tasks_alone_are_not_trained_on_another_schedule(finetuned, labelled):
    outcome, folder = finetuned("--data", f"again={labelled}", "--single-task-baseline", "--patience", "2")
    assert "Leave out --patience, or --single-task-baseline" in outcome.error
    assert not folder.exists()


@pytest.mark.parametrize("tune", ["encoder", "all", "none"])
def test_three_tasks_are_tuned_any_way_by_their_own_recipe(finetuned, labelled, tune):
    words = ("--batch-size", "6", "--data", f"b={labelled}", "--data", f"c={labelled}")
    outcome, folder = finetuned("--tune", tune, *words)
    assert outcome.code == 0, outcome.err
    recipe = {"encoder": "multitask-encoder", "all": "multitask-end-to-end", "none": "attentive"}[tune]
    assert f"Recipe {recipe}-small on" in outcome.words
    run = json.loads((folder / "run.json").read_text())
    assert (run["encoder_lr_scale"], run["layer_decay"]) == {
        "encoder": (1.0, 0.75), "all": (0.1, 0.9), "none": (1.0, 1.0)
    }[tune]  # fmt: skip
    outcome, _ = finetuned("--tune", tune, *words[2:], out="other")
    assert "batch_size 4 cannot be split evenly between 3 tasks" in outcome.words


def test_segmentation_is_trained_and_measured_again(finetuned, command, masked):
    outcome, folder = finetuned("--task", "segmentation", data=masked)
    assert outcome.code == 0, outcome.err
    assert '.segment("photo.jpg")' in outcome.out
    scores = json.loads((folder / "result.json").read_text())["tasks"][0]["scores"]
    words = shlex.split(scores["command"])[1:]
    assert words[:2] == ["eval", "segment"]
    assert command(*words, "--json").json == scores
    assert "mIoU" in command(*words).out


def test_labels_from_elsewhere_are_part_of_the_command(finetuned, command, masked, tmp_path):
    shutil.copytree(masked, tmp_path / "roads")
    labels = tmp_path / "names.txt"
    for folder in ("train", "val"):
        (tmp_path / "roads" / folder / "labels.txt").replace(labels)
    outcome, folder = finetuned(
        "--task",
        "segmentation",
        "--labels",
        labels,
        "--ignore",
        "9",
        "--ignore",
        "8",
        data=tmp_path / "roads",
    )
    assert outcome.code == 0, outcome.err
    scores = json.loads((folder / "result.json").read_text())["tasks"][0]["scores"]
    assert f"--labels {labels} --ignore 9 --ignore 8" in scores["command"]
    assert command(*shlex.split(scores["command"])[1:], "--json").json == scores


def test_a_held_out_tenth_is_measured_again(finetuned, command, labelled, tmp_path):
    shutil.copytree(labelled / "train", tmp_path / "whole")
    outcome, folder = finetuned(data=tmp_path / "whole")
    assert "Recipe predictor-small on whole (14 images, 2 classes)" in outcome.words
    scores = json.loads((folder / "result.json").read_text())["tasks"][0]["scores"]
    assert scores["images"] == 2
    assert scores["command"].endswith(" --held-out")
    assert command(*shlex.split(scores["command"])[1:], "--json").json == scores


def test_a_probe_keeps_nothing_and_repeats_itself(command, model_folder, labelled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    words = (
        "eval",
        "probe",
        "--model",
        model_folder,
        "--train",
        labelled,
        "--head",
        "linear",
        "--epochs",
        "2",
    )
    first = command(*words, "--json").json
    assert (first["images"], first["train_images"], first["head"], first["marginalise"]) == (
        8,
        16,
        "linear",
        0,
    )
    assert command(*shlex.split(first["command"])[1:], "--json").json == first
    averaged = command(*words, "--marginalise", "2", "--json").json
    assert averaged["marginalise"] == 2
    assert sorted(tmp_path.rglob("*")) == before
    said = tmp_path / "answers.json"
    assert command(*words, "--answers", said, "--json").json == first
    listed = json.loads(said.read_text())
    assert {one["class"] for one in listed} == {one.name for one in (labelled / "val").iterdir()}
    assert sum(one["class"] == one["answer"] for one in listed) / len(listed) == first["accuracy"]
    printed = command(*words).words
    assert "linear probe without batch norm on encodings: accuracy" in printed
    assert f"finetuned {first['cost']['trained']:,} parameters" in printed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_probe_that_is_stopped_reports_nothing(environment, model_folder, labelled, tmp_path, number):
    scratch, said = tmp_path / "scratch", tmp_path / "answers.json"
    scratch.mkdir()
    words = ["eval", "probe", "--model", model_folder, "--train", labelled, "--head", "linear", "--json"]
    child = subprocess.Popen(
        [sys.executable, "-m", "iwm", *map(str, words), "--epochs", "10000000", "--answers", str(said)],
        env=environment | {"TMPDIR": str(scratch)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while (
        not list(scratch.glob("*/run/metrics.jsonl")) and child.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    child.send_signal(number)
    printed, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert printed == "Stopped; nothing was measured. The same command starts again.\n"
    assert "Traceback" not in errors
    assert not said.exists()
    assert list(scratch.iterdir()) == []


def test_a_probe_says_whether_it_has_a_batch_norm(finetuned, command, model_folder, labelled):
    words = ("eval", "probe", "--model", model_folder, "--train", labelled, "--epochs", "1", "--batch-norm")
    normed = command(*words, "--head", "linear", "--json").json
    assert normed["batch_norm"]
    assert command(*shlex.split(normed["command"])[1:], "--json").json == normed
    assert "linear probe with batch norm on encodings" in command(*words, "--head", "linear").words
    assert "batch_norm goes with --head linear" in command(*words, "--head", "attentive").error
    outcome, folder = finetuned("--tune", "none", "--head", "linear", "--batch-norm", "true")
    assert "linear probe with batch norm" in outcome.words
    assert json.loads((folder / "result.json").read_text())["batch_norm"]
    outcome, _ = finetuned("--tune", "encoder", out="other")
    assert "encoder finetuned, linear head without batch norm" in outcome.words


def test_a_model_that_is_not_there_is_said_before_the_data_is_read(command, labelled, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("iwm.finetuning.folders.read_task", lambda *a, **k: read.append(a))
    words = ("--data", labelled, "--out", tmp_path / "run")
    assert (
        'No model, folder or repository is called "nope"'
        in command("finetune", "--model", "nope", *words).error
    )
    untrained = command("finetune", "--model", "iwm-equi-18-384", *words).error
    assert 'Nobody has published weights for "iwm-equi-18-384" yet' in untrained
    (tmp_path / "empty").mkdir()
    assert "config.json" in command("finetune", "--model", tmp_path / "empty", *words).error
    assert read == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("rank", "times"), [("0", 1), ("1", 0)])
def test_of_several_processes_the_first_says_the_recipe(finetuned, monkeypatch, rank, times):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("iwm.finetuning.run.finetune", lambda *a, **k: None)
    outcome, _ = finetuned()
    assert outcome.words.count("Recipe predictor-small") == times


def _other(labelled, folder):
    shutil.copytree(labelled, folder)
    return folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tune", "decoder"], 'tune is "decoder". Did you mean "encoder"?'),
        (["--task", "detection"], 'task is "detection"'),
        (["--recipe", "predictr"], 'No recipe is called "predictr". Did you mean "predictor"'),
        (["--single-task-baseline"], "give several --data"),
        (["--val", "other=x"], "--val other=x belongs to no --data"),
        (["--ignore", "255"], "--labels and --ignore are about masks; add --task segmentation"),
        (["--optim.rate", "1"], "No option --optim.rate"),
        (["--init", "random", "--tune", "none"], "init random is about the predictor"),
        (["--head", "upernet"], "head upernet does not do classification"),
        (["--epochs", "3"], "--steps and --epochs both say how long the run is; leave one of them out"),
        (["--resume"], "holds no run to resume"),
        (["--steps", "2", "--data", "missing"], "No such folder: missing"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_bad_words_are_refused_before_anything_is_written(finetuned, words, said):
    outcome, folder = finetuned(*words)
    assert said in outcome.err.replace("\n", " ")
    assert outcome.code == 1
    assert not folder.exists()


def test_a_run_is_not_written_among_the_photographs(finetuned, command, labelled, model_folder, tmp_path):
    copy = _other(labelled, tmp_path / "run")
    before = sorted(copy.rglob("*"))
    outcome, _ = finetuned(data=copy)
    assert f"--out {copy} is the data folder {copy}; write somewhere else" in outcome.error
    words = ("--model", model_folder, "--train", copy, "--cache", copy / "cache")
    assert f"--cache {copy / 'cache'} is inside the data folder" in command("eval", "probe", *words).error
    assert sorted(copy.rglob("*")) == before


def test_a_probe_of_a_folder_with_an_equals_sign(command, model_folder, labelled, tmp_path):
    copy = _other(labelled, tmp_path / "x=1")
    outcome = command("eval", "probe", "--model", model_folder, "--train", copy / "train", "--epochs", "1")
    assert outcome.code == 0, outcome.err


def test_bad_data_is_refused_before_anything_is_written(finetuned, labelled, tmp_path):
    other = _other(labelled, tmp_path / "other")
    (other / "train" / "green").mkdir()
    outcome, folder = finetuned(data=other)
    assert "No images in" in outcome.err
    shutil.rmtree(other / "train" / "green")
    first = sorted((other / "train").rglob("*.png"))[0]
    first.write_text("no image")
    outcome, _ = finetuned(data=other)
    assert "1 of 16 images" in outcome.err
    assert "--skip-unreadable" in outcome.err
    assert not folder.exists()
    outcome, _ = finetuned("--skip-unreadable", data=other)
    assert outcome.code == 0
    assert "15 images, 2 classes" in outcome.words


def test_measuring_refuses_other_tasks_and_labels(finetuned, command, labelled, masked, tmp_path):
    _, folder = finetuned()
    strange = write_class_folder(tmp_path / "strange", ("blue", "pink"), count=1)
    assert (
        "classes that the task does not have: pink. It has blue, red."
        in command("eval", "finetune", "--model", folder, "--data", strange).error
    )
    assert (
        'no task "colour". Did you mean "colours"?'
        in command("eval", "finetune", "--model", folder, "--data", labelled, "--task", "colour").error
    )
    assert (
        "has no task of segmentation" in command("eval", "segment", "--model", folder, "--data", masked).error
    )
    assert (
        "has several tasks: imagenette, caltech101, clothing. Choose one"
        in command("eval", "finetune", "--model", "iwm-tiny", "--data", labelled).error
    )
