"""What an indexing run did, file by file where there is something to say."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Remark:
    """Something to say about one file.

    Attributes:
        path: the file or folder, printable.
        words: what was found.
    """

    path: str
    words: str


@dataclass(kw_only=True)
class IndexReport:
    """Counts of an indexing run, in photographs.

    Attributes:
        added: new, encoded and committed.
        updated: changed since, encoded again and committed.
        unchanged: known already; not read, or read and found the same byte for byte.
        removed: rows of files that are gone; only where asked for.
        skipped: what could not be read, with the reason.
        remarks: what was read with a loss, such as the first frame of an animation.
        photos: in the library afterwards.
        seconds: the whole run took.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    skipped: list[Remark] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    photos: int = 0
    seconds: float = 0.0
