"""Real processes, some under torchrun: the same losses and weights as one process, and a clean end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from quick_processes import run_ranks
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SMALL = [
    "--recipe", "iwm-tiny", "--steps", "6", "--batch-size", "8", "--seed", "3", "--device", "cpu",
    "--log-every", "1", "--checkpoint-every", "3", "--precision", "float32", "--data.workers", "0",
    "--model.encoder.image_size", "32", "--model.preprocess.size", "32", "--model.preprocess.resize", "32",
    "--model.encoder.patch_size", "8", "--model.encoder.width", "32", "--model.encoder.depth", "2",
    "--model.predictor.width", "32", "--model.predictor.depth", "2", "--masks.unmasked", "0.4",
]  # fmt: skip


def run(photos, out, *options, expected=0, processes=1, program=("-m", "iwm.pretraining")):
    """To the end, without `torchrun`, which starts more slowly."""
    words = [*program, "--data", photos, "--out", out, *SMALL, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = run_ranks(processes, *words, env=environment, cwd=ROOT)
    printed, error = done.stdout, done.stderr
    assert done.returncode == expected, error
    # Steps without masks skip a parameter; PyTorch warns wherever the first step is none of them.
    warned = [
        line for line in error.splitlines() if "Warning" in line and "find_unused_parameters" not in line
    ]
    assert not warned, error
    return printed, error


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def check_same_run(a, b, tolerance=1e-5):
    for x, y in zip(metrics(a), metrics(b), strict=True):
        for name in ("step", "loss", "lr", "weight_decay", "grad_norm", "ema"):
            assert x[name] == pytest.approx(y[name], rel=tolerance), name
    first, second = (load_file(folder / "model.safetensors") for folder in (a, b))
    assert first.keys() == second.keys()
    # A rounding that differs can turn Adam's first steps around where a gradient is almost zero.
    apart = sum(int(((first[k].float() - second[k].float()).abs() > 2e-3).sum()) for k in first)
    assert apart <= 1e-4 * sum(tensor.numel() for tensor in first.values())


@pytest.fixture(scope="module")
def alone(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    run(photos, out)
    return out


@pytest.mark.parametrize("layout", ["inplace", "append"])
def test_two_processes_are_one(photos, alone, tmp_path, layout):
    options = ["--model.predictor.layout", layout]
    if layout == "append":
        alone = tmp_path / "alone"
        run(photos, alone, *options)
    run(photos, tmp_path / "two", *options, processes=2)
    check_same_run(alone, tmp_path / "two")


def test_accumulated_pieces_are_one_batch(photos, alone, tmp_path):
    run(photos, tmp_path / "pieces", "--accumulate", "4")
    check_same_run(alone, tmp_path / "pieces")


# Trains like `iwm pretrain`, and ends as in a power cut during the fifth step.
KILLED = """
import os, signal, sys
from iwm.cli.main import main
from iwm.pretraining.task import PretrainTask

after_step = PretrainTask.after_step

def killed(self, step):
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return after_step(self, step)

PretrainTask.after_step = killed
sys.argv[1:1] = ["pretrain"]
main()
"""


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(photos, alone, tmp_path, before, after):
    """In the middle of its third epoch."""
    out, script = tmp_path / "run", tmp_path / "killed.py"
    script.write_text(KILLED)
    with pytest.raises(AssertionError):
        run(photos, out, "--checkpoint-every", "2", processes=before, program=[str(script)])
    assert torch.load(out / "state.pt", weights_only=True)["step"] == 4
    assert [record["step"] for record in metrics(out)] == [1, 2, 3, 4]
    assert 8 * 4 % len(list(photos.rglob("*.jpg"))) != 0
    run(photos, out, processes=after)
    check_same_run(alone, out)


def test_unreadable_images_of_all_processes_are_counted_and_told_once(photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    for name in ("00", "01", "05"):
        next(folder.rglob(f"{name}.jpg")).write_text("no image")
    for processes in (1, 2):
        _, said = run(folder, tmp_path / str(processes), processes=processes)
        assert said.count("of the 48 images drawn could not be read") == 1
    alone, two = ([record["unreadable"] for record in metrics(tmp_path / name)] for name in ("1", "2"))
    assert alone == two
    assert alone[-1] == 12  # Four epochs.


def test_a_batch_that_cannot_be_shared(photos, tmp_path):
    _, error = run(photos, tmp_path / "run", "--batch-size", "9", expected=1, processes=2)
    assert "batch_size 9 cannot be shared evenly by 2 processes" in error


# Trains like `iwm pretrain`, into a folder of each process's own, as nodes do that share no storage.
APART = """
import os, sys
from pathlib import Path
sys.argv[-1] += os.environ["RANK"]
sys.argv[1:1] = ["pretrain"]
from iwm.cli.main import main
main()
"""


def test_nodes_that_share_no_folder_are_refused(photos, tmp_path):
    (tmp_path / "apart.py").write_text(APART)
    run(photos, tmp_path / "run0", "--steps", "3")
    before = (tmp_path / "run0" / "state.pt").read_bytes()
    (tmp_path / "run1").mkdir()
    (tmp_path / "run1" / "run.json").write_bytes((tmp_path / "run0" / "run.json").read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(tmp_path / "apart.py"), "--data", str(photos), *SMALL, "--resume", "--out", str(tmp_path / "run")],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    told = "--out and --data must be the same on all nodes: use storage that they share"
    assert told in " ".join(done.stderr.split()), done.stderr
    assert (tmp_path / "run0" / "state.pt").read_bytes() == before
    assert not (tmp_path / "run1" / "metrics.jsonl").exists()


def test_a_signal_ends_all_processes_after_the_same_step(photos, tmp_path):
    out = tmp_path / "run"
    words = [
        "--data",
        str(photos),
        "--out",
        str(out),
        *SMALL,
        "--steps",
        "100000",
        "--checkpoint-every",
        "100000",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "iwm.pretraining", *words],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, text=True,
        stderr=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, error = process.communicate(timeout=60)
    assert (out / "state.pt").exists(), error
    told = re.findall(r"Stopped; the checkpoint is in .+\. Continue: (.+) --resume", printed)
    assert len(told) == 1, printed
    assert told[0].startswith("torchrun --nproc-per-node 2 -m iwm.pretraining --recipe iwm-tiny --data ")
    described = json.loads((out / "config.json").read_text())
    assert described["recipe"]["command"] == told[0]
    assert described["provenance"]["processes"] == 2
