r"""What the world model is worth for tasks: the paper's tables at a size for two cores [sections 5, 6].

    cd FOLDER  # that holds imagenette/, caltech101/, clothing/, scenes/ and camvid/
    python .../experiments/leverage.py protocols

Studies: `protocols` [tables 4, 5, S1, figure 3], `prediction` [tables 3, S3], `multitask` [table 7],
`segmentation` [table 6], `spectrum` [table 8, figures 4, 5], `domains` [table S5], `marginal`
[table S6]. Every row is some `iwm finetune` or `iwm eval`, printed as it can be typed: the same
images, steps and augmentation for all rows of a study, three seeds each. Differences are paired
by validation image: the interval is 1.96 standard errors of the mean over images of what the
seeds average to. Runs that are done are not done again. OUT gets STUDY.md and STUDY.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iwm.evaluation.classification import class_logits
from iwm.files import write_text
from iwm.finetuning.folders import read_task
from iwm.loading import load


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: of the line.
        options: of `iwm finetune`, or of `iwm eval probe`.
        paper: what the paper has in its place.
        twin: whether it is about the invariant twin.
    """

    name: str
    options: tuple[str, ...]
    paper: str = ""
    twin: bool = False


@dataclass(frozen=True)
class Study:
    """A table.

    Attributes:
        rows: its lines; differences are taken to the first.
        data: data sets; several in one entry are one multitask run.
        source: of the paper's figures.
        shared: options of every row.
        probes: whether the rows are of `iwm eval probe`.
    """

    rows: tuple[Row, ...]
    data: tuple[tuple[str, ...], ...]
    source: str
    shared: tuple[str, ...] = ()
    probes: bool = False


