"""Train a decoder from a folder of images to a model folder that `iwm.load(...).decode` takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from iwm.checkpoint import save_decoder, save_model
from iwm.config import DecoderConfig
from iwm.decoder import Decoder
from iwm.decoding.config import DecodingConfig
from iwm.decoding.task import DecodingTask
from iwm.device import machine
from iwm.errors import InvalidConfigError
from iwm.fields import to_json
from iwm.loading import load
from iwm.training.distributed import World, joined
from iwm.training.execution import prefer_plain_attention, prepare_blocks
from iwm.training.loop import train
from iwm.training.run_folder import RunFolder
from iwm.training.sources import open_data


def train_decoder(
    config: DecodingConfig,
    data: Sequence[str | Path],
    out: Path,
    *,
    resume: bool = False,
    command: str = "",
    license: str = "unspecified",  # noqa: A002
) -> bool:
    """Train a decoder for a model's latents.

    Args:
        config: see `DecodingConfig`.
        data: folders of images, or one stream; see `iwm.training.sources`.
        out: the run folder, which holds the model and its decoder from the first checkpoint on.
        resume: continue the run in `out`, also with other steps.
        command: what the user typed, for the records.
        license: of the decoder's weights.

    Returns:
        Whether all steps are done; False after an interruption, with a checkpoint left.

    Raises:
        InvalidConfigError: sizes that do not go together, or other settings than the run in `out` has.
        InvalidDataError: the data cannot be used.
    """
    with joined(config.device) as world:
        return _train_decoder(config, data, out, resume, command, license, world)


def _train_decoder(
    config: DecodingConfig,
    data: Sequence[str | Path],
    out: Path,
    resume: bool,
    command: str,
    license: str,  # noqa: A002
    world: World,
) -> bool:
    model = load(config.model, device=world.device)
    if model.config.tuned:
        raise InvalidConfigError(
            f"{config.model} was finetuned for a task; train a decoder for the model it was made from."
        )
    source, described_data = open_data(data, model.config.preprocess.size, config)
    source.listing += f", on the encoder {model.space}"
    run = RunFolder(out, config, resume=resume)
    world.wait()  # All have looked at the folder before one of them changes it.
    torch.manual_seed(config.seed)
    described = DecoderConfig(
        width=config.width, depth=config.depth, heads=config.heads, space=model.space, license=license
    )
    decoder = Decoder(described, model.config)
    task = DecodingTask(config, model, decoder).to(world.device)
    if world.device.type == "cpu":
        prefer_plain_attention(task)
        prefer_plain_attention(model)
    prepare_blocks(task, compiled=config.compile, recomputed=config.activation_checkpointing)
    written: list[Path] = []

    def export(done: int, seconds: float) -> None:
        """Write the model folder, with how the decoder was made."""
        provenance = {
            **described_data,
            "model": config.model,
            "steps": done,
            "images_seen": done * config.batch_size,
            "hours": round(seconds / 3600, 3),
            "machine": machine(world.device),
            **run.told_sittings(),
        }
        made = replace(
            described, provenance=provenance, recipe=json.loads(to_json(config)) | {"command": command}
        )
        config_now = model.config.replace(decoder=made)
        if written:
            save_decoder(out, config_now, decoder)
        else:
            adapters = {name: model.load_adapter(name) for name in model.config.adapters}
            save_model(out, config_now, model, adapters=adapters, decoder=decoder)
        written.append(out)

    return train(task, source, config, run, export, world)
