"""From a repository on the Hugging Face Hub to a verified folder in the Hub's cache.

The client checks the number of bytes alone. Here, what arrives and what is in the cache is
compared on every load with what the zoo or the Hub says it must be. A repository is not trusted:
only files under known names are fetched, the config first, and weights only if they are not
larger than that config allows. This file knows no model's name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from iwm.checkpoint import (
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    RECEIPT_FILE,
    WEIGHTS_FILE,
    atomic_write,
    max_weight_bytes,
    read_config,
)
from iwm.errors import (
    IncompatibleWeightsError,
    IntegrityError,
    InvalidConfigError,
    SaveError,
    UnknownModelError,
    WeightsUnavailableError,
)
from iwm.hub_client import KNOWN_FILES, HubOptions, Report, answered, ask, cached, get
from iwm.integrity import Digest, Receipt, Verify, check_verify, hash_file, sha256_digests

CARD_FILE = "README.md"

_MAX_CARD_BYTES = 1 << 22
_STALE_SECONDS = 24 * 3600
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_REPO = re.compile(rf"(?P<forced>hf-hub:)?(?P<repo>{_PART}/{_PART})(@(?P<revision>[\w.-]+(/[\w.-]+)*))?")
_NO_REVISION = re.compile(r"(^|/)(\.|/|$)|\.\.|[\x00-\x20\x7f~^:?*\[\\]")
"""What git allows in no name; an address with `..` in it would mean another revision."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RepoName:
    """`org/name[@revision]`; `hf-hub:` before it says that no folder of that name is meant."""

    repo: str
    revision: str | None
    forced: bool

    @classmethod
    def parse(cls, name: str) -> RepoName | None:
        """None where a text has another form."""
        match = _REPO.fullmatch(name)
        if match is None or ".." in name:
            return None
        return cls(match["repo"], match["revision"], match["forced"] is not None)


@dataclass(frozen=True)
class Fetched:
    """A verified folder of the cache, and what its files had to be."""

    folder: Path
    receipt: Receipt


def fetch(
    repo: str,
    revision: str | None = None,
    *,
    sha256: Mapping[str, str] | None = None,
    names: Collection[str] | None = None,
    options: HubOptions | None = None,
) -> Fetched:
    """Bring a model's files into the cache, where they are not yet, and verify all of them.

    Nothing is requested where the revision is a full commit and its files are in the cache.

    Args:
        repo: `org/name`.
        revision: commit, branch or tag; None is the main branch.
        sha256: what each file must be, for a pinned model; None compares with what the Hub
            reports.
        names: files to have; None is all that belong to a model.
        options: how to use the Hub and its cache.

    Raises:
        UnknownModelError: no such repository or revision.
        WeightsUnavailableError: no network, no permission, no such file, no space: the message
            says which, and the cache is as sound as before.
        IntegrityError: a file is not what was published; it was removed from the cache.
        InvalidConfigError: the config cannot be used.
        IncompatibleWeightsError: the weights are larger than the config allows.
    """
    revision = revision or "main"
    if _NO_REVISION.search(revision):
        raise UnknownModelError(
            f"{repo} has no revision {revision!r}: no branch, tag or commit is called so."
        )
    pins = sha256_digests(sha256) if sha256 is not None else None
    return _Fetch(repo, revision, pins, options or HubOptions()).run(names)


