"""The Hub's cache as the client lays it out: what is in it, and taking out what is bad.

`models--org--name/snapshots/<commit>/<file>` links to `blobs/<digest>`, which newer clients make a
link to a store that all repositories share. Without links, the file itself is in the snapshot.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

from iwm.hub_client import KNOWN_FILES
from iwm.integrity import Digest, State, file_state

_STALE_SECONDS = 24 * 3600
_SHARED = re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}")


def stored_digests(snapshot: Path) -> dict[str, Digest]:
    """What the Hub reported when another program filled the cache.

    The client stores a file under the digest that the Hub gave, and links to it by its name.
    """
    files = {}
    for link in snapshot.iterdir():
        if KNOWN_FILES.fullmatch(link.name) and link.is_symlink():
            value = Path(os.readlink(link)).name
            with contextlib.suppress(ValueError):
                files[link.name] = Digest("sha256" if len(value) == 64 else "git", value)
    return files


def discard(path: Path, expected: Digest, state: State) -> str:
    """Remove a bad file of a snapshot, with all that it links to; says what was done.

    Args:
        path: the file.
        expected: what it had to be; a blob of that name is the same bad file.
        state: in which it was found to be bad. In another one it has been healed since.
    """
    path = path.parent.resolve() / path.name  # Else a ".." in the name of the cache hides the rest.
    repository, cache = path.parents[2], path.parents[3]
    try:
        with contextlib.suppress(FileNotFoundError):
            if file_state(path) != state:
                return "Another process has replaced it meanwhile; load again."
        chain = [path]
        while chain[-1].is_symlink():
            chain.append(Path(os.path.normpath(chain[-1].parent / os.readlink(chain[-1]))))
        chain.append(repository / "blobs" / expected.value)
        for link in chain:
            shared = cache / "blobs" in link.parents and _SHARED.fullmatch(
                link.relative_to(cache / "blobs").as_posix()
            )
            if repository in link.parents or shared:
                link.unlink(missing_ok=True)
    except OSError as error:
        return f"It cannot be removed ({error.strerror}): delete {path}, or use another cache_dir."
    left = [link for link in chain if link.exists()]
    if left:
        return f"It was taken out of the cache, whose link led to {left[0]}; load again."
    return "It was removed from the cache; the next call fetches it anew."


def sweep(snapshot: Path) -> None:
    """Remove what killed downloads left behind, a day later."""
    with contextlib.suppress(OSError):
        for path in (snapshot.parents[1] / "blobs").glob("*.incomplete"):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
