"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from iwm.errors import IWMError, SaveError

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well.

    Of a link it takes the place too: what that leads to may belong to others, as in the Hub's cache.

    Raises:
        SaveError: the disk is full, the folder cannot be written, `path` is a device or a pipe; it is
            as it was.
    """
    temporary = None
    try:
        check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{_short(path.name)}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except IWMError:
        raise
    except OSError as error:
        raise SaveError(f"Cannot write {path}: {error}. What was there before is untouched.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_replaceable(path: Path) -> None:
    """Raise `SaveError` for a device, a pipe or a socket: a file in its place would be the end of it."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise SaveError(f"{path} is a device or a pipe; name a file.")


def _short(name: str) -> str:
    """The beginning of a name that leaves room for what makes it a temporary one: 255 bytes are allowed."""
    while len(os.fsencode(name)) > 240:
        name = name[:-1]
    return name


def remove_unfinished(folder: Path) -> None:
    """Remove what `atomic_write` left in a folder where a process was killed inside it.

    Raises:
        SaveError: it cannot be removed.
    """
    for path in folder.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            remove(path)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Remove a file that may not exist.

    Raises:
        SaveError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except NotADirectoryError:
        return  # It is not there: a file lies where its folder would be.
    except OSError as error:
        raise SaveError(f"Cannot remove {path}: {error}.") from error
