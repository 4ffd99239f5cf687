"""`iwm finetune`: from a model and labelled folders to a model that classifies or segments."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iwm.cli.launch import is_main, launcher, started_processes
from iwm.cli.options import ModelName, console, print_json
from iwm.cli.pretrain import parse_overrides, set_dotted
from iwm.errors import InvalidConfigError

if TYPE_CHECKING:
    from iwm.finetuning.config import FinetuneConfig
    from iwm.finetuning.folders import TaskData
    from iwm.finetuning.result import FinetuneResult

_PLAIN = (
    "task", "tune", "head", "init", "steps", "batch_size", "seed", "device", "images", "log_every",
    "checkpoint_every",
)  # fmt: skip
"""Options that are fields of the configuration under the same name."""


def finetune_command(
    context: typer.Context,
    data: Annotated[
        list[str],
        typer.Option(
            help="FOLDER or NAME=FOLDER: class subfolders, or images/ and masks/; several are tasks."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder; iwm.load takes it afterwards.")],
    model: ModelName = "iwm-tiny",
    task: Annotated[str, typer.Option(help="classification or segmentation.")] = "classification",
    val: Annotated[
        list[str] | None,
        typer.Option(
            help="Validation images, as --data; by default the folder val beside train, or a tenth."
        ),
    ] = None,
    tune: Annotated[
        str | None, typer.Option(help="none, predictor, encoder or all; the default is predictor.")
    ] = None,
    head: Annotated[str | None, typer.Option(help="linear, attentive or upernet.")] = None,
    init: Annotated[str | None, typer.Option(help="Of the predictor: pretrained or random.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Hyperparameters; by default those that fit --tune and the data's size."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a step, of all tasks.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of every random draw.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto.")] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Train on so many of each --data, evenly spaced.")
    ] = None,
    log_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between lines of metrics.jsonl.")
    ] = None,
    checkpoint_every: Annotated[int | None, typer.Option(min=1, help="Steps between checkpoints.")] = None,
    eval_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between validations; the best weights are kept.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Class names of segmentation, one a line; default labels.txt.")
    ] = None,
    ignore: Annotated[
        list[int] | None, typer.Option(help="Number of the masks that does not count, such as 255.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of kept latents; by default in the run folder.")
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read.")
    ] = False,
    single_task_baseline: Annotated[
        bool, typer.Option("--single-task-baseline", help="Then train each task alone, for as many steps.")
    ] = False,
    terms: Annotated[
        str, typer.Option("--license", help="Of what comes out, which the data may restrict.")
    ] = "",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in --out, also with other --steps or --optim.lr."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Finetune a model for labelled photographs; Ctrl-C leaves a checkpoint, the same command goes on.

    Every other field is an option too, e.g. --optim.lr 5e-4, --output token,
    --augment.mixup 0.8 --cache-views 0; a wrong name gets a suggestion.
    """
    from iwm.config import TaskKind
    from iwm.fields import require_choice
    from iwm.finding import find_model
    from iwm.finetuning.config import Tune
    from iwm.finetuning.recipes import find_recipe
    from iwm.finetuning.run import Finetuning, finetune, finetune_alone
    from iwm.model_folder import CONFIG_FILE, read_config

    require_choice("task", task, TaskKind)
    if tune is not None:
        require_choice("tune", tune, Tune)
    if recipe is not None:
        find_recipe(recipe)
    if single_task_baseline and len(data) < 2:
        raise InvalidConfigError("--single-task-baseline compares several tasks; give several --data.")
    if single_task_baseline and started_processes() > 1:
        raise InvalidConfigError(
            "--single-task-baseline runs in one process; under torchrun, run every task alone with these --steps."
        )
    if task != "segmentation" and (labels or ignore):
        raise InvalidConfigError("--labels and --ignore are about masks; add --task segmentation.")
    _typed(context)  # Wrong words are told before any image is looked at, and a model that is not there.
    read_config(find_model(model, [CONFIG_FILE]).folder)
    tasks = _read(data, val or [], task, images or 0, labels, ignore or [], skip_unreadable)
    chosen, config = configured(context, len(tasks), sum(len(t.train) for t in tasks))
    if cache is not None and not config.cache_views:
        raise InvalidConfigError(
            "--cache is for kept latents, and none are: add --cache-views, or leave it out."
        )
    if single_task_baseline and config.patience:
        raise InvalidConfigError(
            "--patience may end the joint run before its schedule does, and each task alone would then be trained on "
            "a schedule that ends there: another comparison. Leave out --patience, or --single-task-baseline."
        )
    command = _command(context)
    plan = Finetuning(
        model=model, tasks=tasks, out=out, cache=cache, command=command, license=terms or "unspecified"
    )
    if not as_json and is_main():
        described = ", ".join(f"{t.name} ({len(t.train)} images, {len(t.labels)} classes)" for t in tasks)
        console.print(f"Recipe {chosen} on {described}", style="dim")
    result = finetune(config, plan, resume=resume)
    if result is not None and single_task_baseline:
        result = finetune_alone(config, plan, result, resume=resume)
    if result is None:
        if not is_main():
            return
        console.print(f"Stopped; the checkpoint is in {out}. The same command goes on.")
        raise typer.Exit(130)
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result, str(out))


