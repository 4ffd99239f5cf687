r"""What the world model is worth for tasks: the paper's tables at a size for two cores [sections 5, 6].

    cd FOLDER  # that holds imagenette/, caltech101/, clothing/, scenes/ and camvid/
    python .../experiments/leverage.py protocols
    python .../experiments/leverage.py prediction --model RUN
    python .../experiments/leverage.py spectrum --twin RUN

Studies: `protocols` [tables 4, 5, S1, figure 3], `prediction` [tables 3, S3], `multitask` [table 7],
`segmentation` [table 6], `spectrum` [table 8, figures 4, 5], `domains` [table S5], `marginal`
[table S6]. Every row is some `iwm finetune` or `iwm eval`, printed as it can be typed, three seeds
each: the same images for all rows of a study, and the same steps and augmentation for those that
tune something. `prediction` also finetunes on the student: RUN is the folder of an `iwm pretrain`,
for what ships has none. The names of CamVid's classes are those below.

Differences are paired by validation image: the interval is 1.96 standard errors of the mean over
images of what the seeds average to, and for mIoU 1.96 standard deviations over resampled images.
Runs that are done are not done again, and studies share them; OUT/runs has a folder each, with its
command, and one of another command, or of other hyperparameters under the same one, is refused.
OUT gets STUDY.md and STUDY.json, for `protocols` and `spectrum` also STUDY.png, the latter where the
rows that --row chose are of both models, MRR among them.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer
from paired import ANSWERS_FILE, gain, gains_over_alone, token_overlaps
from studies import CAMVID, STUDIES, Row, Study

from iwm.cli.finetune import configured
from iwm.cli.main import app
from iwm.errors import IWMError
from iwm.evaluation.labelled import VOID
from iwm.fields import to_json
from iwm.files import write_text
from iwm.finetuning.cache import predictor_state
from iwm.finetuning.config import FinetuneConfig
from iwm.finetuning.probe import probe_config
from iwm.loading import load
from iwm.training.run_folder import FREE_FIELDS, RUN_FILE, changed_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMMAND_FILE = "command.txt"
MODEL_FILE = "model.txt"
"""Of the folder of a run: the encoder's `space`; weights may change under a name."""
IDLE_FIELDS = FREE_FIELDS - {"monitor_every"}
"""Of a configuration: without a bearing on the result."""


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        words: what follows `iwm`.
        folder: what it is about to leave.
        weights: of the model, in short.
    """

    words: tuple[str, ...]
    folder: Path
    weights: str

    @property
    def command(self) -> str:
        """As it can be typed."""
        return shlex.join(["iwm", *self.words])


Found = dict[tuple[str, tuple[str, ...]], list[dict[str, Any]]]
"""By row and data: what the run of every seed reported, its `command` and its `folder`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--model", default="iwm-tiny")
    parser.add_argument("--twin", default="iwm-tiny-inv", help="the invariant one")
    parser.add_argument("--data", metavar="NAME", help="of the study's data sets only this one")
    parser.add_argument("--row", metavar="NAME", action="append", help="of the study's lines only this one")
    parser.add_argument("--images", type=int, default=3000, help="for training, of each data set at most")
    parser.add_argument(
        "--steps", type=int, help="of every `iwm finetune`, instead of what its recipe or the study has"
    )
    parser.add_argument(
        "--eval-every",
        type=int,
        help="steps between validations of every `iwm finetune`; with as many as --steps the last weights count",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("leverage"))
    options = parser.parse_args()
    study = only(STUDIES[options.study], options.data, options.row)
    check_models(options, study)
    found = run_all(options, study)
    text = "\n".join(table(study, data, found, options.out) for data in study.data)
    name = f"{options.study}-{options.data}" if options.data else options.study
    name += "-some" if options.row else ""
    name += f"-{options.steps}-steps" if options.steps is not None else ""
    write_text(options.out / f"{name}.md", text)
    listed = [
        {"row": name, "data": data, "seed": seed, **result}
        for (name, data), results in found.items()
        for seed, result in enumerate(results)
    ]
    write_text(options.out / f"{name}.json", json.dumps(listed, indent=2) + "\n")
    print(text)
    if options.study in PICTURES and drawable(options.study, study):
        picture(options.study, study, found, options.out / f"{name}.png")


