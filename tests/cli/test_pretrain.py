"""`iwm pretrain`: whole runs in fresh processes, interrupted and continued as it says."""

import dataclasses
import json
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

import iwm
from iwm.fields import from_dict
from iwm.model_folder import read_config
from iwm.pretraining.config import PretrainConfig
from iwm.pretraining.estimate import estimate
from iwm.pretraining.recipes import find_recipe


def _steps(out):
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(fresh, photos, pretrain_words, tmp_path_factory):
    """A run of four steps in a fresh process: its folder, the words typed, how it ended."""
    out = tmp_path_factory.mktemp("runs") / "new" / "my run"
    words = [
        "pretrain", "--recipe", "iwm-tiny", "--data", photos, "--out", out, "--steps", 4,
        *pretrain_words, "--optim.lr=5e-4", "--model.name", "123", "--data.crop-scale", "[0.5, 1]", "--log-every", 2,
    ]  # fmt: skip
    return out, words, fresh(*words)


def test_a_run_ends_with_a_model_and_what_to_do_with_it(finished, photos):
    out, _, done = finished
    assert done.code == 0, done.err
    load, measure = done.out.splitlines()
    assert load == f'Trained 4 steps. Load it: iwm.load("{out}")'
    assert measure == f"Measure it: iwm eval mrr --model '{out}' --data FOLDER"
    assert "Traceback" not in done.err
    assert _steps(out) == [2, 4]
    model = iwm.load(out)
    assert model.encode(photos / "class0" / "00.jpg").tokens.shape == (1, 16, 32)
    assert (model.config.predictor.width, model.config.predictor.layout) == (32, "inplace")


def test_a_run_records_its_settings_command_and_provenance(finished, photos):
    out, _, _ = finished
    config = from_dict(PretrainConfig, json.loads((out / "run.json").read_text()))
    assert config.model.name == "123"
    assert (config.steps, config.batch_size, config.log_every, config.device) == (4, 4, 2, "cpu")
    assert (config.optim.lr, config.data.crop_scale, config.data.workers) == (5e-4, (0.5, 1.0), 0)
    assert config.masks.unmasked == 0.2
    described = read_config(out)
    assert described.license == "unspecified"
    assert described.recipe["optim"]["lr"] == 5e-4
    assert described.provenance["images"] == 12
    assert described.provenance["images_seen"] == 16
    typed = shlex.split(described.recipe["command"])
    assert described.provenance["processes"] == 1
    assert typed[:6] == ["iwm", "pretrain", "--recipe", "iwm-tiny", "--data", str(photos)]
    for option, value in (("--steps", "4"), ("--optim.lr", "0.0005"), ("--data.crop_scale", "[0.5, 1]")):
        assert typed[typed.index(option) + 1] == value


def test_the_recorded_command_runs_the_same_again(command, finished, tmp_path):
    out, _, _ = finished
    typed = shlex.split(read_config(out).recipe["command"])
    typed[typed.index(str(out))] = str(tmp_path / "again")
    assert command(*typed[1:]).code == 0
    assert (tmp_path / "again" / "run.json").read_bytes() == (out / "run.json").read_bytes()
    assert _steps(tmp_path / "again") == [2, 4]


def test_the_same_command_again_changes_nothing_and_resume_may_add_steps(command, finished):
    out, words, _ = finished
    before = (out / "model.safetensors").read_bytes()
    assert command(*words).code == 0
    assert (out / "model.safetensors").read_bytes() == before
    other = command(*words, "--resume", "--seed", 9).err
    assert "holds a run with other settings: seed was 0, now 9" in other
    done = command(*words, "--resume", "--steps", 6)
    assert (done.code, done.out.splitlines()[-2]) == (0, f'Trained 6 steps. Load it: iwm.load("{out}")')
    assert _steps(out) == [2, 4, 6]
    assert read_config(out).provenance["steps"] == 6
    assert (out / "model.safetensors").read_bytes() != before
    assert "--steps 6" in read_config(out).recipe["command"]
    assert "--resume" not in read_config(out).recipe["command"]


def test_a_folder_called_like_a_zoo_model_is_loaded_by_its_path(
    command, monkeypatch, photos, pretrain_words, tmp_path
):
    monkeypatch.chdir(tmp_path)
    words = ["pretrain", "--recipe", "iwm-tiny", "--data", photos, "--out", "iwm-tiny", "--steps", 1]
    done = command(*words, *pretrain_words)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-2:] == [
        'Trained 1 steps. Load it: iwm.load("./iwm-tiny")',
        "Measure it: iwm eval mrr --model ./iwm-tiny --data FOLDER",
    ]
    assert iwm.load("./iwm-tiny").config.encoder.width == 32
    assert iwm.load("iwm-tiny").config.encoder.width != 32


