"""The run folder: refusal, resuming, metrics and state."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from iwm.errors import InvalidConfigError, InvalidDataError, SaveError
from iwm.fields import from_dict, to_json
from iwm.finetuning.config import FinetuneConfig
from iwm.pretraining.config import PretrainConfig
from iwm.training.config import DataConfig, OptimConfig, RunConfig
from iwm.training.run_folder import FREE_FIELDS, RESUME_FIELDS, RunFolder, _resumable

ROOT = Path(__file__).parents[2]


@pytest.fixture
def used(tmp_path):
    run = RunFolder(tmp_path / "run", RunConfig(), resume=False)
    run.start(RunConfig(), 0)
    run.save_state({"step": 5})
    return run.path


def test_folder_is_created_with_the_configuration(tmp_path):
    config = RunConfig(seed=7, data=DataConfig(crop_scale=(0.5, 0.9)))
    run = RunFolder(tmp_path / "a" / "b", config, resume=False)
    assert not run.path.exists()
    run.start(config, 0)
    assert not run.has_state
    assert from_dict(RunConfig, json.loads((run.path / "run.json").read_text())) == config


def test_a_used_folder_goes_on_with_the_same_settings_alone(used):
    before = (used / "run.json").read_bytes()
    assert RunFolder(used, RunConfig(), resume=False).has_state
    with pytest.raises(InvalidConfigError, match=r"holds a run with other settings: seed was 0, now 1"):
        RunFolder(used, RunConfig(seed=1), resume=False)
    with pytest.raises(
        InvalidConfigError, match=r"steps was 1000, now 7\. .* or --resume to go on with the new ones"
    ):
        RunFolder(used, RunConfig(steps=7), resume=False)
    with pytest.raises(InvalidConfigError, match=r"stretch was 1\.25, now 1\.0\. .* or --resume to go on"):
        RunFolder(used, RunConfig(optim=OptimConfig(stretch=1.0)), resume=False)
    assert (used / "run.json").read_bytes() == before


def test_another_kind_of_run_is_told_from_other_settings(tmp_path):
    RunFolder(tmp_path, PretrainConfig(), resume=False).start(PretrainConfig(), 0)
    (tmp_path / "state.pt").touch()
    with pytest.raises(
        InvalidConfigError,
        match=r"holds a run of another kind .* with clean, .*masks, model; use another --out\.$",
    ):
        RunFolder(tmp_path, FinetuneConfig(), resume=True)


def test_folder_without_a_checkpoint_may_be_started_again(tmp_path):
    RunFolder(tmp_path, RunConfig(), resume=False).start(RunConfig(), 0)
    run = RunFolder(tmp_path, RunConfig(seed=1), resume=False)
    run.start(RunConfig(seed=1), 0)
    assert json.loads((run.path / "run.json").read_text())["seed"] == 1


def test_resume_with_other_settings_names_every_change(used):
    before = (used / "run.json").read_bytes()
    changed = RunConfig(
        seed=4, steps=9, batch_size=8, optim=OptimConfig(lr=5e-4, warmup=0.5, weight_decay=0.1),
        data=DataConfig(crop_scale=(0.2, 1.0)),
    )  # fmt: skip
    with pytest.raises(InvalidConfigError) as caught:
        RunFolder(used, changed, resume=True)
    message = str(caught.value)
    for part in (
        "seed was 0, now 4",
        "batch_size was 64, now 8",
        "optim.weight_decay was 0.04, now 0.1",
        f"optim.warmup was {40 / 300!r}, now 0.5",
        "data.crop_scale was [0.3, 1.0], now [0.2, 1.0]",
    ):
        assert part in message
    assert "steps" not in message
    assert "optim.lr " not in message
    assert (used / "run.json").read_bytes() == before


def test_free_fields_may_change_on_resume(used):
    config = RunConfig(
        steps=2000, device="cpu", accumulate=2, log_every=7, checkpoint_every=9, monitor_every=3, tensorboard=True,
        wandb="project", compile=True, activation_checkpointing=True,
        precision="float32", optim=OptimConfig(lr=5e-4, lr_start=1e-4, clip=1.0, stretch=1.0),
        data=DataConfig(workers=0, on_unreadable="fail"),
    )  # fmt: skip
    defaults = RunConfig()
    changed = {
        f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(defaults, f.name)
    }
    nested = {
        "data.workers",
        "data.on_unreadable",
        *(f"optim.{n}" for n in ("stretch", "lr", "lr_start", "clip")),
    }
    assert changed - {"data", "optim"} | nested == FREE_FIELDS | RESUME_FIELDS - {"collapse_below"}
    run = RunFolder(used, config, resume=True)
    assert json.loads((run.path / "run.json").read_text())["steps"] == RunConfig().steps
    run.start(config, 5)
    assert from_dict(RunConfig, json.loads((run.path / "run.json").read_text())) == config


def test_a_run_of_an_earlier_version_goes_on_with_the_defaults_of_newer_fields(used):
    settings = json.loads((used / "run.json").read_text())
    for name in ("optimizer", "schedule", "momentum"):
        del settings["optim"][name]
    (used / "run.json").write_text(json.dumps(settings))
    assert RunFolder(used, RunConfig(), resume=False).has_state
    with pytest.raises(InvalidConfigError, match=r"optim\.schedule was 'cosine', now 'linear'"):
        RunFolder(used, RunConfig(optim=OptimConfig(schedule="linear")), resume=False)


def test_state_round_trips_and_replaces_the_last(used):
    run = RunFolder(used, RunConfig(), resume=True)
    state = {
        "step": 6,
        "seconds": 1.5,
        "task": {"w": torch.arange(3.0)},
        "optimizer": {"groups": [{"lr": 0.1}]},
    }
    run.save_state(state)
    loaded = run.load_state()
    assert torch.equal(loaded["task"].pop("w"), state["task"].pop("w"))
    assert loaded == state
    assert sorted(path.name for path in used.iterdir()) == ["run.json", "state.pt"]


def test_a_state_that_no_longer_fits_on_the_disk_leaves_the_one_before(used, small_files):
    """Every write fails at its own byte, from the first to the last."""
    run = RunFolder(used, RunConfig(), resume=True)
    state = {"step": 6, "task": {"w": torch.arange(20_000.0), "b": torch.zeros(3)}}
    run.save_state(state)
    size = (used / "state.pt").stat().st_size
    before = (used / "state.pt").read_bytes()
    for limit in (0, 1, 60, 1000, *range(4096, size, 7777), size - 300, size - 1):
        with small_files(limit), pytest.raises(SaveError) as caught:
            run.save_state(state | {"step": 7})
        assert str(caught.value) == (
            f"Cannot write {used / 'state.pt'}: [Errno 27] File too large. What was there before is untouched."
        )
        assert (used / "state.pt").read_bytes() == before
        assert sorted(path.name for path in used.iterdir()) == ["run.json", "state.pt"]
    with small_files(size):
        run.save_state(state | {"step": 7})
    assert run.load_state()["step"] == 7


# Saves a state, and is killed before it takes its place.
KILLED = """
import os, signal, sys, torch
from pathlib import Path
from iwm.training.config import RunConfig
from iwm.training.run_folder import RunFolder

