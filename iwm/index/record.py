"""What a library says of a photograph."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class PhotoRecord:
    """A photograph as it was when it was indexed.

    Attributes:
        path: absolute, or an address.
        bytes: size of the file.
        mtime_ns: when the file last changed, in nanoseconds since 1970.
        hash: BLAKE2b-128 of its bytes, hexadecimal.
        width: in pixels, upright.
        height: in pixels, upright.
        taken: capture time by EXIF, the camera's local time, where there is one.
    """

    path: str
    bytes: int
    mtime_ns: int
    hash: str
    width: int
    height: int
    taken: datetime | None


COLUMNS = tuple(field.name for field in fields(PhotoRecord))
"""Of a library, those that a record is made of."""
