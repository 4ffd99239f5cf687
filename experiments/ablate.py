r"""Ablations of the recipe at a size for two cores: 64 px, 16 tokens [tables 1, 2, S2].

    python experiments/ablate.py conditioning --data imagenette/train --data caltech101/train \
        --data clothing/train --data photos --held-out imagenette/val --neighbours imagenette/train

Every arm is one `iwm pretrain` and some `iwm eval`, printed as they can be typed, with equal
steps. Equal time is read from the curves of the monitors, at the moment when the fastest arm has
ended, by step times that are measured side by side. Arms that several ablations share are
trained once; a run that was killed goes on. `--tasks` adds what the latents are worth for labels
[table S2's accuracies, figures 4 and 5]: probes and a finetuned predictor on 3,000 photographs of
the neighbours. OUT gets NAME.md, NAME.json and NAME.png, and with `--tasks` NAME-tasks.png.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from iwm.cli.pretrain import parse_overrides, set_dotted
from iwm.fields import from_dict, to_json
from iwm.files import write_text
from iwm.pretraining.config import PretrainConfig
from iwm.pretraining.recipes import find_recipe
from iwm.pretraining.task import PretrainTask
from iwm.training.execution import autocast, prefer_plain_attention

BASE = {
    "optim.stretch": "1.25",
    "model.encoder.image_size": "64",
    "model.preprocess.size": "64",
    "model.preprocess.resize": "64",
}
"""What every arm changes of the recipe `iwm-tiny`."""

APPEND = {"model.predictor.layout": "append"}
FEATURE = {"model.predictor.conditioning": "feature"}
PAPER_JITTER = {
    f"model.actions.distribution.{name}": value
    for name, value in {"brightness": "0.4", "contrast": "0.4", "saturation": "0.2", "hue": "0.1"}.items()
}
NO_DESTRUCTION = {
    f"model.actions.distribution.{name}_probability": "0" for name in ("grayscale", "blur", "solarize")
}


def _depth(blocks: int) -> dict[str, str]:
    return {"model.predictor.depth": str(blocks)}


ABLATIONS: dict[str, dict[str, dict[str, str]]] = {
    "conditioning": {
        "adaln": {},
        "feature": FEATURE,
        "sequence": {"model.predictor.conditioning": "sequence"},
        "none": {"model.predictor.conditioning": "none"},
    },
    "layout": {
        "inplace, adaln": {},
        "append, adaln": APPEND,
        "inplace, feature": FEATURE,
        "append, feature (the paper's)": APPEND | FEATURE,
    },
    "augmentation": {
        "strong jitter, destructive, 5 blocks": {},
        "strong jitter, destructive, 2 blocks": _depth(2),
        "the paper's jitter, destructive, 5 blocks": PAPER_JITTER,
        "the paper's jitter, destructive, 2 blocks": PAPER_JITTER | _depth(2),
        "strong jitter alone, 5 blocks": NO_DESTRUCTION,
        "strong jitter alone, 2 blocks": NO_DESTRUCTION | _depth(2),
    },
    "depth": {"2 blocks": _depth(2), "5 blocks": {}, "8 blocks": _depth(8)},
    "targets": {"symmetric": {}, "jitter alone": {"model.actions.symmetric": "false"}},
    "masking": {
        "none in 20 % of the steps": {},
        "in every step": {"masks.unmasked": "0"},
        "none in 60 %": {"masks.unmasked": "0.6"},
        "never": {"masks.unmasked": "1"},
    },
    "clean": {"30 %": {}, "none": {"clean": "0"}},
    "invariance": {
        "told the action": {},
        "told nothing, as the twin": {"model.predictor.conditioning": "none"},
    },
}


TASK_IMAGES = ("--images", "3000")
TASKS: dict[str, tuple[str, ...]] = {
    "linear": ("eval", "probe", "--head", "linear", *TASK_IMAGES),
    "attentive": ("eval", "probe", "--head", "attentive", *TASK_IMAGES),
    "predictor": ("finetune", "--tune", "predictor", "--epochs", "10", *TASK_IMAGES),
}
"""What `--tasks` runs for each arm."""

LABELS = {
    "k-NN": "20-NN",
    "linear": "linear probe",
    "attentive": "attentive probe",
    "predictor": "predictor, finetuned",
}


@dataclass(frozen=True)
class Arm:
    """One run: its name in the table, what it changes, and its folder."""

    name: str
    overrides: dict[str, str]
    folder: Path

    def words(self, options: argparse.Namespace) -> list[str]:
        """What follows `iwm pretrain`."""
        words = ["--recipe", "iwm-tiny", *_repeated("--data", options.data), "--out", str(self.folder)]
        words += ["--steps", str(options.steps), "--seed", str(options.seed)]
        words += ["--checkpoint-every", "2000", "--monitor-every", str(max(options.steps // 40, 1))]
        for name, value in (BASE | self.overrides).items():
            words += [f"--{name.replace('_', '-')}" if "." not in name else f"--{name}", value]
        return words

    def config(self) -> PretrainConfig:
        """For measuring its step."""
        fields: dict[str, Any] = json.loads(to_json(find_recipe("iwm-tiny")))
        words = [f"--{name}={value}" for name, value in (BASE | self.overrides).items()]
        for name, value in parse_overrides(words, fields).items():
            set_dotted(fields, name, value)
        return from_dict(PretrainConfig, fields)


def arms_of(name: str, options: argparse.Namespace) -> list[Arm]:
    """The arms of an ablation; the folder's name says what is changed."""
    arms = []
    for title, overrides in ABLATIONS[name].items():
        changed = "_".join(f"{key.split('.')[-1]}-{value}" for key, value in sorted(overrides.items()))
        suffix = f"-{options.steps}-seed{options.seed}"
        arms.append(Arm(title, overrides, options.out / ((changed or "base") + suffix)))
    return arms


