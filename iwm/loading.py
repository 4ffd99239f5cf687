"""`iwm.load`: from a name to a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

from iwm.device import resolve_device
from iwm.errors import (
    IncompatibleWeightsError,
    InvalidConfigError,
    UnknownModelError,
    UnknownTaskError,
    nearest,
    quoted,
)
from iwm.finding import find_model, read_architecture
from iwm.finding import list_models as list_models
from iwm.hub_client import HubOptions
from iwm.integrity import Verify, check_verify
from iwm.model_folder import CONFIG_FILE, EXPORT_FILE, read_config, task_file
from iwm.stored import Branch, check_choices, files_of
from iwm.world_model import WorldModel
from iwm.zoo import DEFAULT, ZOO


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
    backend: Literal["torch", "openvino", "onnx"] = "torch",
    verify: Verify = "once",
) -> WorldModel:
    """Load a world model in eval mode.

    Args:
        name: a zoo name (see `list_models`); a folder that `save_pretrained`, `iwm download` or
            training wrote; or `"org/name"`, `"org/name@revision"` on the Hugging Face Hub, with
            `hf-hub:` before it where a folder has the same name.
        pretrained: False builds the architecture with random weights; of a repository only the
            config is fetched, which may ask for 10^10 parameters (40 GB).
        task: a task whose adapter is to be loaded with it, and which `classify` and `segment`
            take by default. Other adapters are loaded, and where need be fetched, at first use.
        device: where to put it; `auto` is CUDA where there is one.
        dtype: of the weights; None is float32.
        branch: `teacher`, the encoder inference uses by default, or `student`, the
            gradient-trained one, where the checkpoint has it.
        revision: commit, branch or tag on the Hub. A full commit is loaded from the cache
            without a request. None is the pinned commit of a zoo name, or the main branch.
        cache_dir: the Hub's cache; None is its default place (see `HF_HOME`).
        local_files_only: make no request; `HF_HUB_OFFLINE=1` says the same.
        token: of the Hub; None is `HF_TOKEN`, or what `hf auth login` stored.
        backend: what runs the model. `openvino` and `onnx` take a folder that `model.export` wrote,
            and of the other options `task` alone.
        verify: fetched files are compared with their published hashes; `once` hashes a file when
            it has come or changed since it was last hashed, `always` at every load.

    Raises:
        UnknownModelError: no such name, folder, repository or revision; near names are given.
        WeightsUnavailableError: the name is known, but its weights cannot be had: nobody has
            published them, or the Hub cannot give them now; the message says which.
        IntegrityError: a fetched file is not, byte for byte, what was published. The message
            says whether it was removed, so that the next call heals, or what to do.
        UnknownTaskError: no such task.
        InvalidConfigError: the config, the device, the backend or an option cannot be used.
        IncompatibleWeightsError: the weights do not fit the config, or an exported folder is of
            another version or for another backend.
        MissingBackendError: the backend is not installed.
    """
    if not isinstance(name, str | os.PathLike):
        raise UnknownModelError(f"{quoted(repr(name))} is no name or folder.{nearest('', ZOO)}")
    name = name if isinstance(name, str) else os.path.abspath(name)  # A path is never a zoo name.
    if backend != "torch":
        plain = pretrained and dtype is None and branch == "teacher" and revision is None
        return _load_export(name, backend, task, plain=plain and str(device) in ("cpu", "auto"))
    check_choices(branch, dtype)
    check_verify(verify)
    options = HubOptions(cache_dir=cache_dir, local_files_only=local_files_only, token=token, verify=verify)
    target = resolve_device(device)
    if not pretrained:
        if task is not None:
            raise UnknownTaskError(f'Random weights solve no task; leave out task="{task}" or pretrained.')
        model = WorldModel(
            read_architecture(name, revision, options).replace(adapters={}, decoder=None, tuned="")
        )
        return model.to(device=target, dtype=dtype or torch.float32)
    if os.path.isfile(os.path.join(name, EXPORT_FILE)):
        raise _exported(Path(name))
    names = files_of(branch)
    source = find_model(name, names if task is None else [CONFIG_FILE], revision, options)
    if task is not None:
        adapter = read_config(source.folder).adapter_of(task)
        source.have([*names, task_file(adapter)])
    model = WorldModel.read(source, target, dtype, branch)
    if task is not None:
        model.load_adapter(adapter)
        model.default_task = task
    return model


def _exported(folder: Path) -> IncompatibleWeightsError:
    """What to say of a folder that PyTorch does not run."""
    from iwm.runtimes import read_about

    runtime = (read_about(folder) or {})["backend"]
    return IncompatibleWeightsError(f'{folder} was exported for {runtime}; load it with backend="{runtime}".')


def _load_export(name: str, backend: str, task: str | None, *, plain: bool) -> WorldModel:
    """Open an exported folder with its runtime, which is imported only now."""
    from iwm.runtimes import BACKENDS, read_export

    if backend not in BACKENDS:
        raise InvalidConfigError(f'No backend is called "{backend}".{nearest(backend, ["torch", *BACKENDS])}')
    if not os.path.isdir(name):
        raise UnknownModelError(
            f'backend="{backend}" loads exported folders, and "{name}" is none. Write one first: '
            f'iwm.load("{name}").export("DIR", format="{backend}").'
        )
    if not plain:
        raise InvalidConfigError(
            f'backend="{backend}" runs what was exported, on the CPU; leave out pretrained, dtype, '
            "device, branch and revision."
        )
    model = read_export(Path(name), backend)
    if task is not None:
        model.load_adapter(model.config.adapter_of(task))
        model.default_task = task
    return model
