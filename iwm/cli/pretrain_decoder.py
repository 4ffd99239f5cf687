"""`iwm pretrain-decoder`: train a window into a model's latents."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from iwm.cli.launch import is_main, launcher
from iwm.cli.options import ModelName, console
from iwm.cli.pretrain import parse_overrides, set_dotted, typed


def pretrain_decoder_command(
    context: typer.Context,
    data: Annotated[
        list[str],
        typer.Option(help="Folder of images, may be given several times; or tar shards; or hf:org/name."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder; iwm.load takes it afterwards.")],
    model: ModelName = "iwm-tiny",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a step.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of every random draw.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto.")] = None,
    log_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between lines of metrics.jsonl.")
    ] = None,
    checkpoint_every: Annotated[int | None, typer.Option(min=1, help="Steps between checkpoints.")] = None,
    terms: Annotated[
        str, typer.Option("--license", help="Of the decoder's weights, which the data may restrict.")
    ] = "unspecified",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in --out, also with other --steps or --optim.lr."),
    ] = False,
) -> None:
    """Train a decoder on a frozen model, so that model.decode(latent) shows what latents hold.

    Every other field is a dotted option, e.g. --optim.lr 5e-4 or --width 192; Ctrl-C leaves a
    checkpoint, the same command goes on.
    """
    from iwm.decoding.config import DecodingConfig, decoder_recipe
    from iwm.decoding.run import train_decoder
    from iwm.fields import from_dict, to_json
    from iwm.zoo import ZOO

    fields: dict[str, Any] = json.loads(to_json(decoder_recipe(model)))
    plain = {
        "steps": steps, "batch_size": batch_size, "seed": seed, "device": device, "log_every": log_every,
        "checkpoint_every": checkpoint_every,
    }  # fmt: skip
    overrides = {k: v for k, v in plain.items() if v is not None}
    overrides |= parse_overrides(context.args, fields, [o for p in context.command.params for o in p.opts])
    for name, value in overrides.items():
        set_dotted(fields, name, value)
    config = from_dict(DecodingConfig, fields)
    said = ["--license", terms] if terms != "unspecified" else []
    command = shlex.join(
        [*launcher("pretrain-decoder"), "--model", model, *typed(data, out, overrides), *said]
    )
    done = train_decoder(config, data, out, resume=resume, command=command, license=terms)
    if not is_main():
        raise typer.Exit(0 if done else 130)
    if not done:
        console.print(f"Stopped; the checkpoint is in {out}. Continue: {command} --resume")
        raise typer.Exit(130)
    folder = os.path.join(".", out) if str(out) in ZOO else str(out)
    console.print(f'Trained {config.steps} steps. See latents: iwm.load("{folder}").decode(latent)')
    console.print(f"Measure it: iwm eval decoder --model {shlex.quote(folder)} --data FOLDER", style="dim")