def only(study: Study, data: str | None, names: Sequence[str] | None = None) -> Study:
    """The study about one of its data sets, or about all; and of its lines those of some names, or all."""
    chosen = tuple(names for names in study.data if data is None or data == "+".join(names))
    if not chosen:
        known = ", ".join("+".join(names) for names in study.data)
        raise SystemExit(f"This study has no data set {data}; it has {known}.")
    if names is None:
        return replace(study, data=chosen)
    rows = tuple(row for row in study.rows if row.name in names)
    if len(rows) < len(names):
        raise SystemExit(f"This study has the rows {'; '.join(row.name for row in study.rows)}.")
    pairs = tuple(pair for pair in study.pairs if set(pair) <= set(names))
    return replace(study, data=chosen, rows=rows, claims=pairs)


@functools.cache
def weights(name: str, student: bool) -> str:
    """Of a model: says whether encoder and predictor are still those they were."""
    model = load(name, branch="student" if student else "teacher")
    return f"{model.space} {predictor_state(model)}"


def check_models(options: argparse.Namespace, study: Study) -> None:
    """End before the first run where a row's model, or the branch of it, cannot be had."""
    for row in study.rows:
        name, option = (options.twin, "--twin") if row.twin else (options.model, "--model")
        student = "student" in row.options
        try:
            weights(name, student)
        except IWMError as error:
            what = "a model with its student" if student else "a model"
            raise SystemExit(
                f'The row "{row.name}" needs {what}, and {name} is none: {error}\n'
                f"Give the folder of an `iwm pretrain` with {option}."
            ) from error


