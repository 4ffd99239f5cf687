"""How runs of the loop fail, and what is left then."""

import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from linear_task import SIZE, LinearTask, comparable, loop_config, metrics_of
from PIL import Image

import iwm
from iwm.errors import InvalidConfigError, InvalidDataError, SaveError
from iwm.training.config import DataConfig, OptimConfig
from iwm.training.data import FolderSource, StepSampler
from iwm.training.loop import TrainingError, train
from iwm.training.run_folder import RunFolder

# Trains a linear task with a loader's worker, and fails as a device does that is out of memory.
CHILD = """
import sys
from dataclasses import replace
from pathlib import Path
from iwm.training.config import DataConfig
from iwm.training.data import FolderSource
from iwm.training.loop import train
from iwm.training.run_folder import RunFolder
from linear_task import SIZE, LinearTask, loop_config

class Failing(LinearTask):
    def after_step(self, step):
        raise RuntimeError("out of memory")

config = replace(loop_config(), data=DataConfig(workers=1))
paths = sorted(Path(sys.argv[1]).iterdir())
train(Failing(), FolderSource(paths, SIZE, config), config, RunFolder(Path(sys.argv[2]), config, resume=False), print)
"""


def test_a_failure_of_any_kind_ends_the_process(paths, tmp_path):
    """Its workers ask for more than one signal to end, so they must have been told before."""
    folders = [str(Path(iwm.__file__).parents[1]), str(Path(__file__).parents[1])]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(paths[0].parent), str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert child.returncode == 1
    assert "RuntimeError: out of memory" in child.stderr


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.01, 0.1])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_worker_that_is_killed_is_said_in_words(paths, tmp_path, delay):
    """In the midst of a step, of a batch, or while the one or the other is waited for."""

    others = set(multiprocessing.active_children())

    class Killing(LinearTask):
        def after_step(self, step):
            if step == 3:
                worker = next(iter(set(multiprocessing.active_children()) - others))
                threading.Timer(delay, worker.kill).start()
            return super().after_step(step)

    config = replace(loop_config(), steps=100_000, data=DataConfig(workers=2))
    run = RunFolder(tmp_path / "run", config, resume=False)
    with pytest.raises(
        TrainingError,
        match=r"was ended \(.+\), often for want of memory\. .*--data\.workers 0 .* The same command",
    ):
        train(Killing(), FolderSource(paths, SIZE, config), config, run, lambda step, seconds: None)
    assert set(multiprocessing.active_children()) == others


@pytest.mark.parametrize(
    ("changes", "typed"),
    [
        ({}, "--resume --optim.lr 0.005"),
        (
            {"optim": OptimConfig(lr=3e-4, lr_start=2e-4)},
            "--resume --optim.lr 0.00015 --optim.lr_start 0.00015",
        ),
    ],
)
def test_what_is_to_be_typed_after_a_loss_that_is_no_number_goes_on(start, changes, typed):
    with pytest.raises(TrainingError, match=rf" from there on: {typed}$"):
        start(LinearTask(at={6: lambda: math.nan}), **changes)
    words = typed.split()[1:]
    rates = {
        name.removeprefix("--optim."): float(value)
        for name, value in zip(words[::2], words[1::2], strict=True)
    }
    config = loop_config(**changes)
    done, _ = start(LinearTask(), resume=True, **changes | {"optim": replace(config.optim, **rates)})
    assert done


def test_what_is_done_is_not_called_what_it_was_not(start, tmp_path):
    start(LinearTask())
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(
        InvalidConfigError, match=r"run is done: optim.clip was 0.0, now 2.0. Ask for more --steps"
    ):
        start(LinearTask(), resume=True, optim=replace(loop_config().optim, clip=2.0))
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("step", "words"), [(2, "There is no checkpoint yet"), (6, r"The checkpoint of step 4 in .*run is good")]
)
def test_a_loss_that_is_no_number_stops_the_run(start, tmp_path, value, step, words):
    task = LinearTask(at={step: lambda: value})
    with pytest.raises(
        TrainingError,
        match=rf"The loss is {value} and its gradient norm (nan|inf) at step {step}\. {words}.* smaller learning rate.*--optim.lr 0\.005$",
    ):
        start(task)
    assert task.layer.weight.isfinite().all()
    folder = RunFolder(tmp_path / "run", loop_config(), resume=True)
    assert [record["step"] for record in metrics_of(folder)] == list(range(1, step + 1))
    if step == 6:
        state = folder.load_state()
        assert state["step"] == 4
        assert state["task"]["layer.weight"].isfinite().all()


def test_a_gradient_that_is_no_number_never_reaches_a_checkpoint(start, tmp_path):
    task = LinearTask()

    def poison():
        weight = task.layer.weight
        return 1.0 + torch.sqrt((weight - weight.detach()).abs().sum())

    task.at[3] = poison
    with pytest.raises(TrainingError, match="gradient norm nan at step 3"):
        start(task)
    assert all(torch.isfinite(p).all() for p in task.parameters())
    assert not (tmp_path / "run" / "state.pt").exists()


@pytest.mark.parametrize(
    ("step", "words"), [(2, "There is no checkpoint yet"), (6, r"The checkpoint of step 4 in .*run is good")]
)
def test_a_device_that_is_full_is_said_with_what_needs_less(start, step, words):
    def fill():
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB.\nMuch more that nobody reads.")

    with pytest.raises(
        TrainingError,
        match=rf"^cpu has not memory enough for step {step} \(Tried to allocate 2.00 GiB.\) {words}.*--accumulate 2;",
    ):
        start(LinearTask(at={step: fill}))