def train_and_measure(arm: Arm, options: argparse.Namespace, threads: int) -> dict[str, Any]:
    """Run the commands of an arm that have not been run yet; its scores by name."""
    model = ["--model", str(arm.folder)]
    held_out = ["--data", options.held_out, "--images", str(options.images)]

    def mrr(protocol: str, distribution: str) -> list[str]:
        drawn = ["--distribution", distribution, "--strength", "strong"]
        return ["eval", "mrr", *model, *held_out, "--protocol", protocol, *drawn]

    commands = {
        "train": ["pretrain", *arm.words(options)],
        "apply": mrr("apply", "full"),
        "apply, jitter": mrr("apply", "jitter"),
        "undo": mrr("undo", "full"),
        "k-NN": ["eval", "knn", *model, "--train", options.neighbours, "--val", options.held_out],
    }
    for name, task in TASKS.items() if options.tasks else ():
        if task[0] == "eval":
            data = ["--train", options.neighbours, "--val", options.held_out]
        else:
            data = ["--data", f"labels={options.neighbours}", "--val", f"labels={options.held_out}"]
            data += ["--out", str(arm.folder / name)]
        commands[name] = [*task, *model, *data]
    results: dict[str, Any] = {"commands": {}}
    for name, words in commands.items():
        command = results["commands"][name] = shlex.join(["iwm", *words])
        if name == "train":
            _run(words, threads)  # Of a finished run it sees only whether it was this one.
            continue
        file = arm.folder / f"{name.replace(', ', '-')}.json"
        kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if kept.get("command") != command or "result" not in kept:
            print(command, flush=True)
            kept = {"command": command, "result": json.loads(_run([*words, "--json"], threads))}
            write_text(file, json.dumps(kept, indent=2) + "\n")
        results[name] = kept["result"]
    return results