def configured(context: typer.Context, tasks: int, images: int) -> tuple[str, FinetuneConfig]:
    """The recipe that a command line chooses, and the configuration that it makes of it.

    Args:
        context: of the command, parsed.
        tasks: how many there are.
        images: for training, of all tasks.
    """
    from iwm.fields import from_dict, to_json
    from iwm.finetuning.config import FinetuneConfig
    from iwm.finetuning.recipes import LARGE, find_recipe, protocol

    options, typed = context.params, _typed(context)
    chosen = options["recipe"]
    if chosen is None:
        chosen = protocol(options["task"], options["tune"] or "predictor", options["head"], tasks)
        chosen += "-small" if images < LARGE else ""
    fields: dict[str, Any] = json.loads(to_json(find_recipe(chosen, tasks)))
    plain = {name: options[name] for name in _PLAIN} | {
        "monitor_every": options["eval_every"], "ignore": list(options["ignore"] or []) or None
    }  # fmt: skip
    overrides: dict[str, Any] = {k: v for k, v in plain.items() if v is not None} | typed
    if "steps" in overrides:
        overrides["epochs"] = 0.0
    elif not overrides.get("epochs", 1):
        raise InvalidConfigError("--epochs 0 leaves the length to --steps: give that too.")
    for name, value in overrides.items():
        set_dotted(fields, name, value)
    return chosen, from_dict(FinetuneConfig, fields)


def _typed(context: typer.Context) -> dict[str, Any]:
    """Fields that were named in full, such as `--optim.lr`."""
    from iwm.fields import to_json
    from iwm.finetuning.config import FinetuneConfig

    options = [o for p in context.command.params for o in p.opts]
    typed = parse_overrides(context.args, json.loads(to_json(FinetuneConfig())), options)
    if context.params["steps"] is not None and typed.get("epochs"):
        raise InvalidConfigError("--steps and --epochs both say how long the run is; leave one of them out.")
    return typed


def _read(
    data: list[str],
    val: list[str],
    kind: str,
    images: int,
    labels: Path | None,
    ignore: list[int],
    skip: bool,
) -> list[TaskData]:
    """The tasks, each with the validation set of its name."""
    from iwm.finetuning.folders import parse_data, read_task

    names = [parse_data(one)[0] for one in data]
    places: dict[str, Path] = {}
    for one in val:
        name, folder = parse_data(one)
        if len(data) == 1 and "=" not in one:
            name = names[0]
        if name not in names:
            raise InvalidConfigError(
                f"--val {one} belongs to no --data; write --val NAME=FOLDER, with a NAME of {', '.join(names)}."
            )
        places[name] = folder
    return [
        read_task(
            one, places.get(name), segmentation=kind == "segmentation", images=images, labels=labels,
            ignore=ignore, skip_unreadable=skip,
        )
        for one, name in zip(data, names, strict=True)
    ]  # fmt: skip


def _command(context: typer.Context) -> str:
    """The command line, as it can be typed again."""
    words = launcher("finetune")
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        option = parameter.opts[0]
        if parameter.name in ("resume", "as_json") or value in (None, False, "", []) or value == ():
            continue
        values = value if isinstance(value, list | tuple) else [value]
        words += [option] if value is True else [w for v in values for w in (option, str(v))]
    return shlex.join([*words, *context.args])


def _print(result: FinetuneResult, folder: str) -> None:
    from rich.table import Table

    table = Table(
        title=result.title, title_justify="left", title_style="bold", box=None, show_header=False,
        pad_edge=False,
    )  # fmt: skip
    for name, value in result.rows():
        table.add_row(name, value)
    console.print(table)
    task = result.tasks[0]
    call = "segment" if task.kind == "segmentation" else "classify"
    console.print(f'\nUse it: iwm.load("{folder}", task="{task.task}").{call}("photo.jpg")')
    for one in result.tasks:
        console.print(f"Measure it again: {one.scores['command']}", style="dim")
