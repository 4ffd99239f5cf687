"""The loop with a task of one linear layer: schedules, logging, checkpoints, interruption, NaN."""

import json
import math
import os
import re
import signal
import time
from contextlib import ExitStack

import pytest
import torch
from PIL import Image
from torch import nn

from iwm.errors import InvalidConfigError, InvalidDataError, SaveError
from iwm.training import schedules
from iwm.training.config import DataConfig, OptimConfig, RunConfig
from iwm.training.data import CropDataset, FolderSource, StepSampler
from iwm.training.distributed import World
from iwm.training.loop import Task, TrainingError, _Trainer, train
from iwm.training.run_folder import RunFolder

SIZE = 4
TIMING = {"images_per_second", "data_wait", "memory_mb"}


class LinearTask(Task):
    """Fits two numbers per image; `at` holds what happens at the start of a step."""

    def __init__(self, at=None, scale=1.0):
        super().__init__()
        self.layer = nn.Linear(3 * SIZE * SIZE, 2)
        nn.init.constant_(self.layer.weight, 0.01)
        nn.init.zeros_(self.layer.bias)
        self.at = at or {}
        self.scale = scale
        self.seen = []

    def trained(self):
        return [self.layer]

    def forward(self, crops, step, keys):
        self.seen.append((step, list(keys)))
        factor = self.at[step]() if step in self.at else self.scale
        loss = (self.layer(crops.flatten(1).float() / 255) - 1).square().mean() * (factor or self.scale)
        return loss, {"brightness": crops.float().mean()}

    def after_step(self, step):
        return {"after": float(step)}


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "images").mkdir()
    files = [tmp_path / "images" / f"{i}.png" for i in range(5)]
    for i, file in enumerate(files):
        Image.new("RGB", (8, 8), (40 * i, 200 - 30 * i, 100)).save(file)
    return files


@pytest.fixture
def start(tmp_path, paths):
    def run(task, *, resume=False, export=lambda done, seconds: None, name="run", **changes):
        config = _config(**changes)
        folder = RunFolder(tmp_path / name, config, resume=resume)
        done = train(task, FolderSource(paths, SIZE, config, f"{len(paths)} images"), config, folder, export)
        return done, folder

    return run


def _config(**changes):
    defaults = {"steps": 10, "batch_size": 2, "log_every": 1, "checkpoint_every": 4, "precision": "float32"}
    return RunConfig(
        data=DataConfig(workers=0),
        device="cpu",
        **{"optim": OptimConfig(lr=0.01, warmup=0.2)} | defaults | changes,
    )


def _metrics(folder):
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def _comparable(metrics):
    return [{k: v for k, v in record.items() if k not in TIMING} for record in metrics]