def _run(words: list[str], threads: int) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [sys.executable, "-m", "iwm", *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{shlex.join(['iwm', *words])} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def step_seconds(arms: list[Arm], rounds: int = 5, steps: int = 4) -> dict[str, float]:
    """Seconds a step of every arm, by turns in one process on one thread; medians."""
    torch.set_num_threads(1)
    tasks = {}
    for arm in arms:
        config = arm.config()
        task = PretrainTask(config)
        prefer_plain_attention(task)
        tasks[arm.name] = (config, task, task.make_optimizer(config.optim))
    measured: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, (config, task, optimizer) in tasks.items():
            size = config.model.preprocess.size
            crops = torch.randint(0, 256, (config.batch_size, 3, size, size), dtype=torch.uint8)
            started = time.perf_counter()
            for step in range(number * steps, (number + 1) * steps):
                keys = [(step, index) for index in range(len(crops))]
                with autocast(torch.device("cpu"), config.precision):
                    loss, _ = task(crops, step, keys)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                task.after_step(step)
            if number:  # The first round warms up.
                measured[name].append((time.perf_counter() - started) / steps)
    return {name: statistics.median(times) for name, times in measured.items()}


def readings(folder: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of a monitored score."""
    records = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return [(r["step"], r[name]) for r in records if name in r]


def smooth(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Averaged over five neighbours."""
    return [
        (step, statistics.fmean(value for _, value in points[max(i - 2, 0) : i + 3]))
        for i, (step, _) in enumerate(points)
    ]


def at(points: list[tuple[int, float]], step: float) -> float:
    """Readings up to a step, smoothed; the last of that. None that came later counts."""
    return smooth([(where, value) for where, value in points if where <= step])[-1][1]


def table(arms: list[Arm], results: dict[str, Any], seconds: dict[str, float], steps: int) -> str:
    """Markdown: measured scores at equal steps, monitored ones at equal time."""
    fastest = min(seconds.values())
    tasks = [name for name in TASKS if name in results[arms[0].name]]
    columns = [
        "",
        "apply",
        "apply, jitter banks",
        "undo",
        "undo, jitter alone",
        "20-NN",
        *tasks,
        "time a step",
    ]
    columns += ["apply, undo (monitors): equal steps", "equal time"]
    lines = ["| " + " | ".join(columns) + " |", "|" + len(columns) * "---|"]
    for arm in arms:
        r = results[arm.name]
        online = [readings(arm.folder, f"online_{kind}_mrr") for kind in ("apply", "undo")]
        same_time = steps * fastest / seconds[arm.name]
        cells = [
            f"{r['apply']['overall']['mrr']:.3f}",
            f"{r['apply, jitter']['overall']['mrr']:.3f}",
            f"{r['undo']['overall']['mrr']:.3f}",
            f"{r['undo']['per_transformation']['jitter']['mrr']:.3f}",
            f"{r['k-NN']['accuracy']:.1%}",
            *(f"{accuracy(r, name):.1%}" for name in tasks),
            f"{seconds[arm.name] / fastest:.2f}",
            ", ".join(f"{at(points, steps):.2f}" for points in online),
            ", ".join(f"{at(points, same_time):.2f}" for points in online),
        ]
        lines.append("| " + " | ".join([arm.name, *cells]) + " |")
    return "\n".join(lines) + "\n"


def picture(name: str, arms: list[Arm], seconds: dict[str, float], path: Path) -> None:
    """Curves of the monitored scores over steps, and over time by the measured step times."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharey="row", sharex="col")
    fastest = min(seconds.values())
    for row, kind in zip(axes, ("apply", "undo"), strict=True):
        row[0].set_ylabel(f"{kind}-MRR, 32 views, smoothed")
        for arm in arms:
            points = smooth(readings(arm.folder, f"online_{kind}_mrr"))
            steps, values = zip(*points, strict=True)
            row[0].plot(steps, values, label=arm.name)
            row[1].plot([step * seconds[arm.name] / fastest for step in steps], values, label=arm.name)
        for axis in row:
            axis.set_ylim(0, 1)
            axis.grid(alpha=0.3)
    axes[1][0].set_xlabel("steps")
    axes[1][1].set_xlabel("time, in steps of the fastest")
    axes[0][0].legend(fontsize=8, title=name)
    figure.savefig(path)


def draw_tasks(arms: list[Arm], results: dict[str, Any], path: Path) -> None:
    """Accuracies over apply-MRR, the arms by their place in the table [figures 4, 5]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    places = [results[arm.name]["apply"]["overall"]["mrr"] for arm in arms]
    for name in ("k-NN", *TASKS):
        values = [100 * accuracy(results[arm.name], name) for arm in arms]
        axis.plot(places, values, "o", label=LABELS[name])
        for number, point in enumerate(zip(places, values, strict=True), start=1):
            axis.annotate(str(number), point, (3, 4), textcoords="offset points", fontsize=7)
    axis.set_xlabel("apply-MRR, all operations")
    axis.set_ylabel("accuracy, %")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    listed = "\n".join(f"{number}  {arm.name}" for number, arm in enumerate(arms, start=1))
    axis.set_title(listed, fontsize=8, loc="left")
    figure.savefig(path)


def accuracy(result: dict[str, Any], name: str) -> float:
    """Of one of an arm's tasks, or of its neighbours."""
    return float(result[name]["average" if name == "predictor" else "accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", choices=ABLATIONS)
    parser.add_argument("--data", action="append", required=True, help="as for iwm pretrain")
    parser.add_argument("--held-out", required=True, help="class folder that is not trained on")
    parser.add_argument("--neighbours", required=True, help="class folder of k-NN's neighbours")
    parser.add_argument("--out", type=Path, default=Path("ablations"))
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tasks", action="store_true", help="accuracies of probes and of a finetuned predictor"
    )
    parser.add_argument("--jobs", type=int, default=2, help="arms at a time")
    parser.add_argument("--threads", type=int, help="of every arm; the cores are shared out if not given")
    options = parser.parse_args()
    arms = arms_of(options.name, options)
    threads = options.threads or max((os.cpu_count() or 1) // options.jobs, 1)
    for arm in arms:
        print(shlex.join(["iwm", "pretrain", *arm.words(options)]), flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        measured = list(pool.map(lambda arm: train_and_measure(arm, options, threads), arms))
    results = {arm.name: result for arm, result in zip(arms, measured, strict=True)}
    seconds = step_seconds(arms)
    text = table(arms, results, seconds, options.steps)
    write_text(options.out / f"{options.name}.md", text)
    write_text(
        options.out / f"{options.name}.json",
        json.dumps({"seconds_a_step": seconds, "arms": results}, indent=2) + "\n",
    )
    picture(options.name, arms, seconds, options.out / f"{options.name}.png")
    if options.tasks:
        draw_tasks(arms, results, options.out / f"{options.name}-tasks.png")
    print(text)


def _repeated(option: str, values: list[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


if __name__ == "__main__":
    main()
