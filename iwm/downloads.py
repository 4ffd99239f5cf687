"""Folders of downloaded files: made by `iwm download --to`, verified when they are loaded."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from iwm.errors import IntegrityError, SaveError, UnknownModelError, WeightsUnavailableError
from iwm.files import atomic_write, remove
from iwm.hub import Fetched, RepoName, fetch
from iwm.hub_cache import discard, stored_digests
from iwm.hub_client import KNOWN_FILES, HubOptions, answered
from iwm.integrity import Digest, MismatchError, Receipt, Verify, check_verify, hash_file, receipt_path
from iwm.model_folder import CONFIG_FILE


@dataclass(frozen=True)
class Source:
    """Where a model's files are, and how to have more of the same.

    Attributes:
        folder: of the files.
        repo: on the Hub; the folder is then a commit in its cache. None: all files are there.
        sha256: what they must be, for a pinned model.
        options: how to use the Hub and its cache.
    """

    folder: Path
    repo: str | None = None
    sha256: Mapping[str, str] | None = None
    options: HubOptions = field(default_factory=HubOptions)

    def have(self, names: Collection[str]) -> None:
        """Bring files of the same commit, where they are not here, and verify them.

        Raises:
            WeightsUnavailableError: the Hub cannot give one of them.
            IntegrityError: one is not what was published.
        """
        if self.repo is None:
            check_folder(self.folder, names, self.options.verify)
        else:
            fetch(self.repo, self.folder.name, sha256=self.sha256, names=names, options=self.options)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles of a model carry no token."""
        return vars(self) | {"options": replace(self.options, token=None)}


def local_files(folder: Path, name: str) -> Fetched:
    """A model folder that needed no fetching, as `copy_files` takes it."""
    files = {
        path.name: Digest("sha256", hash_file(path, "sha256"))
        for path in sorted(folder.iterdir())
        if KNOWN_FILES.fullmatch(path.name)
    }
    return Fetched(folder, Receipt(receipt_path(folder), name, files))


def copy_files(fetched: Fetched, target: Path) -> None:
    """Copy a model's files into a folder of their own, with a receipt that verifies them there.

    The receipt is written first and the config last: a folder that was not finished does not
    load, and can be downloaded into again.

    Raises:
        SaveError: `target` cannot be written, or holds a model that was not downloaded.
        IntegrityError: a copy is not what was fetched.
    """
    path = receipt_path(target.absolute())
    if (target / CONFIG_FILE).exists() and not path.exists():
        raise SaveError(f"{target} holds a model of its own; name another folder for the download.")
    old = Receipt.read(path)
    receipt = Receipt(path, fetched.receipt.source, dict(fetched.receipt.files))
    receipt.write()
    if not path.exists():
        raise SaveError(f"Cannot write {path}. Name another folder for the download.")
    remove(target / CONFIG_FILE)
    for name in old.files if old else ():  # Else weights of the last model would pass for this one's.
        if name not in receipt.files and KNOWN_FILES.fullmatch(name):
            remove(target / name)
    for leftover in target.glob(".*.tmp"):  # Of a download that was killed.
        if KNOWN_FILES.fullmatch(leftover.name.removeprefix(".").rpartition(".")[0].rpartition(".")[0]):
            remove(leftover)
    for name in sorted(receipt.files, key=lambda name: name == CONFIG_FILE):
        with atomic_write(target / name) as temporary:
            shutil.copyfile(fetched.folder / name, temporary)
    receipt.check(target, receipt.files, "always")


def check_folder(folder: Path, names: Collection[str], verify: Verify = "once") -> None:
    """Compare files of a folder with what was published, as far as they were fetched.

    A folder that training or `save_pretrained` wrote has nothing to be compared with.

    Raises:
        IntegrityError: a file is not what was published, or its receipt is damaged.
        WeightsUnavailableError: a file is missing or cannot be read.
    """
    folder = folder.resolve()
    path = receipt_path(folder)
    receipt = Receipt.read(path)
    in_cache = path.parent.parent != folder
    if receipt is None and in_cache:
        repo = folder.parents[1].name.removeprefix("models--").replace("--", "/", 1)
        receipt = Receipt(path, f"{repo}@{folder.name}", stored_digests(folder))
    if receipt is None:
        if path.exists():
            raise IntegrityError(
                f"{path} is damaged, and nothing else says what the files of {folder} must be. Download the "
                "model again, to another folder; or delete it, if you trust them."
            )
        return
    for name in names:
        if name not in receipt.files:
            continue
        again = f"Download it again: iwm download {receipt.source} --to {shlex.quote(str(folder))}"
        if not in_cache and not (folder / name).exists():
            raise WeightsUnavailableError(f"{folder} has no {name}: its download broke off. {again}")
        try:
            receipt.check(folder, [name], verify)
        except MismatchError as error:
            if in_cache:
                again = discard(folder / name, receipt.files[name], error.state)
            raise IntegrityError(f"{error}. {again}") from error


def open_source(
    place: str | os.PathLike[str], names: Collection[str], revision: str | None, options: HubOptions
) -> Source:
    """A folder or repository, its files verified as far as they were fetched.

    A folder made by anything but `copy_files` has nothing to be compared with.

    Raises:
        UnknownModelError: neither a folder nor the name of a repository.
        IntegrityError: a file is not what was published.
        WeightsUnavailableError: the Hub cannot give a file.
    """
    check_verify(options.verify)
    name = RepoName.parse(place) if isinstance(place, str) else None
    if os.path.isdir(place) and not (name and name.forced):
        if revision is not None:
            raise UnknownModelError(f'"{place}" is a folder and has no revisions; leave revision out.')
        check_folder(Path(place), names, options.verify)
        return Source(Path(place).absolute(), options=options)
    if os.path.isfile(place):
        raise UnknownModelError(f"{place} is a file; name the folder that holds config.json and the weights.")
    if name is None:
        from iwm.zoo import ZOO

        known = f' Write iwm.load("{place}").' if place in ZOO else ""
        raise UnknownModelError(
            f'No folder or repository ("org/name") is called "{os.fspath(place)}".{known}'
        )
    if revision is not None and name.revision not in (None, revision):
        raise UnknownModelError(
            f'"{place}" names revision {name.revision} and revision="{revision}" another; give one of them.'
        )
    try:
        folder = fetch(name.repo, revision or name.revision, names=names, options=options).folder
        return Source(folder, name.repo, options=options)
    except (UnknownModelError, WeightsUnavailableError) as error:
        if name.forced or (isinstance(error, WeightsUnavailableError) and answered(error.__cause__)):
            raise
        # A mistyped path looks like the name of a repository.
        raise type(error)(f'{error} And no folder here is called "{place}".') from error
