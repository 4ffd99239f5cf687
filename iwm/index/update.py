"""Bringing a library up to date with folders: only new and changed files are encoded.

Files are compared by path, size and time; of those that differ the bytes are hashed, and only
where the hash differs too is anything encoded. What was encoded is committed every `COMMIT_ROWS`
photographs or `COMMIT_SECONDS`, whichever comes first: until then it is in memory alone, and
afterwards it is on the disk and is never encoded again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from iwm.errors import LibraryError
from iwm.index.encoding import Encoded, Job, to_rows
from iwm.index.filters import library_path
from iwm.index.known import Known
from iwm.index.prune import remove_gone
from iwm.index.report import IndexReport, Remark
from iwm.index.store import Store, first_line, schema
from iwm.index.uninterrupted import uninterrupted
from iwm.index.walk import Found, walk

if TYPE_CHECKING:
    import pyarrow as pa

COMMIT_ROWS = 2048
"""Files held back at most: 70 MB of encoded photographs for `iwm-tiny`."""
COMMIT_SECONDS = 20.0
"""How long a photograph is held back at most, while others arrive."""

Engine = Callable[[Iterator[list[Job]]], Iterator[Encoded]]
"""Batches of jobs to encoded batches, in any order."""


def update(
    store: Store,
    roots: Sequence[str | os.PathLike[str]],
    engine: Engine,
    *,
    prune: bool = False,
    batch_size: int = 64,
    on_commit: Callable[[list[str]], None] | None = None,
    watch: Callable[[Iterable[Found | Remark]], Iterable[Found | Remark]] = iter,
) -> IndexReport:
    """Bring a library up to date; the caller holds the right to write.

    Args:
        store: the library.
        roots: files, folders and addresses.
        engine: what encodes.
        prune: remove rows of files below `roots` that no longer exist.
        batch_size: photographs encoded at a time.
        on_commit: called after each commit with the paths that are now on the disk.
        watch: wraps the stream of files, for a progress bar.
    """
    start = time.monotonic()
    found = walk(roots)
    with _reading(store):
        known = Known(store.scan(("path", "bytes", "mtime_ns"), 8192))
    report = IndexReport()
    writer = _Writer(store, report, on_commit)
    try:
        for encoded in engine(_jobs(watch(found), known, store, report, batch_size)):
            writer.take(encoded)
    finally:  # Also what was encoded before Ctrl-C.
        writer.commit()
    if prune:
        unlisted = {remark.path for remark in report.skipped}
        report.removed = remove_gone(store, [library_path(root) for root in roots], unlisted)
    store.maintain()
    report.photos = store.count()
    report.seconds = time.monotonic() - start
    return report


def _jobs(
    files: Iterable[Found | Remark], known: Known, store: Store, report: IndexReport, size: int
) -> Iterator[list[Job]]:
    """Batches of what has to be read; everything else goes straight to the report."""

    def pending() -> Iterator[tuple[Found, bool]]:
        for item in files:
            if isinstance(item, Remark):
                report.skipped.append(item)
            elif (state := known.state(item)) == "unchanged":
                report.unchanged += 1
            else:
                yield item, state == "touched"

    stream, size = pending(), min(size, sys.maxsize)
    while batch := list(itertools.islice(stream, size)):
        touched = [found.path for found, is_touched in batch if is_touched]
        with _reading(store):
            rows = store.rows(touched, ("path", "hash")).to_pylist() if touched else []
        hashes = {row["path"]: row["hash"] for row in rows}
        yield [Job(found, hashes.get(found.path)) for found, _ in batch]


@contextlib.contextmanager
def _reading(store: Store) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise LibraryError(f"Cannot read {store.path}: {first_line(error)}.") from error


class _Writer:
    """Gathers encoded photographs and commits them in pieces."""

    def __init__(
        self, store: Store, report: IndexReport, on_commit: Callable[[list[str]], None] | None
    ) -> None:
        self.store = store
        self.report = report
        self.on_commit = on_commit
        self.columns = schema(store.about)
        self.waiting: list[Encoded] = []
        self.rows = 0
        self.last = time.monotonic()

    def take(self, encoded: Encoded) -> None:
        """Keep a batch, and commit where enough has come together."""
        self.waiting.append(encoded)
        self.rows += len(encoded.photos) + len(encoded.same)
        self.report.skipped += encoded.skipped
        self.report.remarks += [Remark(p.found.path, p.remark) for p in encoded.photos if p.remark]
        self.report.unchanged += len(encoded.same)
        if self.rows >= COMMIT_ROWS or time.monotonic() - self.last > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Write all that is waiting: new rows appended, changed ones in the place of the old.

        Whatever comes of it, nothing of it waits any more: appended again, it would be there twice.
        """
        waiting, self.waiting, self.rows, self.last = self.waiting, [], 0, time.monotonic()
        new, changed = self._rows(waiting, known=False), self._rows(waiting, known=True)
        same = {found.path: found for encoded in waiting for found in encoded.same}
        if new.num_rows:
            uninterrupted(lambda: self.store.append(new))
            self.report.added += new.num_rows
            self._say(new)
        if changed.num_rows:
            uninterrupted(lambda: self.store.replace(changed))
            self.report.updated += changed.num_rows
            self._say(changed)
        if same:
            uninterrupted(lambda: self.store.change(self._stamps(list(same.values()))))

    def _rows(self, waiting: list[Encoded], *, known: bool) -> pa.Table:
        parts = [(e, [i for i, k in enumerate(e.known) if k is known]) for e in waiting]
        return to_rows([part for part in parts if part[1]], self.columns)

    def _stamps(self, files: list[Found]) -> pa.Table:
        """New times, and sizes, of files that were touched and are the same: one may have grown while it was read."""
        import pyarrow as pa

        names = ("path", "bytes", "mtime_ns")
        columns = pa.schema([self.columns.field(name) for name in names])
        return pa.table([[getattr(file, name) for file in files] for name in names], schema=columns)

    def _say(self, rows: pa.Table) -> None:
        if self.on_commit:
            self.on_commit(rows["path"].to_pylist())
