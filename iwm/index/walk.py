"""Every photograph below a folder or an address, one at a time, and what cannot be walked.

Folders come in the order of their names and nothing is kept but the folders open and the
identities of those visited, so ten million files take no more memory than their folders do. The
listing of an address is held whole.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwm.errors import InvalidDataError, LibraryError
from iwm.images import EXTENSIONS
from iwm.index.filters import is_address, library_path
from iwm.index.report import Remark

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

PHOTO_EXTENSIONS = EXTENSIONS | {".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf"}  # fmt: skip
"""Files that a person would count as photographs; those without a decoder here are reported."""


@dataclass(frozen=True)
class Found:
    """A file that is a photograph by its name.

    Attributes:
        path: absolute, or an address.
        bytes: its size.
        mtime_ns: when it last changed, in nanoseconds since 1970.
    """

    path: str
    bytes: int
    mtime_ns: int


def walk(roots: Sequence[str | os.PathLike[str]]) -> Iterator[Found | Remark]:
    """Photographs of files, folders and addresses, each once; hidden ones come if they are named.

    Links to folders are followed, unless what they lead to has been visited already.

    Args:
        roots: files, folders, or addresses such as `s3://bucket/photos`.

    Raises:
        InvalidDataError: one of them does not exist, said before anything is given.
        LibraryError: no such kind of store as an address names, or it does not answer.
    """
    paths = list(dict.fromkeys(library_path(root) for root in roots))
    folders = check_roots(paths)
    # A file named beside the folder it lies in must not come twice.
    return _walk_all(folders, [path for path in paths if path not in folders and not _comes(path, folders)])


def check_roots(roots: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Raise `InvalidDataError` for files and folders that do not exist; the folders among them."""
    if not roots:
        raise InvalidDataError("No folder of photographs was given.")
    return [os.fspath(root) for root in roots if _is_root_folder(os.fspath(root))]


def _is_root_folder(root: str) -> bool:
    if not is_address(root):
        if not os.path.lexists(root):
            raise InvalidDataError(f"No such file or folder: {root}")
        return os.path.isdir(root)
    from pyarrow.fs import FileType

    kind = _ask(root).type
    if kind == FileType.NotFound:
        raise InvalidDataError(f"No such file or folder: {root}")
    return bool(kind == FileType.Directory)


def _ask(address: str) -> FileInfo:
    """What the store of an address knows of it."""
    store, inner = file_system(address)
    try:
        return store.get_file_info(inner)
    except OSError as error:
        raise InvalidDataError(f"Cannot look at {address}: {error}") from error


def _walk_all(folders: list[str], files: list[str]) -> Iterator[Found | Remark]:
    visited: dict[tuple[int, int], str] = {}
    for folder in folders:
        if is_address(folder):
            if not any(folder.startswith(f"{other}/") for other in folders):  # With that one, otherwise.
                yield from _walk_address(folder)
        else:
            yield from _walk_folder(folder, visited)
    for file in files:
        yield _stat_address(file) if is_address(file) else _stat(file)


def _comes(path: str, folders: list[str]) -> bool:
    """Whether a file is found by walking one of the folders."""
    roots = [folder.rstrip("/") + "/" for folder in folders]
    below = [path.removeprefix(root) for root in roots if path.startswith(root)]
    return any(_is_photo(inner) for inner in below)


def _is_photo(inner: str) -> bool:
    """Whether a path below a folder is that of a photograph, by its name, and not hidden."""
    hidden = any(part.startswith(".") for part in inner.split("/"))
    return not hidden and os.path.splitext(inner)[1].lower() in PHOTO_EXTENSIONS


def _walk_folder(root: str, visited: dict[tuple[int, int], str]) -> Iterator[Found | Remark]:
    open_folders = [root]
    while open_folders:
        folder = open_folders.pop()
        try:
            about = os.stat(folder)
            identity = (about.st_dev, about.st_ino)
            if identity in visited:
                if os.path.islink(folder):
                    yield _remark(
                        folder, f"a link to {_printable(visited[identity])}, which is indexed already"
                    )
                continue
            visited[identity] = folder
            with os.scandir(folder) as listing:
                entries = sorted((entry.name, _is_folder(entry)) for entry in listing)
        except OSError as error:
            yield _remark(folder, f"cannot be listed: {error.strerror or error}")
            continue
        inner = []
        for name, is_folder in entries:
            path = os.path.join(folder, name)
            if is_folder and not name.startswith("."):
                inner.append(path)
            elif not is_folder and _is_photo(name):
                yield _stat(path)
        open_folders += reversed(inner)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # A link in a loop: reported when it is read as a file.


def _stat(path: str) -> Found | Remark:
    try:
        path.encode()
    except UnicodeEncodeError:
        return _remark(path, "its name is not valid UTF-8; rename it")
    try:
        about = os.stat(path)
    except OSError as error:
        loop = error.errno == errno.ELOOP
        return _remark(path, "a link that leads back to itself" if loop else f"{error.strerror or error}")
    if not stat.S_ISREG(about.st_mode):  # Reading from a pipe or device might never end.
        return _remark(path, "not a regular file")
    return Found(path, about.st_size, about.st_mtime_ns)


def _walk_address(root: str) -> Iterator[Found | Remark]:
    """Listed whole, about 300 bytes a file: stores have no folders to walk."""
    from pyarrow import fs

    store, inner = file_system(root)
    place = store_address(root)
    _, base = _store(place)
    try:
        listing = store.get_file_info(fs.FileSelector(inner, recursive=True))
    except OSError as error:
        raise InvalidDataError(f"Cannot list {root}: {error}") from error
    for info in sorted(listing, key=lambda i: i.path):
        if info.type == fs.FileType.File and _is_photo(info.path[len(inner) :]):
            yield Found(place + info.path[len(base) :], info.size, info.mtime_ns or 0)


def _stat_address(address: str) -> Found | Remark:
    from pyarrow.fs import FileType

    info = _ask(address)
    if info.type != FileType.File:
        return _remark(address, "not a regular file")
    return Found(address, info.size, info.mtime_ns or 0)


def file_system(address: str) -> tuple[FileSystem, str]:
    """The object store of an address, and the path in it.

    Names are taken as they are, spaces and all: nothing in them is an escape or an option.

    Raises:
        LibraryError: no such kind of store, or it does not answer.
    """
    place = store_address(address)
    store, base = _store(place)
    if place == "file:///":
        return store, address.removeprefix("file://")
    return store, f"{base}{address[len(place) :]}".rstrip("/")


def store_address(address: str) -> str:
    """Which store an address is in.

    >>> store_address("s3://bucket/2024/a.jpg")
    's3://bucket'
    """
    scheme, _, rest = address.partition("://")
    return "file:///" if scheme == "file" else f"{scheme}://{rest.partition('/')[0]}"


@functools.lru_cache(maxsize=8)
def _store(address: str) -> tuple[FileSystem, str]:
    from pyarrow import fs

    try:
        store, base = fs.FileSystem.from_uri(address)
    except (OSError, ValueError) as error:
        raise LibraryError(f"Cannot reach {address}: {error}") from error
    return store, base


def _remark(path: str, words: str) -> Remark:
    return Remark(_printable(path), words)


def _printable(path: str) -> str:
    """Names that are not UTF-8 with their bytes spelt out."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