@pytest.mark.parametrize("options", [[], ["--resume"]], ids=["start", "resume"])
def test_a_folder_that_holds_a_model_is_refused(command, photos, pretrain_words, model_folder, options):
    before = {path.name: path.read_bytes() for path in model_folder.iterdir()}
    words = ["pretrain", "--recipe", "iwm-tiny", "--data", photos, "--out", model_folder, *pretrain_words]
    error = command(*words, *options).error
    assert error == f"Error: {model_folder} holds a model already; choose another --out.\n"
    assert {path.name: path.read_bytes() for path in model_folder.iterdir()} == before


@pytest.mark.parametrize("exists", [False, True])
def test_there_must_be_a_run_to_resume(command, photos, pretrain_words, tmp_path, exists):
    out = tmp_path / "run"
    if exists:
        out.mkdir()
    words = ["pretrain", "--recipe", "iwm-tiny", "--data", photos, "--out", out, *pretrain_words]
    error = command(*words, "--resume").error
    assert error == f"Error: {out} holds no run to resume; leave --resume out to start one.\n"
    assert out.exists() == exists
    assert not exists or not list(out.iterdir())


def test_several_data_folders(command, photos, pretrain_words, tmp_path):
    out = tmp_path / "run"
    folders = ["--data", photos / "class0", "--data", photos / "class1"]
    words = ["pretrain", "--recipe", "iwm-tiny-inv", *folders, "--out", out, "--steps", 1, *pretrain_words]
    assert command(*words).code == 0
    described = read_config(out)
    assert (described.name, described.predictor.conditioning) == ("iwm-tiny-inv", "none")
    assert described.provenance["images"] == 12
    typed = shlex.split(described.recipe["command"])
    assert [typed[i + 1] for i, word in enumerate(typed) if word == "--data"] == [
        str(photos / "class0"), str(photos / "class1")
    ]  # fmt: skip