_SAME = ("--epochs", "20", "--batch-size", "64", "--cache-views", "0")
_PREDICTOR = ("--tune", "predictor")
_TOKEN, _STUDENT = ("--output", "token"), ("--branch", "student")
STUDIES: dict[str, Study] = {
    "protocols": Study(
        rows=(
            Row("predictor, random", (*_PREDICTOR, "--init", "random"), "81.5"),
            Row("predictor, pretrained", _PREDICTOR, "83.3"),
            Row("encoder", ("--tune", "encoder"), "82.9"),
            Row("end to end", ("--tune", "all"), "84.4"),
        ),
        data=(("imagenette",), ("caltech101",)),
        source="IWM-Equi 18,384 on ImageNet [table 4]",
        shared=_SAME,
    ),
    "prediction": Study(
        rows=(
            Row("null action, teacher, whole image", _PREDICTOR, "83.3"),
            Row("one token", (*_PREDICTOR, *_TOKEN), "82.8"),
            Row("actions of pretraining", (*_PREDICTOR, "--action", "pretraining"), "83.2"),
            Row("on the student", (*_PREDICTOR, *_STUDENT), "83.1"),
            Row("on the student, one token", (*_PREDICTOR, *_STUDENT, *_TOKEN), "82.6"),
        ),
        data=(("imagenette",),),
        source="IWM 12,384 on ImageNet [table S3]",
        shared=_SAME,
    ),
    "multitask": Study(
        rows=(Row("one predictor for all", ("--single-task-baseline",), "73.5, alone 73.4"),),
        data=(("imagenette", "caltech101", "clothing"),),
        source="average of four data sets [table 7]",
    ),
    "segmentation": Study(
        rows=(
            Row("encoder", ("--tune", "encoder"), "44.2"),
            Row("predictor, random", (*_PREDICTOR, "--init", "random")),
            Row("predictor, pretrained", _PREDICTOR, "46.8"),
            Row("end to end", ("--tune", "all"), "47.0"),
        ),
        data=(("camvid",),),
        source="mIoU on ADE20k [table 6]",
        shared=("--task", "segmentation"),
    ),
    "spectrum": Study(
        rows=(
            Row("equivariant, linear", ("--head", "linear"), "67.5"),
            Row("invariant, linear", ("--head", "linear"), "74.5", twin=True),
            Row("equivariant, attentive", ("--head", "attentive"), "75.1"),
            Row("invariant, attentive", ("--head", "attentive"), "77.0", twin=True),
        ),
        data=(("imagenette",), ("caltech101",)),
        source="ImageNet [tables 8, S2]",
        probes=True,
    ),
    "domains": Study(
        rows=(
            Row("equivariant", ("--head", "attentive"), "54.2, 71.7, 60.5"),
            Row("invariant", ("--head", "attentive"), "51.6, 71.0, 59.4", twin=True),
        ),
        data=(("scenes",),),
        source="iNaturalist, SUN397, Places205 [table S5]",
        probes=True,
    ),
    "marginal": Study(
        rows=(
            Row("the encoding", ("--head", "linear"), "not given"),
            Row("1 prediction", ("--head", "linear", "--marginalise", "1"), "64.5"),
            Row("8 predictions", ("--head", "linear", "--marginalise", "8"), "64.3"),
            Row("16 predictions", ("--head", "linear", "--marginalise", "16"), "64.6"),
        ),
        data=(("imagenette",),),
        source="ImageNet [table S6]",
        probes=True,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--model", default="iwm-tiny")
    parser.add_argument("--twin", default="iwm-tiny-inv", help="the invariant one")
    parser.add_argument("--images", type=int, default=3000, help="for training, of each data set at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("leverage"))
    options = parser.parse_args()
    study = STUDIES[options.study]
    jobs = [(row, data, seed) for data in study.data for row in study.rows for seed in range(options.seeds)]
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda job: run(options, study, *job), jobs))
    found = {(row.name, data, seed): result for (row, data, seed), result in zip(jobs, results, strict=True)}
    text = "\n".join(table(study, data, found, options.seeds) for data in study.data)
    write_text(options.out / f"{options.study}.md", text)
    listed = [{"row": name, "data": data, "seed": seed, **r} for (name, data, seed), r in found.items()]
    write_text(options.out / f"{options.study}.json", json.dumps(listed, indent=2) + "\n")
    print(text)


def run(
    options: argparse.Namespace, study: Study, row: Row, data: tuple[str, ...], seed: int
) -> dict[str, Any]:
    """One command, if it has not been run yet, and what it reported."""
    slug = "-".join((*data, *row.name.replace(",", "").split(), f"seed{seed}"))
    folder = options.out / options.study / slug
    model = options.twin if row.twin else options.model
    extra = [*study.shared, *row.options, "--seed", str(seed)]
    if study.probes:
        words = ["eval", "probe", "--model", model, "--train", f"{data[0]}/train", "--val", f"{data[0]}/val"]
        words += [*extra, "--json"]
    else:
        words = ["finetune", "--model", model, *(w for name in data for w in ("--data", f"{name}={name}"))]
        words += ["--out", str(folder), "--images", str(options.images), *extra]
    file = folder / ("probe.json" if study.probes else "result.json")
    if not file.is_file():
        printed = call(words, max((os.cpu_count() or 1) // options.jobs, 1))
        if study.probes:
            write_text(file, printed)
    result = json.loads(file.read_text(encoding="utf-8"))
    return {"command": shlex.join(["iwm", *words]), "folder": str(folder), "result": result}


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


def table(study: Study, data: tuple[str, ...], found: dict[Any, dict[str, Any]], seeds: int) -> str:
    """Markdown: scores averaged over seeds, differences to the first row, costs."""
    lines = [
        f"`{'`, `'.join(data)}`:",
        "",
        f"| | score | of each seed | over the first row | finetuned | FLOPs an image | {study.source} |",
        "|---|---|---|---|---|---|---|",
    ]
    by_row = {row.name: [found[row.name, data, seed] for seed in range(seeds)] for row in study.rows}
    first = by_row[study.rows[0].name]
    for row in study.rows:
        results = [r["result"] for r in by_row[row.name]]
        cost = results[0].get("cost")
        cells = [
            row.name,
            _mean([score(r) for r in results]),
            ", ".join(f"{score(r):.1%}" for r in results),
            "" if row is study.rows[0] else difference(by_row[row.name], first, data, study),
            f"{cost['trained'] / 1e6:.2f} M" if cost else "",
            f"{cost['flops'] / 1e9:.2f} G" if cost else "",
            row.paper,
        ]
        lines.append(f"| {' | '.join(cells)} |")
        if len(data) > 1:
            lines += [_task_line(name, results) for name in data]
    return "\n".join([*lines, ""])


def _task_line(name: str, results: list[dict[str, Any]]) -> str:
    """One task of a multitask run, beside the same recipe on it alone."""
    tasks = [next(t for t in r["tasks"] if t["task"] == name) for r in results]
    joint, alone = [t["scores"]["accuracy"] for t in tasks], [t["single"] for t in tasks]
    over = statistics.fmean(joint) - statistics.fmean(alone)
    each = ", ".join(f"{value:.1%}" for value in joint)
    return f"| {name} | {_mean(joint)} | {each} | {over:+.1%} over {_mean(alone)} alone | | | |"


def _mean(values: list[float]) -> str:
    return f"{statistics.fmean(values):.1%}"


def score(result: dict[str, Any]) -> float:
    """Accuracy or mIoU of a run, averaged over its tasks."""
    return float(result["average"] if "average" in result else result["accuracy"])


def difference(
    results: list[dict[str, Any]], first: list[dict[str, Any]], data: tuple[str, ...], study: Study
) -> str:
    """Of two rows: paired by image with an interval where there is one answer an image."""
    if study.probes or len(data) > 1 or "segmentation" in study.shared:
        means = [statistics.fmean(score(r["result"]) for r in row) for row in (results, first)]
        return f"{means[0] - means[1]:+.1%}"
    return interval(correct(results, data[0]) - correct(first, data[0]))


def correct(results: list[dict[str, Any]], data: str) -> Tensor:
    """Share of the seeds that are right about every validation image, `[n]`."""
    split = read_task(f"{data}={data}").val
    rows = []
    for result in results:
        file = Path(result["folder"]) / "correct.json"
        if not file.is_file():
            model = load(result["folder"], task=data)
            adapter = model.load_adapter(model.config.adapter_of(data))
            logits = class_logits(model, adapter, data, split.images)
            write_text(file, json.dumps((logits.argmax(dim=1) == torch.tensor(split.classes)).tolist()))
        rows.append(torch.tensor(json.loads(file.read_text(encoding="utf-8")), dtype=torch.float64))
    return torch.stack(rows).mean(dim=0)


def interval(differences: Tensor) -> str:
    """Mean of paired differences and 1.96 of its standard errors, in points."""
    error = float(differences.std()) / len(differences) ** 0.5
    return f"{float(differences.mean()):+.1%} ± {1.96 * error:.1%}"


if __name__ == "__main__":
    main()
