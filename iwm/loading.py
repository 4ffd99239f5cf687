"""`iwm.load` and `iwm.list_models`: from a name to a model."""

from __future__ import annotations

import fnmatch
import os
import re
from pathlib import Path
from typing import Literal

import torch

from iwm.checkpoint import read_config
from iwm.config import WorldModelConfig
from iwm.device import resolve_device
from iwm.errors import (
    InvalidConfigError,
    UnknownModelError,
    UnknownTaskError,
    WeightsUnavailableError,
    nearest,
)
from iwm.world_model import WorldModel
from iwm.zoo import DEFAULT, ZOO, find_entry

Branch = Literal["teacher", "student"]
_HUB_NAME = re.compile(r"(hf-hub:)?[\w.-]+/[\w.-]+(@[\w./-]+)?")


def list_models(pattern: str = "*") -> list[str]:
    """Names that `load` takes, in the zoo's order.

    Args:
        pattern: shell-style, e.g. `"*equi*"`.

    >>> list_models("iwm-tiny*")
    ['iwm-tiny', 'iwm-tiny-inv']
    """
    return [name for name in ZOO if fnmatch.fnmatchcase(name, pattern)]


def load(
    name: str | os.PathLike[str] = DEFAULT,
    *,
    pretrained: bool = True,
    task: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    branch: Branch = "teacher",
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | None = None,
    backend: Literal["torch"] = "torch",
) -> WorldModel:
    """Load a world model in eval mode.

    Args:
        name: a zoo name (see `list_models`) or a folder that `save_pretrained` or training
            wrote.
        pretrained: False builds the named architecture with random weights.
        task: a task head to load with it.
        device: where to put it; `auto` is CUDA where there is one.
        dtype: of the weights; None is float32.
        branch: `teacher`, the encoder inference uses by default, or `student`, the
            gradient-trained one, where the checkpoint has it.
        revision, cache_dir, local_files_only, token: for models on the Hugging Face Hub, which
            this version does not fetch yet. Embedded entries and folders need no network.
        backend: what runs the model; `torch` is the only one yet.

    Raises:
        UnknownModelError: no such name or folder; the nearest names are in the message.
        WeightsUnavailableError: the name is known, but nobody has published its weights.
        UnknownTaskError: no such task.
        InvalidConfigError: the folder's config, the device or the backend cannot be used.
        IncompatibleWeightsError: the folder's weights do not fit its config.
    """
    name = name if isinstance(name, str) else os.path.abspath(name)  # A path is never a zoo name.
    if backend != "torch":
        raise InvalidConfigError(f'No backend is called "{backend}".{nearest(backend, ["torch"])}')
    if branch not in ("teacher", "student"):
        raise InvalidConfigError(f'No branch is called "{branch}".{nearest(branch, ["teacher", "student"])}')
    if task is not None:
        raise UnknownTaskError(f'"{name}" has no task "{task}": no heads are published yet. Leave task out.')
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InvalidConfigError(f"dtype is {dtype!r}; use torch.float32, torch.float16 or torch.bfloat16.")
    target = resolve_device(device)
    if not pretrained:
        model = WorldModel(_architecture(name))
        return model.to(device=target, dtype=dtype or torch.float32)
    folder = find_folder(name)
    if revision is not None:
        raise UnknownModelError(f'"{name}" is not on the Hub and has no revisions; leave revision out.')
    return WorldModel.from_pretrained(folder, device=target, dtype=dtype, branch=branch)


def _architecture(name: str) -> WorldModelConfig:
    return read_config(Path(name)) if name not in ZOO and os.path.isdir(name) else find_entry(name).config


def find_folder(name: str) -> Path:
    """Where the files of a name are.

    Raises:
        UnknownModelError: no such name or folder.
        WeightsUnavailableError: the name is known, but its weights are not here.
    """
    if name in ZOO:
        entry = ZOO[name]
        if entry.weights == "embedded":
            return entry.folder
        raise WeightsUnavailableError(
            f'Nobody has published weights for "{name}" yet (recipe only). Train them with '
            f'`{entry.recipe_command}` and load the result with iwm.load("DIR"), or build it with '
            "random weights: pretrained=False."
        )
    if name and os.path.isdir(name):
        return Path(name)
    if os.path.isfile(name):
        raise UnknownModelError(f"{name} is a file; name the folder that holds config.json and the weights.")
    if _HUB_NAME.fullmatch(name) and not name.startswith("."):
        raise WeightsUnavailableError(
            f'"{name}" is no folder here, and this version of iwm does not fetch from the Hugging Face '
            "Hub yet. Download its files into a folder and load that."
        )
    raise UnknownModelError(f'No model or folder is called "{name}".{nearest(name, ZOO)} See `iwm list`.')
