"""Run a pretraining configuration from a folder of images to a folder that `iwm.load` takes."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from iwm.checkpoint import save_model
from iwm.device import machine, resolve_device
from iwm.encoder import Encoder
from iwm.fields import to_json
from iwm.pretraining.config import PretrainConfig
from iwm.pretraining.task import PretrainTask
from iwm.pretraining.warm_start import Donor, find_donor
from iwm.training.distributed import World, joined
from iwm.training.execution import prefer_plain_attention, prepare_blocks
from iwm.training.loop import train
from iwm.training.run_folder import RunFolder, has_state, read_run
from iwm.training.sources import open_data
from iwm.training.trackers import require_packages

log = logging.getLogger(__name__)


def pretrain(
    config: PretrainConfig,
    data: Sequence[str | Path],
    out: Path,
    *,
    resume: bool = False,
    command: str = "",
) -> bool:
    """Pretrain a world model.

    Args:
        config: see `PretrainConfig`.
        data: folders of images (subfolders are read, class names are not used); or one stream,
            see `iwm.training.streams`.
        out: the run folder, which is a model folder as well from the first checkpoint on.
        resume: continue the run in `out`.
        command: what the user typed, for the model's config.

    Returns:
        Whether all steps are done; False after an interruption, with a checkpoint left.
    """
    with joined(config.device) as world:
        return _pretrain(config, data, out, resume, command, world)


def check_start(
    config: PretrainConfig,
    data: Sequence[str | Path] = (),
    out: Path | None = None,
    *,
    resume: bool = False,
    processes: int = 1,
    elsewhere: bool = False,
) -> PretrainConfig:
    """Refuse what `pretrain` would refuse before its first step; trains and writes nothing.

    Args:
        config, resume: as for `pretrain`.
        data, out: the same; what is not given is not looked at.
        processes: those that would train together.
        elsewhere: the run is for another machine, whose device this one need not have.

    Returns:
        The configuration, with what its donor asks for.
    """
    if not elsewhere:
        resolve_device(config.device)
    config.rows(processes)
    require_packages(config)
    source = open_data(data, config.model.preprocess.size, config)[0] if data else None
    config, donor = _with_donor(config, out)
    if donor:
        with torch.device("meta"):
            encoder = Encoder(config.model.encoder, config.model.preprocess)
        donor.fitted(encoder)
        _warn(donor, config)
    if out is not None:
        run = RunFolder(out, config, resume=resume)
        if source and run.has_state:
            run.check_state(run.load_state(peek=True), source.listing, config)
    return config


def _pretrain(
    config: PretrainConfig, data: Sequence[str | Path], out: Path, resume: bool, command: str, world: World
) -> bool:
    source, described_data = open_data(data, config.model.preprocess.size, config)
    device = world.device
    config, donor = _with_donor(config, out)
    run = RunFolder(out, config, resume=resume)
    world.wait()  # All have looked at the folder before one of them changes it.
    torch.manual_seed(config.seed)
    task = PretrainTask(config)
    if donor:
        task.start_from(donor)
        if world.is_main:
            _warn(donor, config)
    if world.is_main:
        _warn_of_blind_spots(config, world.size)
    task.to(device)
    if device.type == "cpu":
        prefer_plain_attention(task)
    prepare_blocks(task, compiled=config.compile, recomputed=config.activation_checkpointing)

    def export(done: int, seconds: float) -> None:
        """Write the model folder, with the recipe and where the weights come from."""
        recipe = json.loads(to_json(config))
        del recipe["model"]
        described = config.model.replace(
            recipe=recipe | {"command": command},
            provenance={
                **described_data,
                "steps": done,
                "images_seen": done * config.batch_size,
                "hours": round(seconds / 3600, 3),
                "machine": machine(device),
                "processes": world.size,
                **run.told_sittings(),
            },
        )
        save_model(out, described, task.model, task.student)

    return train(task, source, config, run, export, world)


def _with_donor(config: PretrainConfig, out: Path | None) -> tuple[PretrainConfig, Donor | None]:
    """What the donor asks for, and the donor; a run that goes on has its weights already."""
    if not config.init_encoder:
        return config, None
    if out is not None and has_state(out):
        return _adapted_before(config, out), None
    donor = find_donor(config.init_encoder)
    return config.replace(model=donor.adapt(config.model)), donor


def _warn_of_blind_spots(config: PretrainConfig, processes: int) -> None:
    if config.rows(processes) == 1 and config.batch_size > 1:
        log.warning(
            "target_std needs two images at a time, so nothing looks for a collapse; use less --accumulate."
        )
    if config.freeze_encoder and not config.init_encoder:
        log.warning(
            "--freeze-encoder without --init-encoder: the world model is trained for an encoder at random weights."
        )


def _warn(donor: Donor, config: PretrainConfig) -> None:
    doubt = donor.doubt(config.model.encoder)
    if doubt:
        log.warning(doubt)


def _adapted_before(config: PretrainConfig, out: Path) -> PretrainConfig:
    """With what the donor of a run's beginning asked for; it need not be there any more."""
    before = read_run(out).get("model")
    if before is None:
        return config  # Of another kind, which `RunFolder` says.
    encoder = replace(config.model.encoder, positions=before["encoder"]["positions"])
    mean, std = (tuple(before["preprocess"][name]) for name in ("mean", "std"))
    preprocess = replace(config.model.preprocess, mean=mean, std=std)
    return config.replace(model=config.model.replace(encoder=encoder, preprocess=preprocess))