def test_a_run_is_the_plain_loop(start, paths):
    task = LinearTask()
    done, folder = start(task)
    assert done
    config = _config()
    assert task.seen == list(enumerate(StepSampler(len(paths), config)))
    reference = LinearTask()
    optimizer = torch.optim.AdamW(
        [{"params": [reference.layer.weight]}, {"params": [reference.layer.bias], "weight_decay": 0.0}]
    )
    dataset = CropDataset(paths, SIZE, config)
    for (step, keys), record in zip(task.seen, _metrics(folder), strict=True):
        lr, decay = (f(step, 10, config.optim) for f in (schedules.learning_rate, schedules.weight_decay))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.param_groups[0]["weight_decay"] = decay
        loss, _ = reference(torch.stack([dataset[key][0] for key in keys]), step, keys)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in reference.parameters()]).norm()
        optimizer.step()
        assert (record["step"], record["lr"], record["weight_decay"]) == (step + 1, lr, decay)
        assert record["after"] == step
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert record["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
        assert record["images_per_second"] > 0
    torch.testing.assert_close(task.layer.weight, reference.layer.weight)
    assert not torch.equal(task.layer.bias, torch.zeros(2))


def test_clip_bounds_the_update_and_logs_the_norm_before_it(start, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def spy(self, *args):
        norms.append(
            torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"]]).norm().item()
        )
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    _, folder = start(LinearTask(scale=100.0), steps=3, optim=OptimConfig(clip=0.5))
    assert norms == pytest.approx([0.5] * 3, rel=1e-4)
    assert all(record["grad_norm"] > 5 for record in _metrics(folder))


@pytest.mark.parametrize(
    ("changes", "logged", "exported"),
    [
        ({}, list(range(1, 11)), [4, 8, 10]),
        ({"log_every": 3, "checkpoint_every": 5}, [3, 6, 9, 10], [5, 10]),
        ({"log_every": 50, "checkpoint_every": 50}, [10], [10]),
    ],
)
def test_metrics_and_checkpoints_fall_on_their_steps(start, changes, logged, exported):
    calls = []
    _, folder = start(LinearTask(), export=lambda done, seconds: calls.append((done, seconds)), **changes)
    assert [record["step"] for record in _metrics(folder)] == logged
    assert [done for done, _ in calls] == exported
    seconds = [elapsed for _, elapsed in calls]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    assert folder.load_state()["step"] == 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_and_resuming_changes_nothing(start, number):
    whole = LinearTask()
    _, reference = start(whole, name="whole")
    before = signal.getsignal(number)
    exported = []
    done, folder = start(
        LinearTask(at={5: lambda: os.kill(os.getpid(), number)}),
        export=lambda *call: exported.append(call[0]),
    )
    assert not done
    assert signal.getsignal(number) is before
    assert folder.load_state()["step"] == 6
    assert exported == [4, 6]
    resumed = LinearTask()
    done, folder = start(resumed, resume=True)
    assert done
    assert [step for step, _ in resumed.seen] == [6, 7, 8, 9]
    assert _comparable(_metrics(folder)) == _comparable(_metrics(reference))
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    assert folder.load_state()["seconds"] > 0


def test_a_signal_during_the_last_step_is_a_finished_run(start):
    done, folder = start(LinearTask(at={9: lambda: os.kill(os.getpid(), signal.SIGINT)}))
    assert done
    assert folder.load_state()["step"] == 10


@pytest.fixture
def interruptible():
    """Python's own answer to SIGINT, also where the test run was started with it ignored."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, inherited)


def test_a_second_interrupt_acts_at_once(start, tmp_path, interruptible):

    def twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # Two that are pending at once count as one.

    task = LinearTask(at={5: twice})
    with pytest.raises(KeyboardInterrupt):
        start(task)
    assert signal.getsignal(signal.SIGINT) is interruptible
    assert RunFolder(tmp_path / "run", _config(), resume=True).load_state()["step"] == 4


def test_resuming_after_an_error_writes_no_line_twice(start):
    def fail():
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        start(LinearTask(at={6: fail}))
    _, folder = start(LinearTask(), resume=True)
    _, reference = start(LinearTask(), name="whole")
    assert _comparable(_metrics(folder)) == _comparable(_metrics(reference))


def test_resuming_a_finished_run_trains_no_step_and_more_steps_continue_it(start):
    start(LinearTask())
    finished = LinearTask()
    assert start(finished, resume=True)[0]
    assert finished.seen == []
    longer = LinearTask()
    _, folder = start(longer, resume=True, steps=12)
    assert [step for step, _ in longer.seen] == [10, 11]
    assert [record["step"] for record in _metrics(folder)] == list(range(1, 13))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("step", "words"), [(2, "There is no checkpoint yet"), (6, r"The checkpoint of step 4 in .*run is good")]
)
def test_a_loss_that_is_no_number_stops_the_run(start, tmp_path, value, step, words):
    task = LinearTask(at={step: lambda: value})
    with pytest.raises(
        TrainingError,
        match=rf"The loss is {value} and its gradient norm (nan|inf) at step {step}\. {words}.* smaller optim\.lr",
    ):
        start(task)
    assert task.layer.weight.isfinite().all()
    folder = RunFolder(tmp_path / "run", _config(), resume=True)
    assert [record["step"] for record in _metrics(folder)] == list(range(1, step + 1))
    if step == 6:
        state = folder.load_state()
        assert state["step"] == 4
        assert state["task"]["layer.weight"].isfinite().all()


def test_bf16_computes_the_loss_under_autocast_and_keeps_float32_weights(start):
    dtypes = []

    class Spy(LinearTask):
        def forward(self, crops, step, keys):
            dtypes.append(self.layer(crops.flatten(1).float()).dtype)
            return super().forward(crops, step, keys)

    for precision in ("bf16", "float32"):
        task = Spy()
        start(task, steps=1, precision=precision, name=precision)
        assert task.layer.weight.dtype == torch.float32
    assert dtypes == [torch.bfloat16, torch.float32]


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


def test_dying_before_the_first_checkpoint_leaves_no_line_twice(start):
    def die():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(LinearTask({3: die}))
    _, folder = start(LinearTask())
    assert [record["step"] for record in _metrics(folder)] == list(range(1, 11))


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
    assert _comparable(_metrics(folder)) == _comparable(_metrics(reference))
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
    drawn = [key for keys in StepSampler(len(paths), _config()) for key in keys]
    counts = [sum(index == 1 for _, index in drawn[: 2 * step]) for step in range(1, 11)]
    assert [record["unreadable"] for record in _metrics(whole)] == counts
    assert counts[-1] == 4
    told = f"{counts[-1]} of the 20 images drawn could not be read, and others took their place"
    assert sum(told in record.getMessage() for record in caplog.records) == 1
    start(LinearTask({5: lambda: os.kill(os.getpid(), signal.SIGINT)}))
    _, folder = start(LinearTask())
    assert _comparable(_metrics(folder)) == _comparable(_metrics(whole))
    assert folder.load_state()["unreadable"] == counts[-1]


def test_of_readable_images_nothing_is_said(start, caplog):
    _, folder = start(LinearTask())
    assert {record["unreadable"] for record in _metrics(folder)} == {0}
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


class Watched(LinearTask):
    """Monitors and may see a collapse; remembers what it was shown."""

    def __init__(self, collapses_at=None):
        super().__init__()
        self.collapses_at = collapses_at
        self.monitored = []
        self.shown = []

    def monitor(self, crops, step, keys):
        self.monitored.append((step, len(crops), list(keys), self.layer.weight.detach().clone()))
        return {"watched": float(step)}

    def collapse(self, record):
        self.shown.append(record)
        return "all is one (see the log)" if record["step"] == self.collapses_at else None


@pytest.mark.parametrize(
    ("changes", "steps", "logged"),
    [
        ({"monitor_every": 3}, [3, 6, 9, 10], {3: 3, 6: 6, 9: 9, 10: 10}),
        ({"monitor_every": 3, "log_every": 4}, [3, 6, 9, 10], {4: 3, 8: 6, 10: 10}),
        ({"monitor_every": 50}, [10], {10: 10}),
        ({"monitor_every": 0}, [], {}),
    ],
    ids=str,
)
def test_monitoring_falls_on_its_steps_and_goes_into_the_next_line(start, changes, steps, logged):
    task = Watched()
    _, folder = start(task, **changes)
    assert [step for step, *_ in task.monitored] == steps
    assert {r["step"]: r["watched"] for r in _metrics(folder) if "watched" in r} == logged
    seen = dict(task.seen)
    for step, count, keys, _ in task.monitored:  # The batch that was trained last.
        assert (count, keys) == (2, seen[step - 1])
    if steps:
        assert torch.equal(task.monitored[-1][-1], task.layer.weight)


class Satisfied(Watched):
    """Has had enough when it is monitored at step 6."""

    finished = False

    def monitor(self, crops, step, keys):
        self.finished = step >= 6
        return super().monitor(crops, step, keys)


def test_a_task_that_is_finished_ends_the_run_early_as_if_it_were_the_last_step(start):
    exported = []
    done, folder = start(
        Satisfied(), monitor_every=3, log_every=4, export=lambda done, seconds: exported.append(done)
    )
    assert done
    assert exported == [4, 6]
    assert [record["step"] for record in _metrics(folder)] == [4, 6]
    assert folder.load_state()["step"] == 6
    again = Satisfied()
    again.finished = True  # As a task that keeps it in its state would find.
    assert start(again, resume=True, monitor_every=3, log_every=4)[0]
    assert again.seen == []


@pytest.mark.parametrize(
    ("step", "words"), [(2, "There is no checkpoint yet"), (6, r"The checkpoint of step 4 in .*run is good")]
)
def test_a_collapse_stops_the_run_before_its_step_is_taken(start, tmp_path, step, words):
    task = Watched(collapses_at=step)
    with pytest.raises(
        TrainingError, match=rf"^Collapse at step {step}: all is one \(see the log\)\. {words}"
    ):
        start(task)
    assert [record["step"] for record in task.shown] == list(range(step + 1))
    assert all(record.keys() == {"step", "loss", "brightness"} for record in task.shown)
    same = LinearTask()
    before = []
    same.at[step] = lambda: before.append(same.layer.weight.detach().clone())
    start(same, name="same")
    assert torch.equal(task.layer.weight, before[0])
    folder = RunFolder(tmp_path / "run", _config(), resume=True)
    assert [record["step"] for record in _metrics(folder)] == list(range(1, step + 1))
    assert folder.has_state == (step == 6)


def _gradients(task, folder, crops, keys, **changes):
    config = _config(batch_size=len(crops), **changes)
    trainer = _Trainer(
        task, FolderSource([], SIZE, config), config, folder, print, World(torch.device("cpu"))
    )
    scalars = trainer._backward(crops, 0, keys)
    return scalars, [p.grad.clone() for p in task.parameters()]


@pytest.mark.parametrize("pieces", [2, 3, 6, 12])
def test_accumulated_pieces_have_the_loss_and_gradient_of_the_whole_batch(tmp_path, pieces):
    crops = torch.randint(0, 256, (12, 3, SIZE, SIZE), dtype=torch.uint8)
    keys = [(0, i) for i in range(12)]
    folder = RunFolder(tmp_path / "run", _config(), resume=False)
    whole, gradients = _gradients(LinearTask(), folder, crops, keys)
    task = LinearTask()
    scalars, accumulated = _gradients(task, folder, crops, keys, accumulate=pieces)
    assert scalars == {name: pytest.approx(value, rel=1e-6) for name, value in whole.items()}
    assert scalars["brightness"] == pytest.approx(crops.float().mean().item(), rel=1e-6)
    for one, other in zip(accumulated, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert [key for _, part in task.seen for key in part] == keys
    assert {len(part) for _, part in task.seen} == {12 // pieces}


def test_an_accumulated_run_is_the_same_run_and_may_go_on_in_other_pieces(start):
    _, whole = start(LinearTask(), name="whole", batch_size=4)
    signals = iter([signal.SIGINT])  # Once, and not in every piece.
    start(
        LinearTask({4: lambda: [os.kill(os.getpid(), n) for n in signals] and None}),
        batch_size=4,
        accumulate=4,
    )
    _, folder = start(LinearTask(), resume=True, batch_size=4, accumulate=2)
    for one, other in zip(_metrics(folder), _metrics(whole), strict=True):
        for name in ("step", "loss", "grad_norm", "brightness"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)


@pytest.mark.parametrize(("processes", "multiple"), [(1, 3), (2, 6)])
def test_a_batch_that_cannot_be_cut_evenly_is_refused_before_anything_is_written(
    tmp_path, paths, processes, multiple
):
    config = _config(batch_size=4, accumulate=3)
    folder = RunFolder(tmp_path / "run", config, resume=False)
    world = World(torch.device("cpu"), size=processes)
    with pytest.raises(
        InvalidConfigError,
        match=rf"batch_size 4 cannot be shared evenly by {processes} processes in 3 pieces each; use a multiple of {multiple}",
    ):
        train(LinearTask(), FolderSource(paths, SIZE, config), config, folder, print, world)
    assert not (tmp_path / "run").exists()
