"""Whether a fetched file is, byte for byte, what was published.

A receipt is a small JSON file beside fetched files. It says what each of them must be, as the
zoo or the Hub stated it, and in which state (real path, inode, size, times) it was last hashed,
so that a file is hashed once and again only when something has touched it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from iwm.errors import IntegrityError, InvalidConfigError, SaveError, WeightsUnavailableError, nearest
from iwm.files import write_text

Verify = Literal["once", "always"]
Algorithm = Literal["sha256", "git"]
State = tuple[str, int, int, int, int]
"""Of a file: real path, inode, size, times of change; another one after every change."""

_LENGTHS = {"sha256": 64, "git": 40}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SOURCE = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", re.ASCII)
_HASHED: dict[tuple[str, State], str] = {}
"""Digests of this process by algorithm and file state, for places where no receipt can be written."""


@dataclass(frozen=True)
class Digest:
    """What a file must hash to.

    Attributes:
        algorithm: `sha256` of the content, or `git`: SHA-1 of a git blob, which is what the Hub
            reports for small files.
        value: hexadecimal.
        size: bytes, where known.
    """

    algorithm: Algorithm
    value: str
    size: int | None = None

    def __post_init__(self) -> None:
        length = _LENGTHS.get(self.algorithm, 0)
        if not length or not re.fullmatch(f"[0-9a-f]{{{length}}}", self.value):
            raise InvalidConfigError(f'"{self.value}" is not a {self.algorithm} digest.')

    def __str__(self) -> str:
        return f"{self.algorithm} {self.value}"


class MismatchError(IntegrityError):
    """A file is not what it must be; it was in this state when it was hashed."""

    def __init__(self, message: str, state: State) -> None:
        super().__init__(message)
        self.state = state


@dataclass
class Receipt:
    """What fetched files must be, and in which state each was last hashed.

    Attributes:
        path: the receipt's own file.
        source: where the files came from, for messages: `org/name@revision`.
        files: their digests by name.
        hashed: by name, the algorithm, the digest found, and the state it was found in.
    """

    path: Path
    source: str
    files: dict[str, Digest]
    hashed: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Receipt | None:
        """The receipt in a file; None where there is none, or none that can be understood."""
        try:
            data = json.loads(path.read_bytes())
            files = {str(name): Digest(**digest) for name, digest in data["files"].items()}
            if not _SOURCE.fullmatch(data["source"]):  # It is shown, as part of a command.
                return None
            return cls(path, data["source"], files, dict(data.get("hashed", {})))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def write(self) -> None:
        """Write it; a place that cannot be written only means that files are hashed again."""
        files = {name: vars(digest) for name, digest in self.files.items()}
        text = json.dumps({"source": self.source, "files": files, "hashed": self.hashed}, indent=1)
        try:
            write_text(self.path, text + "\n")
        except SaveError:
            return

    def check(self, folder: Path, names: Iterable[str], verify: Verify = "once") -> None:
        """Compare files with what they must be.

        Args:
            folder: where they lie.
            names: which of them.
            verify: `once` hashes a file whose state is not the one last hashed; `always` all.

        Raises:
            MismatchError: a file is something else. It is left where it is.
            IntegrityError: nothing says what a file must be.
            WeightsUnavailableError: a file cannot be read.
        """
        before = dict(self.hashed)
        try:
            for name in names:
                self._check_one(folder / name, name, verify)
        finally:
            if self.hashed != before:
                self.write()

    def _check_one(self, path: Path, name: str, verify: Verify) -> None:
        expected = self.files.get(name)
        if expected is None:
            raise IntegrityError(f"{path}: nothing says what {name} of {self.source} must be.")
        try:
            state = file_state(path)
            known = self.hashed.get(name)
            found: str | None = None
            if verify == "once":
                if known == [expected.algorithm, expected.value, list(state)]:
                    return
                found = _HASHED.get((expected.algorithm, state))
            if found is None:
                found = hash_file(path, expected.algorithm)
                if file_state(path) == state:  # Else somebody is writing: what was hashed is gone.
                    _HASHED[expected.algorithm, state] = found
        except OSError as error:
            raise WeightsUnavailableError(f"Cannot read {path}: {error}") from error
        if found != expected.value:
            self.hashed.pop(name, None)
            raise MismatchError(
                f"{name} of {self.source} is not what was published: expected {expected}, found "
                f"{found}, in {path}",
                state,
            )
        self.hashed[name] = [expected.algorithm, found, list(state)]


def hash_file(path: Path, algorithm: Algorithm) -> str:
    """Hexadecimal digest of a file, read through once in small pieces."""
    with path.open("rb") as file:
        return _hash(file, os.fstat(file.fileno()).st_size, algorithm)


def hash_bytes(content: bytes, algorithm: Algorithm) -> str:
    """Hexadecimal digest of bytes."""
    return _hash(io.BytesIO(content), len(content), algorithm)


def _hash(file: BinaryIO, size: int, algorithm: Algorithm) -> str:
    if algorithm == "sha256":
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    piece = memoryview(bytearray(1 << 18))
    while count := file.readinto(piece):  # type: ignore[attr-defined]
        digest.update(piece[:count])
    return digest.hexdigest()


def check_verify(verify: str) -> None:
    """Raise `InvalidConfigError` for another word than `once` and `always`."""
    if verify not in get_args(Verify):
        raise InvalidConfigError(f'verify is "{verify}".{nearest(str(verify), get_args(Verify))}')


def sha256_digests(files: Mapping[str, str]) -> dict[str, Digest]:
    """Digests of a table of sha256 by file name."""
    return {name: Digest("sha256", value) for name, value in files.items()}


def receipt_path(folder: Path) -> Path:
    """Where the receipt of a folder of fetched files is, if it has one.

    For a snapshot of the Hub's cache (`models--org--name/snapshots/<commit>`) beside it, where
    no other program looks; else inside the folder.
    """
    if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name):
        return folder.parents[1] / ".iwm" / f"{folder.name}.json"
    return folder / ".iwm" / "receipt.json"


def is_fetched(folder: Path) -> bool:
    """Whether a folder holds files that somebody published, which must stay as they are."""
    folder = folder.resolve()
    path = receipt_path(folder)
    return path.exists() or path.parent.parent != folder


def file_state(path: Path) -> State:
    """Changes whenever the file is replaced or written to."""
    real = os.path.realpath(path)
    stat = os.stat(real)
    return real, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