class _Fetch:
    """One call of `fetch`: a repository at a revision, and what the Hub has said of it so far."""

    def __init__(self, repo: str, revision: str, pins: dict[str, Digest] | None, options: HubOptions) -> None:
        self.repo = repo
        self.revision = revision
        self.pins = pins
        self.options = options
        self.offline = options.offline
        self.report: Report | None = None

    def run(self, names: Collection[str] | None) -> Fetched:
        commit = self.revision if _COMMIT.fullmatch(self.revision) else self._resolve()
        receipt = self._receipt(commit)
        if self.pins is None and not self.offline and not _knows(receipt, names):
            receipt.files = dict(self._ask().files)
        if not {CONFIG_FILE, WEIGHTS_FILE} <= receipt.files.keys():
            if self.offline:
                raise self._not_cached(WEIGHTS_FILE)
            raise WeightsUnavailableError(
                f"{self.repo} is no model of this library: it lacks {CONFIG_FILE} or {WEIGHTS_FILE}."
            )
        wanted = list(receipt.files) if names is None else list(names)
        for name in sorted(wanted, key=lambda name: name != CONFIG_FILE):  # It bounds the others.
            if name not in receipt.files:
                raise WeightsUnavailableError(
                    f"{self.repo} has no {name}; it has {', '.join(sorted(receipt.files))}."
                )
            path = cached(self.repo, name, commit, self.options) or self._bring(name, commit, receipt)
            receipt.path = _receipt_path(path.parent)
            self._verify(receipt, path)
        if self.revision != commit and self.report is not None:
            self._remember_branch(commit)
        _sweep(path.parent)
        return Fetched(path.parent, receipt)

    def _resolve(self) -> str:
        """The commit of a branch or tag: the Hub's; without a network, the one in the cache."""
        path = cached(self.repo, CONFIG_FILE, self.revision, self.options)
        if not self.offline:
            try:
                return self._ask().commit
            except WeightsUnavailableError as error:
                if path is None or answered(error.__cause__):
                    raise
                _log.warning("%s Going on with the copy in the cache (%s).", error, path.parent.name[:12])
                self.offline = True
        if path is None:
            raise self._not_cached(CONFIG_FILE)
        return path.parent.name

    def _ask(self) -> Report:
        if self.report is None:
            self.report = ask(self.repo, self.revision, self.options)
        return self.report

    def _receipt(self, commit: str) -> Receipt:
        """What the files of a commit must be: by the zoo, the Hub, or an earlier answer of the Hub."""
        source = f"{self.repo}@{commit}"
        config = cached(self.repo, CONFIG_FILE, commit, self.options)
        stored = Receipt.read(_receipt_path(config.parent)) if config else None
        if self.pins is not None:
            files = dict(self.pins)
        elif self.report is not None:
            files = dict(self.report.files)
        elif stored is not None:
            files = stored.files
        elif not self.offline:
            files = dict(self._ask().files)
        elif config is not None:
            files = _stored_digests(config.parent)
        else:
            raise self._not_cached(CONFIG_FILE)
        return Receipt(Path(), source, files, stored.hashed if stored else {})

    def _bring(self, name: str, commit: str, receipt: Receipt) -> Path:
        """Download one file, if it is what it should be as far as the Hub can say beforehand."""
        if self.offline:
            raise self._not_cached(name)
        reported = self._ask().files.get(name)
        if reported is None:
            raise WeightsUnavailableError(f"{self.repo} has no {name} at {commit}.")
        expected = receipt.files[name]
        if expected.algorithm == reported.algorithm and expected.value != reported.value:
            raise IntegrityError(
                f"{name} of {receipt.source} is not what was published: expected {expected}, the Hub "
                f"offers {reported}. Nothing was downloaded."
            )
        if reported.size is not None:
            self._check_size(name, reported.size, commit)
        return get(self.repo, name, commit, reported.size, self.options)

    def _check_size(self, name: str, size: int, commit: str) -> None:
        if name == CONFIG_FILE:
            if size > MAX_CONFIG_BYTES:
                raise InvalidConfigError(
                    f"{CONFIG_FILE} of {self.repo} has {size:,} bytes; {MAX_CONFIG_BYTES:,} are allowed."
                )
            return
        limit = _MAX_CARD_BYTES
        if name != CARD_FILE:
            config = cached(self.repo, CONFIG_FILE, commit, self.options)
            assert config is not None  # It comes first.
            limit = max_weight_bytes(read_config(config.parent))
        if size > limit:
            raise IncompatibleWeightsError(
                f"{name} of {self.repo} has {size:,} bytes; by its config it can have {limit:,}. "
                "Nothing was downloaded."
            )

    def _verify(self, receipt: Receipt, path: Path) -> None:
        try:
            receipt.check(path.parent, [path.name], self.options.verify)
        except IntegrityError as error:
            raise IntegrityError(f"{error}. {_discard(path)}") from error

    def _remember_branch(self, commit: str) -> None:
        """Let the client note which commit a branch is, for the times without a network."""
        path = cached(self.repo, CONFIG_FILE, self.revision, self.options)
        if path is None or path.parent.name != commit:
            with contextlib.suppress(WeightsUnavailableError):
                get(self.repo, CONFIG_FILE, self.revision, None, self.options)

    def _not_cached(self, name: str) -> WeightsUnavailableError:
        at = "" if self.revision == "main" else f"@{self.revision}"
        return WeightsUnavailableError(
            f"{name} of {self.repo}{at} is not in the cache, and no request may be made "
            "(local_files_only or HF_HUB_OFFLINE). With a network, once: "
            f"iwm download {self.repo}{at}"
        )


