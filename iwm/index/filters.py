"""Which photographs of a library a search may find."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime

from iwm.errors import InvalidConfigError, InvalidDataError, quoted


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Conditions that all have to hold; None does not ask.

    Attributes:
        under: folder (or beginning of an address such as `s3://bucket/2024`) the photograph lies below.
        taken_from: earliest capture time by EXIF, in the camera's local time.
        taken_before: capture time lies before this. Photographs without EXIF time pass neither.
        min_side: shorter side in pixels, at least.
        min_bytes: size of the file in bytes, at least.
        max_bytes: at most.

    Raises:
        InvalidConfigError: a time with a zone, or a negative size.

    >>> Filter(min_side=600).sql()
    'least(width, height) >= 600'
    """

    under: str | os.PathLike[str] | None = None
    taken_from: datetime | None = None
    taken_before: datetime | None = None
    min_side: int | None = None
    min_bytes: int | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("taken_from", "taken_before"):
            time = getattr(self, name)
            if time is not None and (not isinstance(time, datetime) or time.tzinfo is not None):
                raise InvalidConfigError(
                    f"{name} is {time!r}; pass a datetime.datetime without a time zone, as cameras write it."
                )
        for name in ("min_side", "min_bytes", "max_bytes"):
            size = getattr(self, name)
            if size is not None and (isinstance(size, bool) or not hasattr(size, "__index__") or size < 0):
                raise InvalidConfigError(f"{name} is {size!r}; it must be a whole number of at least 0.")
            if size is not None and int(size) >= 2**63:
                raise InvalidConfigError(f"{name} is {size}; no file or photograph is so large.")

    def sql(self) -> str | None:
        """The condition in SQL over a library's columns; None lets everything pass."""
        parts = []
        if self.under is not None:
            root = library_path(self.under).rstrip("/") + "/"
            parts.append(f"starts_with(path, {quote(root)})")
        if self.taken_from is not None:
            parts.append(f"taken >= timestamp '{self.taken_from.isoformat(sep=' ')}'")
        if self.taken_before is not None:
            parts.append(f"taken < timestamp '{self.taken_before.isoformat(sep=' ')}'")
        if self.min_side is not None:
            parts.append(f"least(width, height) >= {self.min_side}")
        if self.min_bytes is not None:
            parts.append(f"bytes >= {self.min_bytes}")
        if self.max_bytes is not None:
            parts.append(f"bytes <= {self.max_bytes}")
        return " AND ".join(parts) or None


def library_path(path: str | os.PathLike[str]) -> str:
    """A file or folder as libraries call it: addresses as they are, but for a last "/", anything else absolute.

    Raises:
        InvalidDataError: no path, an empty one, or one that is not UTF-8.

    >>> library_path("s3://bucket/a.jpg")
    's3://bucket/a.jpg'
    """
    words = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(words, str) or not words:
        raise InvalidDataError(f"{quoted(repr(path))} is no path; libraries hold files, by their paths.")
    try:
        words.encode()
    except UnicodeEncodeError as error:
        raise InvalidDataError(f"{words!r} is not valid UTF-8; libraries hold no such names.") from error
    if not is_address(words):
        return os.path.abspath(words)
    scheme, _, rest = words.partition("://")
    return f"{scheme}://{rest.rstrip('/') or rest}"


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether this is an address of an object store, such as `s3://bucket/folder`."""
    return "://" in os.fspath(path)


def quote(words: str) -> str:
    """A string as an SQL literal.

    >>> quote("it's")
    "'it''s'"
    """
    return "'" + words.replace("'", "''") + "'"
