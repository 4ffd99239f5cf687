"""`iwm pretrain`: train a world model from a folder of images."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from iwm.cli.options import console


def pretrain_command(
    context: typer.Context,
    recipe: Annotated[str, typer.Option(help="Name of a recipe; see iwm list.")],
    data: Annotated[list[Path], typer.Option(help="Folder of images; may be given several times.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder; iwm.load takes it afterwards.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a step.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of every random draw.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto.")] = None,
    log_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between lines of metrics.jsonl.")
    ] = None,
    checkpoint_every: Annotated[int | None, typer.Option(min=1, help="Steps between checkpoints.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
) -> None:
    """Train a world model on a folder of images; Ctrl-C leaves a checkpoint to resume from.

    Every other field of the recipe is a dotted option, e.g. --optim.lr 5e-4 or
    --model.predictor.depth 4; a wrong name gets a suggestion.
    """
    from iwm.config import from_dict, to_json
    from iwm.pretraining.config import PretrainConfig
    from iwm.pretraining.recipes import find_recipe
    from iwm.pretraining.run import pretrain

    fields: dict[str, Any] = json.loads(to_json(find_recipe(recipe)))
    plain = {
        "steps": steps, "batch_size": batch_size, "seed": seed, "device": device, "log_every": log_every,
        "checkpoint_every": checkpoint_every,
    }  # fmt: skip
    overrides = {k: v for k, v in plain.items() if v is not None} | dict(parse_overrides(context.args))
    for name, value in overrides.items():
        set_dotted(fields, name, value)
    config = from_dict(PretrainConfig, fields)
    command = shlex.join(["iwm", "pretrain", "--recipe", recipe, *_typed(data, out, overrides)])
    done = pretrain(config, data, out, resume=resume, command=command)
    if done:
        console.print(f'Trained {config.steps} steps. Load it: iwm.load("{out}")', markup=False)
        console.print(f"Measure it: iwm eval mrr --model {out} --data FOLDER", style="dim")
    else:
        console.print(f"Stopped; the checkpoint is in {out}. Continue: {command} --resume", markup=False)
        raise typer.Exit(130)


def parse_overrides(words: list[str]) -> list[tuple[str, Any]]:
    """`--a.b value` and `--a.b=value` pairs; values are JSON where they parse as such.

    Raises:
        InvalidConfigError: a word that is no option, or an option without its value.
    """
    from iwm.errors import InvalidConfigError

    pairs: list[tuple[str, Any]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise InvalidConfigError(f'Unexpected word "{word}"; options look like --optim.lr 5e-4.')
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise InvalidConfigError(f"--{name} needs a value; options look like --optim.lr 5e-4.")
            value = rest.pop(0)
        pairs.append((name.replace("-", "_"), _value(value)))
    return pairs


def set_dotted(fields: dict[str, Any], name: str, value: Any) -> None:
    """Set `a.b.c` in nested dictionaries.

    Raises:
        InvalidConfigError: no such field; the nearest names are in the message.
    """
    from iwm.errors import InvalidConfigError, nearest

    *path, last = name.split(".")
    here = fields
    for part in path:
        inner = here.get(part)
        if not isinstance(inner, dict):
            raise InvalidConfigError(f"No field --{name}.{nearest(name, _leaves(fields))}")
        here = inner
    if last not in here or isinstance(here[last], dict):
        raise InvalidConfigError(f"No field --{name}.{nearest(name, _leaves(fields))}")
    here[last] = value


def _leaves(fields: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in fields.items():
        names += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return names


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _typed(data: list[Path], out: Path, overrides: dict[str, Any]) -> list[str]:
    """The rest of the command line, as it can be typed again."""
    words = [word for folder in data for word in ("--data", str(folder))] + ["--out", str(out)]
    for name, value in overrides.items():
        option = f"--{name}" if "." in name else f"--{name.replace('_', '-')}"
        words += [option, value if isinstance(value, str) else json.dumps(value)]
    return words
