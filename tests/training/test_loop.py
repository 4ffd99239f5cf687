"""The loop with a task of one linear layer: schedules, logging, checkpoints, interruption, NaN."""

import os
import signal
import time

import pytest
import torch
from linear_task import SIZE, LinearTask, comparable, loop_config, metrics_of

from iwm.errors import InvalidConfigError
from iwm.training import execution, schedules
from iwm.training.config import OptimConfig
from iwm.training.data import CropDataset, FolderSource, StepSampler
from iwm.training.distributed import World
from iwm.training.loop import TrainingError, _Trainer, train
from iwm.training.run_folder import RunFolder


def test_a_run_is_the_plain_loop(start, paths):
    task = LinearTask()
    done, folder = start(task)
    assert done
    config = loop_config()
    assert task.seen == list(enumerate(StepSampler(len(paths), config)))
    reference = LinearTask()
    optimizer = torch.optim.AdamW(
        [{"params": [reference.layer.weight]}, {"params": [reference.layer.bias], "weight_decay": 0.0}]
    )
    dataset = CropDataset(paths, SIZE, config)
    for (step, keys), record in zip(task.seen, metrics_of(folder), strict=True):
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


def test_nothing_is_trained_into_a_folder_that_another_trains_into(start, tmp_path):
    task = LinearTask()
    with RunFolder(tmp_path / "run", loop_config(), resume=False).alone():
        with pytest.raises(InvalidConfigError, match="Another process is training into"):
            start(task)
        assert task.seen == []
        assert not (tmp_path / "run" / "run.json").exists()
    assert start(task)[0]


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
    assert all(record["grad_norm"] > 5 for record in metrics_of(folder))


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
    assert [record["step"] for record in metrics_of(folder)] == logged
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
    assert comparable(metrics_of(folder)) == comparable(metrics_of(reference))
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
    assert RunFolder(tmp_path / "run", loop_config(), resume=True).load_state()["step"] == 4


def test_resuming_after_an_error_writes_no_line_twice(start):
    def fail():
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        start(LinearTask(at={6: fail}))
    _, folder = start(LinearTask(), resume=True)
    _, reference = start(LinearTask(), name="whole")
    assert comparable(metrics_of(folder)) == comparable(metrics_of(reference))


def test_resuming_a_finished_run_trains_no_step_and_more_steps_continue_it(start):
    start(LinearTask())
    finished = LinearTask()
    assert start(finished, resume=True)[0]
    assert finished.seen == []
    longer = LinearTask()
    _, folder = start(longer, resume=True, steps=12)
    assert [step for step, _ in longer.seen] == [10, 11]
    assert [record["step"] for record in metrics_of(folder)] == list(range(1, 13))


@pytest.mark.parametrize(("emulated", "half"), [(False, torch.bfloat16), (True, torch.float32)])
def test_bf16_computes_the_loss_under_autocast_and_keeps_float32_weights(start, monkeypatch, emulated, half):
    monkeypatch.setattr(execution, "_emulates_bf16", lambda: emulated)
    dtypes = []

    class Spy(LinearTask):
        def forward(self, crops, step, keys):
            dtypes.append(self.layer(crops.flatten(1).float()).dtype)
            return super().forward(crops, step, keys)

    for precision in ("bf16", "float32"):
        task = Spy()
        start(task, steps=1, precision=precision, name=precision)
        assert task.layer.weight.dtype == torch.float32
    assert dtypes == [half, torch.float32]


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
        ({"monitor_every": 3, "log_every": 4}, [3, 6, 9, 10], {3: 3, 6: 6, 9: 9, 10: 10}),
        ({"monitor_every": 50}, [10], {10: 10}),
        ({"monitor_every": 0}, [], {}),
    ],
    ids=str,
)
def test_monitoring_falls_on_its_steps_and_is_logged_there(start, changes, steps, logged):
    task = Watched()
    _, folder = start(task, **changes)
    assert [step for step, *_ in task.monitored] == steps
    assert {r["step"]: r["watched"] for r in metrics_of(folder) if "watched" in r} == logged
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
    assert [record["step"] for record in metrics_of(folder)] == [3, 4, 6]
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
    folder = RunFolder(tmp_path / "run", loop_config(), resume=True)
    assert [record["step"] for record in metrics_of(folder)] == list(range(1, step + 1))
    assert folder.has_state == (step == 6)


def _gradients(task, folder, crops, keys, **changes):
    config = loop_config(batch_size=len(crops), **changes)
    trainer = _Trainer(
        task, FolderSource([], SIZE, config), config, folder, print, World(torch.device("cpu"))
    )
    scalars = trainer._backward(crops, 0, keys)
    return scalars, [p.grad.clone() for p in task.parameters()]


@pytest.mark.parametrize("pieces", [2, 3, 6, 12])
def test_accumulated_pieces_have_the_loss_and_gradient_of_the_whole_batch(tmp_path, pieces):
    crops = torch.randint(0, 256, (12, 3, SIZE, SIZE), dtype=torch.uint8)
    keys = [(0, i) for i in range(12)]
    folder = RunFolder(tmp_path / "run", loop_config(), resume=False)
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
    for one, other in zip(metrics_of(folder), metrics_of(whole), strict=True):
        for name in ("step", "loss", "grad_norm", "brightness"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)


@pytest.mark.parametrize(("processes", "multiple"), [(1, 3), (2, 6)])
def test_a_batch_that_cannot_be_cut_evenly_is_refused_before_anything_is_written(
    tmp_path, paths, processes, multiple
):
    config = loop_config(batch_size=4, accumulate=3)
    folder = RunFolder(tmp_path / "run", config, resume=False)
    world = World(torch.device("cpu"), size=processes)
    with pytest.raises(
        InvalidConfigError,
        match=rf"batch_size 4 cannot be shared evenly by {processes} processes in 3 pieces each; use a multiple of {multiple}",
    ):
        train(LinearTask(), FolderSource(paths, SIZE, config), config, folder, print, world)
    assert not (tmp_path / "run").exists()