def run_all(options: argparse.Namespace, study: Study) -> Found:
    """Results of all rows, data sets and seeds."""
    jobs = {
        (row.name, data): [make_job(options, study, row, data, seed) for seed in range(options.seeds)]
        for data in study.data
        for row in study.rows
    }
    each = list(dict.fromkeys(job for group in jobs.values() for job in group))
    for job in each:
        check_command(job)
    threads = max((os.cpu_count() or 1) // options.jobs, 1)
    with ThreadPoolExecutor(options.jobs) as pool:
        results = dict(zip(each, pool.map(lambda job: run(job, threads), each), strict=True))
    return {key: [results[job] for job in group] for key, group in jobs.items()}


def make_job(options: argparse.Namespace, study: Study, row: Row, data: tuple[str, ...], seed: int) -> Job:
    """The command of a row for a seed, and a folder named after what it does."""
    model = options.twin if row.twin else options.model
    own = [*study.shared, *row.options]
    if row.kind == "finetune" and options.steps is not None:
        if "--epochs" in own:
            at = own.index("--epochs")
            del own[at : at + 2]
        own += ["--steps", str(options.steps)]
    if row.kind == "finetune" and options.eval_every is not None:
        own += ["--eval-every", str(options.eval_every)]
    own += ["--images", str(options.images)] if row.kind != "mrr" else []
    own += ["--seed", str(seed)]
    known = [row.kind, *data, *(["twin"] if row.twin else []), Path(model).name]
    name = "-".join([*known, *(word.removeprefix("--") for word in own)])
    folder = options.out / "runs" / re.sub(r"[^\w.-]", "-", name)
    if row.kind == "mrr":
        words = ["eval", "mrr", "--model", model, "--data", f"{data[0]}/val", *own, "--json"]
    elif row.kind == "probe":
        words = ["eval", "probe", "--model", model, "--train", f"{data[0]}/train"]
        words += ["--val", f"{data[0]}/val", *own, "--answers", str(folder / ANSWERS_FILE), "--json"]
    else:
        words = ["finetune", "--model", model, *(w for name in data for w in ("--data", f"{name}={name}"))]
        words += ["--out", str(folder), *own]
        words += (
            ["--cache", str(options.out / "cache")] if "--centre" in own else []
        )  # Of one view, for all seeds.
        words += ["--labels", str(camvid_labels(options.out))] if study.segments else []
    return Job(tuple(words), folder, weights(model, "student" in row.options))


def camvid_labels(out: Path) -> Path:
    """A file of the names of CamVid's classes."""
    path = out / "camvid-labels.txt"
    write_text(path, "\n".join(CAMVID) + "\n")
    return path


def check_command(job: Job) -> None:
    """End where a folder holds what another command made."""
    if not job.folder.is_dir():
        return
    kept = job.folder / COMMAND_FILE
    before = kept.read_text(encoding="utf-8").strip() if kept.is_file() else "a command that it does not name"
    if before != job.command:
        raise SystemExit(
            f"{job.folder} was made by\n  {before}\nand not by\n  {job.command}\n"
            "Take another --out, or remove that folder."
        )
    model = job.folder / MODEL_FILE
    if not model.is_file() or model.read_text(encoding="utf-8").strip() != job.weights:
        raise SystemExit(
            f"{job.folder} was made with other weights of the same name. Take another --out, or remove that folder."
        )
    check_settings(job)


def check_settings(job: Job) -> None:
    """End where a run that is done had hyperparameters that its command does not mean any more."""
    file = job.folder / "result.json"
    if not finished(file):
        return
    config = configuration(job, json.loads(file.read_text(encoding="utf-8")).get("train_images", 0))
    if config is None:
        return
    try:
        found = changed_settings(job.folder, config)
    except IWMError as error:
        raise SystemExit(
            f"{job.folder} does not say with what settings it was made ({error}).\n"
            "Take another --out, or remove that folder."
        ) from error
    changed = [said for name, said in found.items() if name not in IDLE_FIELDS]
    if changed:
        raise SystemExit(
            f"{job.folder} was made with what the recipe was then: {'; '.join(changed)}.\n"
            "Take another --out, or remove that folder."
        )


def configuration(job: Job, images: int = 0) -> FinetuneConfig | None:
    """What a job's command means now, of a finetuning for so many training images; None if it trains nothing."""
    command, words = typer.main.get_command(app), list(job.words)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    context = cast("typer.Context", command.make_context("iwm", words))
    if command.name == "probe":
        options = context.params
        return probe_config(options["head"], options["seed"], batch_norm=options["batch_norm"])
    if command.name != "finetune":
        return None
    _, config = configured(context, len(context.params["data"]), images)
    return config.resolved(images)


def run(job: Job, threads: int) -> dict[str, Any]:
    """One command, if it has not been run to its end yet, and what it reported."""
    file = job.folder / "result.json"
    if not finished(file):
        write_text(job.folder / MODEL_FILE, job.weights + "\n")
        write_text(job.folder / COMMAND_FILE, job.command + "\n")
        if job.words[:2] == ("eval", "probe"):  # Of a finetuning, the run folder has it.
            write_text(job.folder / RUN_FILE, to_json(configuration(job)))
        printed = call(list(job.words), threads)
        if job.words[0] == "eval":
            write_text(file, printed)
    result = json.loads(file.read_text(encoding="utf-8"))
    return {"command": job.command, "folder": str(job.folder), "result": result}


def finished(file: Path) -> bool:
    """Whether a result is there, with the baselines that a multitask run adds last."""
    if not file.is_file():
        return False
    tasks = json.loads(file.read_text(encoding="utf-8")).get("tasks", [])
    return len(tasks) < 2 or all(task["single"] is not None for task in tasks)


def call(words: list[str], threads: int) -> str:
    """Standard output of an `iwm` command; the script ends where it fails."""
    command = shlex.join(["iwm", *words])
    print(command, flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [sys.executable, "-m", "iwm", *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def table(study: Study, data: tuple[str, ...], found: Found, out: Path) -> str:
    """Markdown: scores averaged over seeds, costs; then differences."""
    lines = [
        f"`{'`, `'.join(data)}`:",
        "",
        f"| | score | of each seed | finetuned | FLOPs an image | {study.source} |",
        "|---|---|---|---|---|---|",
    ]
    for row in study.rows:
        results = [r["result"] for r in found[row.name, data]]
        scores, cost = [score(r) for r in results], results[0].get("cost")
        form = ".3f" if row.kind == "mrr" else ".1%"
        cells = [
            row.name,
            f"{statistics.fmean(scores):{form}}",
            ", ".join(f"{value:{form}}" for value in scores),
            f"{cost['trained'] / 1e6:.2f} M" if cost else "",
            f"{cost['flops'] / 1e9:.2f} G" if cost else "",
            row.paper,
        ]
        lines.append(f"| {' | '.join(cells)} |")
        if len(data) > 1:
            lines += [line for name in data for line in _task_lines(name, results)]
    if study.segments:
        lines += ["", *_class_lines(study, data, found, camvid_labels(out))]
    return "\n".join([*lines, "", *(f"- {line}" for line in differences(study, data, found, out)), ""])


def _class_lines(study: Study, data: tuple[str, ...], found: Found, labels: Path) -> list[str]:
    """Overlap of every class, averaged over seeds, and what a model of one answer a token could reach."""
    rows, names = {}, [name for name in CAMVID if name != VOID]
    lines = [f"| overlap | {' | '.join(names)} |", f"|---{'|---' * len(names)}|"]
    for row in study.rows:
        scores = [r["result"]["tasks"][0]["scores"]["per_class"] for r in found[row.name, data]]
        rows[row.name] = [statistics.fmean(s[name] or 0.0 for s in scores) for name in names]
    rows[f"masks of {PATCH}-pixel tokens"] = token_overlaps(data[0], labels, len(names), PATCH).tolist()
    return [
        *lines,
        *(f"| {name} | {' | '.join(f'{v:.1%}' for v in values)} |" for name, values in rows.items()),
    ]


def _task_lines(name: str, results: list[dict[str, Any]]) -> list[str]:
    """One task of a multitask run, and the same recipe on it alone."""
    tasks = [next(t for t in r["tasks"] if t["task"] == name) for r in results]
    together, alone = [t["scores"]["accuracy"] for t in tasks], [t["single"] for t in tasks]
    return [
        f"| {title} | {statistics.fmean(values):.1%} | {', '.join(f'{value:.1%}' for value in values)} | | | |"
        for title, values in ((name, together), (f"{name}, alone", alone))
    ]


def differences(study: Study, data: tuple[str, ...], found: Found, out: Path) -> list[str]:
    """In words: between rows, or of several tasks together over each alone."""
    folders = {row.name: [Path(r["folder"]) for r in found[row.name, data]] for row in study.rows}
    if len(data) > 1:
        return [
            f"{name}, {task} over alone: {value}"
            for name, own in folders.items()
            for task, value in gains_over_alone(own, data).items()
        ]
    labels = camvid_labels(out) if study.segments else None
    lines = []
    for one, other in study.pairs:
        lines.append(f"{one} over {other}: {gain(folders[one], folders[other], data[0], labels)}")
    return lines


def score(result: dict[str, Any]) -> float:
    """Accuracy or mIoU of a run, averaged over its tasks, or MRR."""
    if "overall" in result:
        return float(result["overall"]["mrr"])
    return float(result["average"] if "average" in result else result["accuracy"])


def drawable(name: str, study: Study) -> bool:
    """Whether the rows that were chosen are enough for the figure: that of `spectrum` pairs two models."""
    if name != "spectrum":
        return True
    rows = {row.name for row in study.rows}
    protocols = {"MRR", *(row.split(", ")[1] for row in rows)}
    return len(protocols) > 1 and rows >= {f"{model}, {one}" for model in MODELS for one in protocols}


def picture(name: str, study: Study, found: Found, path: Path) -> None:
    """The figure of a study, a panel for each of its data sets."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(study.data), 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, data in zip(figure.subplots(1, len(study.data), squeeze=False)[0], study.data, strict=True):
        PICTURES[name](axis, study, data, found)
        axis.set_title(", ".join(data))
        axis.set_ylabel("accuracy, %")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False)
    figure.savefig(path)


def draw_efficiency(axis: Axes, study: Study, data: tuple[str, ...], found: Found) -> None:
    """Accuracy against finetuned parameters, every seed and their mean [figure 3]."""
    for row in study.rows:
        results = [r["result"] for r in found[row.name, data]]
        points = [100 * score(r) for r in results]
        trained = results[0]["cost"]["trained"] / 1e6
        mean = axis.plot(trained, statistics.fmean(points), "o", label=row.name)[0]
        axis.plot([trained] * len(points), points, "_", color=mean.get_color())
    axis.set_xlabel("finetuned parameters, millions")
    axis.set_xlim(left=0)


def draw_spectrum(axis: Axes, study: Study, data: tuple[str, ...], found: Found) -> None:
    """Accuracy of every protocol against MRR, from the invariant model to the other [figures 4, 5]."""

    def of(model: str, protocol: str) -> list[float]:
        return [score(r["result"]) for r in found[f"{model}, {protocol}", data]]

    places = [statistics.fmean(of(model, "MRR")) for model in MODELS]
    for protocol in dict.fromkeys(row.name.split(", ")[1] for row in study.rows if row.kind != "mrr"):
        points = [[100 * value for value in of(model, protocol)] for model in MODELS]
        line = axis.plot(places, [statistics.fmean(p) for p in points], "o-", label=protocol)[0]
        for place, seeds in zip(places, points, strict=True):
            axis.plot([place] * len(seeds), seeds, "_", color=line.get_color())
    axis.set_xlabel(f"apply-MRR: invariant {places[0]:.2f}, equivariant {places[1]:.2f}")
    axis.set_xlim(0, 1)


PATCH = 16
"""Pixels of a side of a token of every model here."""
MODELS = ("invariant", "equivariant")
"""Of `spectrum`, as its rows name them."""
PICTURES = {"protocols": draw_efficiency, "spectrum": draw_spectrum}


if __name__ == "__main__":
    main()
