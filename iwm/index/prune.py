"""Removing the rows of files that are gone, and of no others.

A file is gone where the file system says that there is none, or that what should be its folder is
a file. Any other answer (no permission, a loop, a disk that fails) says nothing about the file, and
neither does a folder that could not be listed: rows there stay.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set

from iwm.errors import InvalidDataError
from iwm.index.filters import is_address
from iwm.index.store import Store
from iwm.index.walk import file_system, store_address


def remove_gone(store: Store, roots: Sequence[str], unlisted: Set[str]) -> int:
    """Remove rows of files below the roots that are gone; a root that is gone was refused earlier.

    Args:
        store: the library.
        roots: files, folders and addresses, as the library calls them.
        unlisted: folders of which nothing is known.

    Returns:
        How many rows were removed.

    Raises:
        InvalidDataError: an object store does not answer.
    """
    removed = 0
    folders = [root.rstrip("/") + "/" for root in roots]
    for batch in store.scan(("path",), 4096):  # Of the version before the first deletion.
        paths = [
            path
            for path in batch["path"].to_pylist()
            if path in roots or any(path.startswith(folder) for folder in folders)
        ]
        gone = [path for path in _gone(paths) if unlisted.isdisjoint(_parents(path))]
        store.delete(gone)
        removed += len(gone)
    return removed


def _gone(paths: list[str]) -> Iterator[str]:
    remote = defaultdict(list)
    for path in paths:
        if is_address(path):
            remote[store_address(path)].append(path)
        elif _is_gone(path):
            yield path
    for addresses in remote.values():
        yield from _gone_in_store(addresses)


def _is_gone(path: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _gone_in_store(addresses: list[str]) -> list[str]:
    """Those of the addresses, all of one store, that it does not hold."""
    from pyarrow.fs import FileType

    store, _ = file_system(addresses[0])
    try:
        found = store.get_file_info([file_system(address)[1] for address in addresses])
    except OSError as error:
        raise InvalidDataError(f"Cannot ask {store_address(addresses[0])} what is gone: {error}") from error
    return [path for path, info in zip(addresses, found, strict=True) if info.type == FileType.NotFound]


def _parents(path: str) -> Iterator[str]:
    while (parent := os.path.dirname(path)) != path:
        yield parent
        path = parent
