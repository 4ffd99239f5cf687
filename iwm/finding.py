"""From a name to the files of a model: in the package, in a folder, on the Hub. It needs no torch."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Collection
from pathlib import Path

from iwm.config import WorldModelConfig
from iwm.downloads import Source, copy_files, local_files, open_source
from iwm.errors import UnknownModelError, WeightsUnavailableError, nearest
from iwm.hub import Fetched, RepoName, fetch
from iwm.hub_client import HubOptions
from iwm.integrity import check_verify
from iwm.model_folder import CONFIG_FILE, WEIGHTS_FILE, read_config
from iwm.zoo import ZOO, HubFiles


def list_models(pattern: str = "*") -> list[str]:
    """Names that `load` takes, in the zoo's order.

    Args:
        pattern: shell-style, e.g. `"*equi*"`.

    >>> list_models("iwm-tiny*")
    ['iwm-tiny', 'iwm-tiny-inv']
    """
    return [name for name in ZOO if fnmatch.fnmatchcase(name, pattern)]


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
