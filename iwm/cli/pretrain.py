"""`iwm pretrain`: train a world model from a folder of images."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iwm.cli.launch import is_main, launcher, started_processes
from iwm.cli.options import console, print_json
from iwm.errors import InvalidConfigError, nearest
from iwm.fields import dotted

if TYPE_CHECKING:
    from iwm.pretraining.config import PretrainConfig


def pretrain_command(
    context: typer.Context,
    recipe: Annotated[str, typer.Option(help="Name of a recipe; see iwm list.")] = "iwm-tiny",
    data: Annotated[
        list[str] | None,
        typer.Option(help="Folder of images, may be given several times; or tar shards; or hf:org/name."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Run folder, runs/RECIPE if not given; iwm.load takes it afterwards."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a step.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of every random draw.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto.")] = None,
    log_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between lines of metrics.jsonl.")
    ] = None,
    checkpoint_every: Annotated[int | None, typer.Option(min=1, help="Steps between checkpoints.")] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in --out, also with other --steps or --optim.lr."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the options, print what the run would take, and stop.")
    ] = False,
    deadline: Annotated[
        float, typer.Option(min=0.01, help="Hours that --dry-run works out the pace for.")
    ] = 24.0,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that --dry-run plans for; torchrun starts them.")
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print what --dry-run works out as JSON; of a run, see metrics.jsonl."),
    ] = False,
) -> None:
    """Train a world model on a folder of images; Ctrl-C leaves a checkpoint, the same command goes on.

    Every other field of the recipe is a dotted option, e.g. --optim.lr 5e-4 or
    --model.predictor.depth 4; a wrong name gets a suggestion.
    """
    from iwm.device import planned_device
    from iwm.fields import from_dict, to_json
    from iwm.pretraining.config import PretrainConfig
    from iwm.pretraining.recipes import find_recipe
    from iwm.pretraining.run import check_start, pretrain
    from iwm.zoo import ZOO

    fields: dict[str, Any] = json.loads(to_json(find_recipe(recipe)))
    plain = {
        "steps": steps, "batch_size": batch_size, "seed": seed, "device": device, "log_every": log_every,
        "checkpoint_every": checkpoint_every,
    }  # fmt: skip
    overrides = {k: v for k, v in plain.items() if v is not None}
    overrides |= parse_overrides(context.args, fields, [o for p in context.command.params for o in p.opts])
    for name, value in overrides.items():
        set_dotted(fields, name, value)
    config = from_dict(PretrainConfig, fields)
    named, out = out is not None, out or Path("runs", recipe)
    if dry_run:
        count = processes or started_processes()
        device_of_run, here = planned_device(config.device)
        config = check_start(
            config,
            data or (),
            out if named or data else None,
            resume=resume,
            processes=count,
            elsewhere=not here,
        )
        _print_estimate(
            config, deadline, count, f"{device_of_run.type}{'' if here else ', which is not here'}", as_json
        )
        return
    if as_json:
        raise typer.BadParameter("--json goes with --dry-run; what a run measures is in its metrics.jsonl.")
    if processes:
        raise typer.BadParameter("--processes goes with --dry-run; torchrun --nproc-per-node starts them.")
    if not data:  # Only --dry-run needs none.
        raise typer.BadParameter("Missing option '--data'.")
    command = shlex.join([*launcher("pretrain"), "--recipe", recipe, *typed(data, out, overrides)])
    done = pretrain(config, data, out, resume=resume, command=command)
    if not is_main():
        raise typer.Exit(0 if done else 130)
    if done:
        folder = os.path.join(".", out) if str(out) in ZOO else str(out)
        console.print(f'Trained {config.steps} steps. Load it: iwm.load("{folder}")')
        console.print(f"Measure it: iwm eval mrr --model {shlex.quote(folder)} --data FOLDER", style="dim")
    else:
        console.print(f"Stopped; the checkpoint is in {out}. Continue: {command} --resume")
        raise typer.Exit(130)


def _print_estimate(config: PretrainConfig, hours: float, processes: int, device: str, as_json: bool) -> None:
    from iwm.pretraining.estimate import estimate

    e = estimate(config, processes)
    if as_json:
        pace = {
            "deadline_hours": hours,
            "images_per_second": e.pace(hours),
            "processes": processes,
            "device": device,
        }
        print_json(dataclasses.asdict(e) | pace)
        return
    lines = {
        "parameters": f"{e.encoder / 1e6:.1f} M encoder, {e.predictor / 1e6:.1f} M world model",
        "run": f"{e.steps:,} steps of {config.batch_size:,}: {e.images:,} images",
        "FLOPs": f"{e.flops_per_image / 1e9:.2f} G a training image, {e.flops_per_image * e.images:.2e} in all",
        "visible": f"{e.visible:.0%} of the source's patches on average",
        "world model": f"{e.predictor_share:.2f} of the encoder's FLOPs, whole image",
        "device": device,
        "memory": f"{e.weights_bytes / 2**30:.1f} GiB of weights, gradients and averages, and about "
        f"{e.activation_bytes / 2**30:.1f} GiB of activations a process ({processes} processes, "
        f"accumulate {config.accumulate})",
        "pace": f"{e.pace(hours):,.0f} images/s finish in {hours:g} h: "
        f"{e.pace(hours) * e.flops_per_image / 1e12:.2f} TFLOP/s",
    }
    for name, value in lines.items():
        console.print(f"{name:12} {value}")


def parse_overrides(words: list[str], fields: dict[str, Any], options: Sequence[str] = ()) -> dict[str, Any]:
    """Read `--a.b value` and `--a.b=value` pairs.

    Args:
        words: of the command line.
        fields: the nested configuration they change; a field that holds text keeps its text,
            other values are JSON where they parse as such.
        options: names of the command's plain options, to be suggested as well.

    Raises:
        InvalidConfigError: an unknown name, with the nearest ones, or one without its value.
    """
    values: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            expanded = " Quote patterns, which the shell expands, as in --data 'shards/*.tar'; repeat --data for folders."
            hint = expanded if word.endswith(".tar") or os.path.exists(word) else ""
            raise InvalidConfigError(f'Unexpected word "{word}"; options look like --optim.lr 5e-4.{hint}')
        written, equals, text = word.lstrip("-").partition("=")
        name = written.replace("-", "_")
        leaves = dotted(fields)
        if name not in leaves:
            same_end = [leaf for leaf in leaves if leaf.split(".")[-1] == name.split(".")[-1]]
            known = [f"--{leaf}" for leaf in same_end or leaves] + ([] if same_end else list(options))
            raise InvalidConfigError(f"No option --{written}.{nearest(f'--{written}', known)}")
        flag = isinstance(leaves[name], bool) and (not rest or rest[0] not in ("true", "false"))
        if flag and not equals:
            text = "true"
        elif not equals:
            if not rest or rest[0].startswith("--"):
                raise InvalidConfigError(f"--{written} needs a value; options look like --optim.lr 5e-4.")
            text = rest.pop(0)
        values[name] = text if isinstance(leaves[name], str) else _value(text)
    return values


def set_dotted(fields: dict[str, Any], name: str, value: Any) -> None:
    """Set `a.b.c`, which exists, in nested dictionaries."""
    *path, last = name.split(".")
    for part in path:
        fields = fields[part]
    fields[last] = value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def typed(data: list[str], out: Path, overrides: dict[str, Any]) -> list[str]:
    """The rest of the command line, as it can be typed again."""
    words = [word for folder in data for word in ("--data", folder)] + ["--out", str(out)]
    for name, value in overrides.items():
        option = f"--{name}" if "." in name else f"--{name.replace('_', '-')}"
        text = value if isinstance(value, str) else json.dumps(value)
        words += [f"{option}={text}"] if text.startswith("--") else [option, text]
    return words