def test_ctrl_c_leaves_a_checkpoint_and_the_command_to_go_on(
    command, environment, photos, pretrain_words, tmp_path
):
    out = tmp_path / "my run"
    words = ["pretrain", "--recipe", "iwm-tiny", "--data", photos, "--out", out, "--steps", 300]
    words += [*pretrain_words, "--log-every", 1, "--checkpoint-every", 1000]
    child = subprocess.Popen(
        [sys.executable, "-m", "iwm", *map(str, words)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not (out / "metrics.jsonl").exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    printed, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert "Traceback" not in errors
    left = read_config(out).provenance["steps"]
    assert 0 < left < 300
    assert iwm.load(out).config.encoder.width == 32
    told = re.fullmatch(
        r"Stopped; the checkpoint is in (.+)\. Continue: (iwm pretrain .+ --resume)\n", printed
    )
    assert told[1] == str(out)
    assert command(*shlex.split(told[2])[1:]).code == 0
    assert read_config(out).provenance["steps"] == 300
    assert _steps(out) == list(range(1, 301))


def _numbers(text):
    return [float(number.replace(",", "")) for number in re.findall(r"[\d,]*\d(?:\.\d+)?(?:e\+\d+)?", text)]


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("iwm-equi-18-384", []),
        ("iwm-tiny", ["--deadline", "2"]),
        ("iwm-tiny-inv", ["--out", "run"]),
    ],
)
def test_a_dry_run_prints_the_estimate_needs_nothing_and_writes_nothing(
    command, monkeypatch, tmp_path, recipe, options
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    done = command("pretrain", "--recipe", recipe, "--dry-run", *options)
    assert (done.code, done.err) == (0, "")
    lines = [line.split(maxsplit=1) for line in done.out.replace("world model ", "world_model ").splitlines()]
    shown = {name: _numbers(text) for name, text in lines}
    config = find_recipe(recipe)
    e = estimate(config)
    hours = 2.0 if "--deadline" in options else 24.0
    assert shown["parameters"] == pytest.approx([e.encoder / 1e6, e.predictor / 1e6], abs=0.051)
    assert shown["run"] == [config.steps, config.batch_size, config.steps * config.batch_size]
    flops = e.flops_per_image
    assert shown["FLOPs"] == pytest.approx([flops / 1e9, flops * e.images], rel=5e-3)
    assert shown["visible"] == [round(100 * e.visible)]
    assert shown["world_model"] == pytest.approx([e.predictor_share], abs=0.0051)
    memory = [e.weights_bytes / 2**30, e.activation_bytes / 2**30]
    assert shown["memory"][:2] == pytest.approx(memory, abs=0.051)
    pace = e.images / (hours * 3600)
    # As they are printed: whole images, and two decimals of TFLOP/s.
    assert shown["pace"] == [float(f"{pace:.0f}"), hours, float(f"{pace * flops / 1e12:.2f}")]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_as_json(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = command("pretrain", "--dry-run", "--json", "--deadline", 2).json
    e = estimate(find_recipe("iwm-tiny"))
    pace = {
        "deadline_hours": 2.0,
        "images_per_second": e.images / 7200,
        "processes": 1,
        "device": shown["device"],
    }
    assert shown == dataclasses.asdict(e) | pace
    refused = command("pretrain", "--data", "x", "--json")
    assert (refused.code, "--json goes with --dry-run" in refused.words) == (2, True)


def test_a_dry_run_takes_overrides_and_the_processes_of_torchrun(command, monkeypatch, pretrain_words):
    words = ["pretrain", "--recipe", "iwm-tiny", "--dry-run", "--steps", 30, *pretrain_words]
    alone = command(*words).out
    assert "30 steps of 4: 120 images" in alone
    assert "0.0 M encoder" in alone
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "(4 processes, accumulate 1)" in " ".join(command(*words).out.split())
    assert "No option --model.encoder.dept" in command(*words, "--model.encoder.dept", 3).error
    assert "clean is 2.0" in command(*words, "--clean", 2).error


def test_a_dry_run_plans_for_a_machine_that_is_not_here(command, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("COLUMNS", "200")
    words = ["pretrain", "--recipe", "iwm-tiny", "--dry-run", "--processes", 32, "--batch-size", 32000]
    planned = command(*words, "--device", "cuda")
    assert (planned.code, planned.err) == (0, "")
    assert "device       cuda, which is not here\n" in planned.out
    assert "(32 processes, accumulate 1)" in planned.out
    here = command(*words, "--device", "cpu").out
    assert "device       cpu\n" in here
    # On a CPU, attention keeps its matrices.
    memory = [
        _numbers(next(r for r in out.splitlines() if r.startswith("memory")))[1]
        for out in (planned.out, here)
    ]
    assert memory[0] < memory[1]


def test_how_many_processes_train_is_not_an_option_of_a_run(command, photos, tmp_path):
    words = ["pretrain", "--recipe", "iwm-tiny", "--data", photos, "--out", tmp_path / "run"]
    refused = command(*words, "--processes", 2)
    assert (refused.code, "--processes goes with --dry-run" in refused.words) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_a_deadline_of_nothing_is_refused(command):
    shown = command("pretrain", "--recipe", "iwm-tiny", "--dry-run", "--deadline", 0)
    assert (shown.code, "Invalid value for '--deadline'" in shown.words) == (2, True)


@pytest.mark.parametrize("given", [[], ["--out", "run"]])
def test_data_is_asked_for(command, tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    shown = command("pretrain", "--recipe", "iwm-tiny", *given)
    assert (shown.code, shown.out) == (2, "")
    assert "Missing option '--data'" in shown.words
    assert list(tmp_path.iterdir()) == []


def test_the_run_folder_has_a_name_where_none_is_given(
    command, tmp_path, monkeypatch, photos, pretrain_words
):
    monkeypatch.chdir(tmp_path)
    words = ["pretrain", "--recipe", "iwm-tiny", "--data", photos, "--steps", 2, *pretrain_words]
    assert command(*words, "--dry-run").code == 0
    assert list(tmp_path.iterdir()) == []
    shown = command(*words)
    assert shown.code == 0
    assert 'Load it: iwm.load("runs/iwm-tiny")' in shown.words
    assert iwm.load("runs/iwm-tiny").config.recipe["command"].count("--out runs/iwm-tiny") == 1
    assert "holds a run with other settings: seed was 0, now 1" in command(*words, "--seed", 1).error


def test_a_world_model_for_a_frozen_encoder_of_a_file(command, photos, pretrain_words, tmp_path):
    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, class_token=False, global_pool="avg"
    )
    torch.nn.init.normal_(vit.pos_embed)
    file, out = tmp_path / "my vit.safetensors", tmp_path / "run"
    save_file(vit.state_dict(), file)
    words = ["pretrain", "--recipe", "iwm-tiny", "--data", photos, "--out", out, "--steps", 2]
    words += pretrain_words
    words += ["--init-encoder", file, "--freeze-encoder", "--model.predictor.mlp_ratio", 2]
    error = command(*words, "--model.encoder.depth", 2).error
    assert "does not fit the encoder" in error
    assert error.rstrip().endswith("Its sizes: --model.encoder.depth 1")
    assert not out.exists()
    assert command(*words).code == 0
    for name in ("model.safetensors", "student.safetensors"):
        stored = load_file(out / name)
        table = stored.get("position_table", stored.get("encoder.position_table"))
        assert torch.equal(table, vit.pos_embed[0].half())
    typed = shlex.split(read_config(out).recipe["command"])
    assert typed[typed.index("--freeze-encoder") + 1] == "true"
    file.unlink()
    before = (out / "model.safetensors").read_bytes()
    assert command(*typed[1:], "--resume", "--steps", 3).code == 0
    assert read_config(out).provenance["steps"] == 3
    assert (out / "model.safetensors").read_bytes() != before


def test_boolean_options_of_a_run(command, photos, pretrain_words, tmp_path):
    out = tmp_path / "run"
    words = ["pretrain", "--recipe", "iwm-tiny", "--data", photos, "--out", out, "--steps", 1]
    words += pretrain_words
    assert command(*words, "--tensorboard", "--model.actions.symmetric", "false").code == 0
    settings = json.loads((out / "run.json").read_text())
    assert (settings["tensorboard"], settings["model"]["actions"]["symmetric"]) == (True, False)
    assert list((out / "tensorboard").glob("events.*"))