def local_files(folder: Path, name: str) -> Fetched:
    """A model folder that needed no fetching, as `copy_files` takes it."""
    files = {
        path.name: Digest("sha256", hash_file(path, "sha256"))
        for path in sorted(folder.iterdir())
        if KNOWN_FILES.fullmatch(path.name)
    }
    return Fetched(folder, Receipt(Path(), name, files))


def copy_files(fetched: Fetched, target: Path) -> None:
    """Copy a model's files into a folder of their own, with a receipt that verifies them there.

    Raises:
        SaveError: `target` cannot be written, or holds a model that was not downloaded.
        IntegrityError: a copy is not what was fetched.
    """
    old = Receipt.read(target / RECEIPT_FILE)
    if old is None and (target / CONFIG_FILE).exists():
        raise SaveError(f"{target} holds a model of its own; name another folder for the download.")
    receipt = Receipt(target / RECEIPT_FILE, fetched.receipt.source, dict(fetched.receipt.files))
    for name in receipt.files:
        with atomic_write(target / name) as temporary:
            shutil.copyfile(fetched.folder / name, temporary)
    for name in old.files if old else ():  # Else weights of the last model would pass for this one's.
        if name not in receipt.files and KNOWN_FILES.fullmatch(name):
            (target / name).unlink(missing_ok=True)
    receipt.check(target, receipt.files, "always")


def verified_folder(
    place: str | os.PathLike[str], names: Collection[str], revision: str | None, options: HubOptions
) -> Path:
    """Where the files of a folder or repository are, verified as far as they were fetched.

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
        _check_folder(Path(place), names, options.verify)
        return Path(place)
    if os.path.isfile(place):
        raise UnknownModelError(f"{place} is a file; name the folder that holds config.json and the weights.")
    if name is None:
        raise UnknownModelError(f'No folder or repository ("org/name") is called "{os.fspath(place)}".')
    if revision is not None and name.revision not in (None, revision):
        raise UnknownModelError(
            f'"{place}" names revision {name.revision} and revision="{revision}" another; give one of them.'
        )
    try:
        return fetch(name.repo, revision or name.revision, names=names, options=options).folder
    except (UnknownModelError, WeightsUnavailableError) as error:
        if name.forced or (isinstance(error, WeightsUnavailableError) and answered(error.__cause__)):
            raise
        # A mistyped path looks like the name of a repository.
        raise type(error)(f'{error} And no folder here is called "{place}".') from error


def _check_folder(folder: Path, names: Collection[str], verify: Verify) -> None:
    receipt = Receipt.read(folder / RECEIPT_FILE)
    if receipt is None:
        return
    try:
        receipt.check(folder, [name for name in names if name in receipt.files], verify)
    except IntegrityError as error:
        raise IntegrityError(
            f"{error}. Download it again: iwm download {receipt.source} --to {folder}"
        ) from error


def _receipt_path(folder: Path) -> Path:
    """Of a snapshot folder of the cache: `models--org--name/snapshots/<commit>`."""
    return folder.parents[1] / ".iwm" / f"{folder.name}.json"


def _knows(receipt: Receipt, names: Collection[str] | None) -> bool:
    """Whether it speaks of these files, or (None) of all: the Hub gives sizes, a pin or a link none."""
    if names is None:
        return all(digest.size is not None for digest in receipt.files.values())
    return receipt.files.keys() >= set(names)


def _stored_digests(folder: Path) -> dict[str, Digest]:
    """What the Hub reported when another program filled the cache.

    The client stores a file under the digest that the Hub gave, and links to it by its name.
    """
    files = {}
    for link in folder.iterdir():
        if KNOWN_FILES.fullmatch(link.name) and link.is_symlink():
            value = Path(os.readlink(link)).name
            with contextlib.suppress(ValueError):
                files[link.name] = Digest("sha256" if len(value) == 64 else "git", value)
    return files


def _discard(path: Path) -> str:
    """Remove a bad file of the cache, with what it links to; says what was done."""
    path = path.parent.resolve() / path.name  # Else a ".." in the name of the cache hides the root.
    root = path.parents[2]  # The repository's folder: nothing outside it is touched.
    try:
        while path.is_symlink():
            target = Path(os.path.normpath(path.parent / os.readlink(path)))
            path.unlink()
            path = target
        if root in path.parents:
            path.unlink(missing_ok=True)
    except OSError as error:
        return f"It cannot be removed ({error.strerror}): delete {path}, or use another cache_dir."
    return "It was removed from the cache; the next call fetches it anew."


def _sweep(folder: Path) -> None:
    """Remove what killed downloads left behind, a day later."""
    with contextlib.suppress(OSError):
        for path in (folder.parents[1] / "blobs").glob("*.incomplete"):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