def killed(state, file):
    file.write(b"half of a state")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

torch.save = killed
RunFolder(Path(sys.argv[1]), RunConfig(), resume=True).save_state({"step": 6})
"""


def test_what_a_killed_process_left_of_a_checkpoint_is_removed(used):
    child = subprocess.run([sys.executable, "-c", KILLED, str(used)], cwd=ROOT, timeout=120, check=False)
    assert child.returncode == -signal.SIGKILL
    (left,) = used.glob(".*.tmp")
    assert left.read_bytes() == b"half of a state"
    (used / ".mine.tmp").write_text("not of a run")
    run = RunFolder(used, RunConfig(), resume=False)
    assert left.exists()  # Nothing changes before the run starts.
    run.start(RunConfig(), 5)
    assert sorted(path.name for path in used.iterdir()) == [".mine.tmp", "run.json", "state.pt"]
    assert run.load_state()["step"] == 5


# Holds the right to train into a folder until it is killed.
HOLDER = """
import sys
from pathlib import Path
from iwm.training.config import RunConfig
from iwm.training.run_folder import RunFolder

with RunFolder(Path(sys.argv[1]), RunConfig(), resume=False).alone():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path):
    """A folder that another process trains into, and that process."""
    words = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "held\n"
        yield tmp_path / "run", child
        child.kill()


