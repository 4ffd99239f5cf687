"""`iwm.load` and `iwm.list_models`: from a name to a model."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import torch

from iwm.checkpoint import CONFIG_FILE, WEIGHTS_FILE, read_config, task_file
from iwm.config import WorldModelConfig
from iwm.device import resolve_device
from iwm.downloads import Source, copy_files, local_files, open_source
from iwm.errors import (
    IncompatibleWeightsError,
    InvalidConfigError,
    UnknownModelError,
    UnknownTaskError,
    WeightsUnavailableError,
    nearest,
)
from iwm.hub import Fetched, RepoName, fetch
from iwm.hub_client import HubOptions
from iwm.integrity import Verify, check_verify
from iwm.stored import Branch, check_choices, files_of
from iwm.world_model import WorldModel
from iwm.zoo import DEFAULT, ZOO, HubFiles


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
    if os.path.isfile(os.path.join(name, "export.json")):
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


def read_architecture(
    name: str, revision: str | None = None, options: HubOptions | None = None
) -> WorldModelConfig:
    """The config of a name, folder or repository; a repository's is fetched alone.

    Raises:
        UnknownModelError: no such name, folder or repository.
    """
    entry = ZOO.get(name)
    if entry and not entry.embedded:
        return entry.config
    return read_config(find_model(name, [CONFIG_FILE], revision, options).folder)


def find_model(
    name: str,
    names: Collection[str] = (CONFIG_FILE, WEIGHTS_FILE),
    revision: str | None = None,
    options: HubOptions | None = None,
) -> Source:
    """Where the files of a name are, verified as far as they were fetched.

    Args:
        name: zoo name, folder or repository.
        names: files that are needed.
        revision: on the Hub.
        options: how to use the Hub and its cache.

    Raises:
        UnknownModelError: no such name, folder, repository or revision.
        WeightsUnavailableError: the name is known, but its weights cannot be had.
        IntegrityError: a fetched file is not what was published.
    """
    options = options or HubOptions()
    entry = ZOO.get(name)
    if entry is None:
        if RepoName.parse(name) is None and not os.path.exists(name):
            raise UnknownModelError(
                f'No model, folder or repository is called "{name}".{nearest(name, ZOO)} See `iwm list`.'
            )
        return open_source(name, names, revision, options)
    if entry.hub is not None:
        folder = fetch_entry(entry.hub, names, revision, options).folder
        pinned = folder.name == entry.hub.revision
        return Source(folder, entry.hub.repo, entry.hub.sha256 if pinned else None, options)
    if revision is not None:
        raise UnknownModelError(f'"{name}" is not on the Hub and has no revisions; leave revision out.')
    if entry.embedded:
        return Source(entry.folder, options=options)
    raise WeightsUnavailableError(
        f'Nobody has published weights for "{name}" yet (recipe only). Train them with '
        f'`{entry.recipe_command}` and load the result with iwm.load("DIR"), or build it with '
        "random weights: pretrained=False."
    )


def download(name: str, to: Path | None = None, options: HubOptions | None = None) -> Path:
    """Bring all files of a model here and verify them, for use without a network.

    Args:
        name: zoo name or repository.
        to: folder to copy them to, which `load` takes; None leaves them in the Hub's cache,
            where `load` finds them by the same name.
        options: how to use the Hub and its cache.

    Returns:
        The folder that holds them.

    Raises:
        UnknownModelError: no such name or repository.
        WeightsUnavailableError: nobody has published its weights, or the Hub cannot give them.
        IntegrityError: a file is not what was published.
        SaveError: `to` cannot be written, or holds another model.
    """
    options = options or HubOptions()
    check_verify(options.verify)
    entry = ZOO.get(name)
    parsed = RepoName.parse(name)
    if entry and entry.hub:
        fetched = fetch_entry(entry.hub, None, None, options)
    elif entry:
        fetched = local_files(find_model(name).folder, name)
    elif parsed:
        fetched = fetch(parsed.repo, parsed.revision, options=options)
    else:
        raise UnknownModelError(
            f'No model or repository is called "{name}".{nearest(name, ZOO)} See `iwm list`.'
        )
    if to is None:
        return fetched.folder
    copy_files(fetched, to)
    return to


def fetch_entry(
    hub: HubFiles, names: Collection[str] | None, revision: str | None, options: HubOptions
) -> Fetched:
    """Files of a published entry: the pinned ones, or those of a revision the user asks for."""
    if revision is None or revision == hub.revision:
        return fetch(hub.repo, hub.revision, sha256=hub.sha256, names=names, options=options)
    return fetch(hub.repo, revision, names=names, options=options)
