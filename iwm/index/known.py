"""Which files of a library are as they were, in 16 bytes a file.

Paths, sizes and times are kept as hashes of eight bytes, so ten million files take 160 MB. Should
two paths share a hash (once in some 10^5 libraries of ten million), the newer of them counts as
changed rather than new, which costs a look at the table and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import numpy as np

from iwm.index.walk import Found

if TYPE_CHECKING:
    import pyarrow as pa

    Hashes = np.ndarray[tuple[int], np.dtype[np.uint64]]


class Known:
    """The files of a library.

    Args:
        batches: columns `path`, `bytes` and `mtime_ns`.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        paths, stamps = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for batch in batches:
            rows = [Found(**row) for row in batch.to_pylist()]
            paths.append(np.array([_path(row) for row in rows], np.uint64))
            stamps.append(np.array([_stamp(row) for row in rows], np.uint64))
        self._paths, self._stamps = np.sort(np.concatenate(paths)), np.sort(np.concatenate(stamps))

    def state(self, found: Found) -> Literal["new", "touched", "unchanged"]:
        """Whether a file is in the library, and with this size and time."""
        if not _among(_path(found), self._paths):
            return "new"
        return "unchanged" if _among(_stamp(found), self._stamps) else "touched"


def _among(value: int, values: Hashes) -> bool:
    place = int(np.searchsorted(values, np.uint64(value)))
    return place < len(values) and int(values[place]) == value


def _path(found: Found) -> int:
    return _hash(found.path)


def _stamp(found: Found) -> int:
    return _hash(f"{found.path}\0{found.bytes}\0{found.mtime_ns}")


def _hash(words: str) -> int:
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little")