def test_two_processes_do_not_train_into_one_folder(held):
    folder, child = held
    run = RunFolder(folder, RunConfig(), resume=False)
    message = f"Another process is training into {folder}: wait for it, or use another --out."
    with pytest.raises(InvalidConfigError, match=re.escape(message)), run.alone():
        raise AssertionError("It was let in.")
    child.kill()  # Nobody has to tidy up after it.
    child.wait()
    with run.alone():
        run.start(RunConfig(), 0)


def test_metrics_after_the_resume_point_are_forgotten(used):
    run = RunFolder(used, RunConfig(), resume=True)
    records = [{"step": step, "loss": 1.0 / step} for step in range(1, 8)]
    for record in records:
        run.log(record)
    with (used / "metrics.jsonl").open("a") as file:
        file.write('null\n{"loss": 1}\n{"step": 3, "lo')
    run.start(RunConfig(), 5)
    run.log({"step": 6, "loss": 0.0})
    lines = (used / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [*records[:5], {"step": 6, "loss": 0.0}]


def test_no_metrics_to_forget_makes_no_file(tmp_path):
    run = RunFolder(tmp_path, RunConfig(), resume=False)
    run.start(RunConfig(), 0)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(("name", "content"), [("state.pt", b"PK\x03\x04 cut off"), ("run.json", b"{")])
def test_a_damaged_run_is_named_and_says_what_next(used, name, content):
    (used / name).write_bytes(content)
    with pytest.raises(InvalidDataError, match=rf"{name} cannot be read.* another --out"):
        RunFolder(used, RunConfig(), resume=True).load_state()


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InvalidDataError, match="is a file; choose a folder"):
        RunFolder(tmp_path / "out", RunConfig(), resume=False)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_model_without_a_run_is_never_overwritten(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidDataError, match="holds a model already; choose another --out"):
        RunFolder(tmp_path, RunConfig(), resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_lost_its_state_is_not_trained_over(tmp_path, resume):
    RunFolder(tmp_path, RunConfig(), resume=False).start(RunConfig(), 0)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        InvalidDataError, match=r"holds a model, and no state\.pt to go on from; choose another"
    ):
        RunFolder(tmp_path, RunConfig(), resume=resume)


@pytest.mark.parametrize("changed", [{"accumulate": 2}, {"monitor_every": 7}, {"patience": 3}])
def test_what_shapes_a_finetuning_changes_on_request_alone(tmp_path, changed):
    RunFolder(tmp_path, FinetuneConfig(), resume=False).start(FinetuneConfig(), 0)
    (tmp_path / "state.pt").touch()
    with pytest.raises(InvalidConfigError, match=next(iter(changed))):
        RunFolder(tmp_path, FinetuneConfig(**changed), resume=False)
    run = RunFolder(tmp_path, FinetuneConfig(**changed), resume=True)
    run.start(FinetuneConfig(**changed), 5, [{"from_step": 0}])
    assert run.sittings[-1]["from_step"] == 5
    assert changed.items() <= run.sittings[-1].items()


def test_there_must_be_a_run_to_resume(tmp_path):
    with pytest.raises(InvalidDataError, match="holds no run to resume"):
        RunFolder(tmp_path, RunConfig(), resume=True)


def test_a_log_that_cannot_be_written_is_a_save_error(used):
    (used / "metrics.jsonl").mkdir()
    with pytest.raises(SaveError, match=r"Cannot write .*metrics\.jsonl: .*Is a directory"):
        RunFolder(used, RunConfig(), resume=True).log({"step": 1})


def test_sittings_are_told_by_what_was_not_the_same(used):
    run = RunFolder(used, RunConfig(), resume=True)
    run.start(
        RunConfig(), 5, [{"from_step": 0} | _resumable(json.loads(to_json(RunConfig())), RESUME_FIELDS)]
    )
    assert (len(run.sittings), run.told_sittings()) == (1, {})
    longer = RunConfig(steps=2000, optim=OptimConfig(clip=1.0))
    again = RunFolder(used, longer, resume=True)
    again.start(longer, 5, run.sittings)
    expected = [
        {"from_step": 0, "optim.clip": 0.0, "steps": 1000},
        {"from_step": 5, "optim.clip": 1.0, "steps": 2000},
    ]
    assert again.told_sittings() == {"sittings": expected}
    again.start(longer, 9, again.sittings)
    assert again.told_sittings() == {"sittings": expected}
    again.start(RunConfig(), 5, again.sittings)  # Nothing was trained in the second one.
    assert again.told_sittings() == {}
