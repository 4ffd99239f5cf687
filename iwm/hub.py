"""From a repository on the Hugging Face Hub to a verified folder in the Hub's cache.

The client checks the number of bytes alone. Here, what arrives and what is in the cache is
compared on every load with what the zoo or the Hub says it must be. A repository is not trusted:
only files under known names are fetched, the config first, and weights only if they are not
larger than that config allows. This file knows no model's name.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from iwm.errors import (
    IncompatibleWeightsError,
    IntegrityError,
    InvalidConfigError,
    UnknownModelError,
    WeightsUnavailableError,
)
from iwm.hub_cache import discard, stored_digests, sweep
from iwm.hub_client import HubOptions, Report, answered, ask, cached, get
from iwm.integrity import Digest, MismatchError, Receipt, receipt_path, sha256_digests
from iwm.model_folder import CONFIG_FILE, MAX_CONFIG_BYTES, WEIGHTS_FILE, max_weight_bytes, read_config

MAX_FILES = 40
"""Of one model."""

_MAX_TEXT_BYTES = 1 << 22
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
        """See `fetch`."""
        commit = self.revision if _COMMIT.fullmatch(self.revision) else self._resolve()
        receipt = self._receipt(commit, names)
        wanted = [CONFIG_FILE, *(receipt.files if names is None else names)]
        self._check_listing(receipt, wanted)
        folder = Path()
        for name in dict.fromkeys(wanted):  # The config first: it says how large the others may be.
            path = cached(self.repo, name, commit, self.options) or self._bring(name, commit, receipt)
            folder = path.parent
            receipt.path = receipt_path(folder)
            self._verify(receipt, path)
        if self.revision != commit and self.report is not None:
            self._remember_branch(commit)
        sweep(folder)
        return Fetched(folder, receipt)

    def _check_listing(self, receipt: Receipt, wanted: Collection[str]) -> None:
        """Whether the repository is a model, and has what is wanted."""
        listed = self.report or self.pins
        if listed and not {CONFIG_FILE, WEIGHTS_FILE} <= receipt.files.keys():
            raise WeightsUnavailableError(
                f"{self.repo} is no model of this library: it lacks {CONFIG_FILE} or {WEIGHTS_FILE}."
            )
        for name in wanted:
            if name not in receipt.files:
                if not listed:
                    raise self._not_cached(name)
                raise WeightsUnavailableError(
                    f"{self.repo} has no {name}; it has {', '.join(sorted(receipt.files))}."
                )
        if len(receipt.files) > MAX_FILES:
            raise IncompatibleWeightsError(
                f"{self.repo} has {len(receipt.files)} files of weights; {MAX_FILES} are allowed."
            )

    def _resolve(self) -> str:
        """The commit of a branch or tag: the Hub's; without a network, the one in the cache."""
        path = cached(self.repo, CONFIG_FILE, self.revision, self.options)
        if not self.offline:
            try:
                return self._ask().commit
            except WeightsUnavailableError as error:
                if path is None or answered(error.__cause__):
                    raise
                self._go_on_without(error, path.parent.name)
        if path is None:
            raise self._not_cached(CONFIG_FILE)
        return path.parent.name

    def _ask(self) -> Report:
        if self.report is None:
            self.report = ask(self.repo, self.revision, self.options)
        return self.report

    def _receipt(self, commit: str, names: Collection[str] | None) -> Receipt:
        """What the files of a commit must be.

        By the zoo; or by the Hub, now, when it was asked for the commit, when the cache was filled
        by us, or, as far as that goes, by another program.
        """
        config = cached(self.repo, CONFIG_FILE, commit, self.options)
        stored = Receipt.read(receipt_path(config.parent)) if config else None
        if self.pins is not None:
            files = self.pins
        elif self.report is not None:
            files = self.report.files
        else:
            files = stored.files if stored else stored_digests(config.parent) if config else {}
            if not self.offline and not _knows(files, names):
                try:
                    files = self._ask().files
                except WeightsUnavailableError as error:
                    if not files or answered(error.__cause__):
                        raise
                    self._go_on_without(error, commit)
        source = f"{self.repo}@{commit}"
        return Receipt(Path(), source, dict(files), stored.hashed if stored else {})

    def _go_on_without(self, error: Exception, commit: str) -> None:
        """The Hub cannot be reached, and there is a copy."""
        _log.warning("%s Going on with the copy in the cache (%s).", error, commit[:12])
        self.offline = True

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
        self._check_size(name, reported.size, commit)
        return get(self.repo, name, commit, reported.size, self.options)

    def _check_size(self, name: str, size: int | None, commit: str) -> None:
        if size is None:
            raise WeightsUnavailableError(f"The Hub does not say how large {name} of {self.repo} is.")
        if name == CONFIG_FILE:
            if size > MAX_CONFIG_BYTES:
                raise InvalidConfigError(
                    f"{CONFIG_FILE} of {self.repo} has {size:,} bytes; {MAX_CONFIG_BYTES:,} are allowed."
                )
            return
        limit = _MAX_TEXT_BYTES
        config = cached(self.repo, CONFIG_FILE, commit, self.options)
        if name.endswith(".safetensors") and config:
            limit = max_weight_bytes(read_config(config.parent), name)
        if size > limit:
            raise IncompatibleWeightsError(
                f"{name} of {self.repo} has {size:,} bytes; by its config it can have {limit:,}. "
                "Nothing was downloaded."
            )

    def _verify(self, receipt: Receipt, path: Path) -> None:
        try:
            receipt.check(path.parent, [path.name], self.options.verify)
        except MismatchError as error:
            outcome = discard(path, receipt.files[path.name], error.state)
            raise IntegrityError(f"{error}. {outcome}") from error

    def _remember_branch(self, commit: str) -> None:
        """Let the client note which commit a branch is, for the times without a network."""
        path = cached(self.repo, CONFIG_FILE, self.revision, self.options)
        if path is None or path.parent.name != commit:
            with contextlib.suppress(WeightsUnavailableError):
                get(self.repo, CONFIG_FILE, self.revision, None, self.options)

    def _not_cached(self, name: str) -> WeightsUnavailableError:
        at = "" if self.revision == "main" else f"@{self.revision}"
        why = (
            "no request may be made (local_files_only or HF_HUB_OFFLINE)"
            if self.options.offline
            else "the Hub cannot be reached"
        )
        return WeightsUnavailableError(
            f"{name} of {self.repo}{at} is not in the cache with what it must be, and {why}. With a "
            f"network, once: `iwm download {self.repo}{at}`."
        )


def _knows(files: Mapping[str, Digest], names: Collection[str] | None) -> bool:
    """Whether all is said of these files, or (None) of all there are: only the Hub gives sizes."""
    if names is None:
        return bool(files) and all(digest.size is not None for digest in files.values())
    return files.keys() >= {CONFIG_FILE, *names}