def test_dying_before_the_first_checkpoint_leaves_no_line_twice(start):
    def die():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(LinearTask({3: die}))
    _, folder = start(LinearTask())
    assert [record["step"] for record in metrics_of(folder)] == list(range(1, 11))


def test_resuming_on_other_images_is_refused(start, paths):
    start(LinearTask())
    Image.new("RGB", (8, 8)).save(paths[0].parent / "more.png")
    paths.append(paths[0].parent / "more.png")
    with pytest.raises(InvalidConfigError, match=r"trained on 5 images, --data now holds 6 images"):
        start(LinearTask(), resume=True)


@pytest.mark.parametrize(
    ("limit", "file"), [(0, "metrics.jsonl"), (2500, "state.pt")], ids=["metrics", "state"]
)
def test_a_full_disk_ends_the_run_with_what_is_good_and_the_same_command_goes_on(
    start, tmp_path, small_files, limit, file
):
    whole = LinearTask()
    _, reference = start(whole, name="whole")
    with ExitStack() as stack, pytest.raises(SaveError) as caught:
        start(LinearTask({6: lambda: stack.enter_context(small_files(limit))}))
    run = tmp_path / "run"
    assert re.fullmatch(
        rf"Cannot write {run / file}: \[Errno 27\] File too large\..* "
        rf"The checkpoint of step 4 in {run} is good\. Mend that, and the same command goes on\.",
        str(caught.value),
    )
    assert not [path for path in run.iterdir() if path.suffix == ".tmp"]
    task = LinearTask()
    done, folder = start(task)
    assert (done, [step for step, _ in task.seen]) == (True, list(range(4, 10)))
    assert comparable(metrics_of(folder)) == comparable(metrics_of(reference))
    assert torch.equal(task.layer.weight, whole.layer.weight)


def test_a_model_that_cannot_be_written_leaves_the_new_state(start, tmp_path):
    def full(done, seconds):
        if done == 8:
            raise SaveError("Cannot write the model: no space.")

    with pytest.raises(
        SaveError,
        match=r"^Cannot write the model: no space\. The checkpoint of step 8 in .*run is good\. Mend",
    ):
        start(LinearTask(), export=full)
    (tmp_path / "other" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(
        SaveError, match=r"There is no checkpoint yet\. Mend that, and the same command goes on"
    ):
        start(LinearTask(), name="other")


def test_unreadable_images_are_counted_over_all_sittings(start, paths, caplog):
    paths[1].write_bytes(b"no image")
    _, whole = start(LinearTask(), name="whole")
    drawn = [key for keys in StepSampler(len(paths), loop_config()) for key in keys]
    counts = [sum(index == 1 for _, index in drawn[: 2 * step]) for step in range(1, 11)]
    assert [record["unreadable"] for record in metrics_of(whole)] == counts
    assert counts[-1] == 4
    told = f"{counts[-1]} of the 20 images drawn could not be read, and others took their place"
    assert sum(told in record.getMessage() for record in caplog.records) == 1
    start(LinearTask({5: lambda: os.kill(os.getpid(), signal.SIGINT)}))
    _, folder = start(LinearTask())
    assert comparable(metrics_of(folder)) == comparable(metrics_of(whole))
    assert folder.load_state()["unreadable"] == counts[-1]


def test_small_images_are_counted_over_all_sittings(start, paths, caplog):
    Image.new("RGB", (SIZE, SIZE - 1)).save(paths[1])
    _, whole = start(LinearTask(), name="whole")
    drawn = [key for keys in StepSampler(len(paths), loop_config()) for key in keys]
    counts = [sum(index == 1 for _, index in drawn[: 2 * step]) for step in range(1, 11)]
    assert [record["enlarged"] for record in metrics_of(whole)] == counts
    assert f"{counts[-1]} of the 20 images drawn were smaller than their crops" in caplog.text
    start(LinearTask({5: lambda: os.kill(os.getpid(), signal.SIGINT)}))
    _, folder = start(LinearTask())
    assert comparable(metrics_of(folder)) == comparable(metrics_of(whole))


def test_of_readable_images_nothing_is_said(start, caplog):
    _, folder = start(LinearTask())
    assert {record[name] for record in metrics_of(folder) for name in ("unreadable", "enlarged")} == {0}
    assert not caplog.records


def test_resuming_with_fewer_steps_than_done_is_refused(start):
    start(LinearTask())
    with pytest.raises(InvalidConfigError, match="has done 10 steps already; ask for more than that, not 8"):
        start(LinearTask(), resume=True, steps=8)


def test_a_last_export_that_was_cut_off_is_made_again(start):
    exported = []

    def cut_off(done, seconds):
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(LinearTask(), export=cut_off)
    done, _ = start(LinearTask(), resume=True, export=lambda done, seconds: exported.append(done))
    assert done
    assert exported == [10]


def test_a_state_that_lacks_something_is_refused(start, tmp_path):
    _, folder = start(LinearTask())
    folder.save_state({"step": 1})
    with pytest.raises(InvalidDataError, match="lacks listing, optimizer, seconds, task"):
        start(LinearTask(), resume=True)
