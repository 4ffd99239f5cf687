"""TensorBoard's files read back, what a missing package is called, and closing."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from iwm.errors import InvalidConfigError, SaveError
from iwm.training.config import DataConfig, RunConfig
from iwm.training.distributed import World
from iwm.training.loop import Task, train
from iwm.training.run_folder import RunFolder
from iwm.training.trackers import closing_all, make_trackers, require_packages

TIMING = {"images_per_second", "data_wait", "memory_mb"}


def _events(out):
    """Values by name and step, as TensorBoard reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(out / "tensorboard"))
    reader.Reload()
    return {name: {e.step: e.value for e in reader.Scalars(name)} for name in reader.Tags()["scalars"]}


class OneNumber(Task):
    """A task whose loss is known at every step."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.weight = nn.Linear(1, 1)
        self.fails_at = fails_at

    def trained(self):
        return [self.weight]

    def forward(self, crops, step, keys):
        if step == self.fails_at:
            raise RuntimeError("power cut")
        return self.weight.weight.sum() * 0 + 1.0 / (step + 1), {"twice": torch.tensor(2.0 * step)}

    def after_step(self, step):
        return {}


class Blank:
    """A source of black crops."""

    listing = "nothing"
    unreadable = enlarged = 0

    def batches(self, first_step, world, state):
        for _ in range(first_step, 6):
            yield torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2).long(), torch.arange(2)

    def state(self):
        return None


def _train(out, task=None, world=None, **changes):
    config = RunConfig(
        steps=6, batch_size=2, device="cpu", log_every=2, checkpoint_every=2, precision="float32",
        data=DataConfig(workers=0), **changes,
    )  # fmt: skip
    return train(task or OneNumber(), Blank(), config, RunFolder(out, config, resume=False), print, world)


def test_a_run_writes_what_it_logs_for_tensorboard_too(tmp_path):
    assert _train(tmp_path, tensorboard=True)
    events = _events(tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4, 6]
    assert events.keys() == records[0].keys() - {"step"}
    for name, values in events.items():
        assert values == {r["step"]: pytest.approx(r[name], rel=1e-6) for r in records}
    assert events["loss"] == {n: pytest.approx(1 / n) for n in (2, 4, 6)}
    assert events["twice"] == {2: 2.0, 4: 6.0, 6: 10.0}


def test_weights_and_biases_gets_the_same_and_one_run_a_folder(tmp_path, monkeypatch):
    """The real client, which keeps its records on this machine; a name that is no run id in two places."""
    wandb = pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    runs, init = [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: runs.append(init(**options)) or runs[-1])
    for folder in (tmp_path / "a" / "run #1", tmp_path / "b" / "run #1"):
        with pytest.raises(RuntimeError, match="power cut"):
            _train(folder, OneNumber(fails_at=4), wandb="project")
        assert _train(folder, wandb="project")
    assert [run.name for run in runs] == ["run #1"] * 4
    assert runs[0].id == runs[1].id != runs[2].id == runs[3].id
    kept = [file.read_bytes() for file in sorted((tmp_path / "a").rglob("*.wandb"))]
    assert len(kept) == 2
    for line in (tmp_path / "a" / "run #1" / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert str(record["loss"]).encode() in kept[record["step"] > 4]


def test_weights_and_biases_that_does_not_start_says_what_to_do(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="Weights & Biases is not installed")

    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(InvalidConfigError, match=r"No API key configured\. Log in .*WANDB_MODE=offline"):
        _train(tmp_path, wandb="project")


def test_without_it_nothing_is_written(tmp_path):
    assert make_trackers(RunConfig(), tmp_path) == []
    _train(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "metrics.jsonl",
        "run.json",
        "state.pt",
    ]


def test_only_the_first_process_tracks(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("iwm.training.loop.make_trackers", lambda *_: made.append(1) or [])
    _train(tmp_path / "first", tensorboard=True)
    assert made == [1]

    class Second(World):
        """Another process's place, without the process."""

        is_main = False

    _train(tmp_path / "second", world=Second(torch.device("cpu")), tensorboard=True)
    assert made == [1]


def test_an_error_closes_the_files_with_everything_logged_before(tmp_path):
    with pytest.raises(RuntimeError, match="power cut"):
        _train(tmp_path, OneNumber(fails_at=5), tensorboard=True)
    assert _events(tmp_path)["twice"] == {2: 2.0, 4: 6.0}


def test_a_run_that_goes_on_adds_to_the_same_curves(tmp_path):
    with pytest.raises(RuntimeError, match="power cut"):
        _train(tmp_path, OneNumber(fails_at=4), tensorboard=True)
    _train(tmp_path, tensorboard=True)
    assert _events(tmp_path)["twice"] == {2: 2.0, 4: 6.0, 6: 10.0}


def test_curves_are_rewound_to_the_checkpoint_that_a_killed_run_goes_on_from(tmp_path):
    """Steps 2 to 4 were logged and never saved; with another `log_every` they would never come again."""
    pytest.importorskip("tensorboard")
    config = RunConfig(tensorboard=True)
    for done, steps in ((0, (1, 2, 3, 4)), (1, (5,))):
        (tracker,) = make_trackers(config, tmp_path, done)
        for step in steps:
            tracker.log({"step": step, "loss": float(step)})
        tracker.close()
    assert _events(tmp_path)["loss"] == {1: 1.0, 5: 5.0}


def test_all_are_closed_however_it_ends():
    closed = []
    trackers = [SimpleNamespace(close=lambda n=n: closed.append(n)) for n in range(3)]
    with pytest.raises(KeyboardInterrupt), closing_all(trackers):
        raise KeyboardInterrupt
    with closing_all(trackers):
        pass
    assert closed == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("module", "option"),
    [("torch.utils.tensorboard", {"tensorboard": True}), ("wandb", {"wandb": "project"})],
)
def test_a_missing_package_is_said_before_anything_is_written(tmp_path, monkeypatch, module, option):
    monkeypatch.setitem(sys.modules, module, None)
    require_packages(RunConfig())
    with pytest.raises(
        InvalidConfigError, match=rf"{re.escape(module)}.*pip install 'iwm\[train\]', or wandb"
    ):
        _train(tmp_path / "run", **option)
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_full_is_a_save_error(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    (tracker,) = make_trackers(RunConfig(tensorboard=True), tmp_path)
    tracker.close()

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("add_scalar", "close"):
        monkeypatch.setattr(tracker.writer, name, full)
    for call in (lambda: tracker.log({"step": 1, "loss": 0.5}), tracker.close):
        with pytest.raises(
            SaveError, match=r"Cannot write .*/tensorboard: \[Errno 28\] No space left on device\."
        ):
            call()
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"Cannot write .*/file/tensorboard: .*Not a directory"):
        make_trackers(RunConfig(tensorboard=True), tmp_path / "file")
