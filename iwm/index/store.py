"""The table on disk: rows in Lance, one commit at a time, readable while it is written.

A library is a folder holding a LanceDB database of one table. Every commit is one new manifest,
written when all its data are, so a process killed at any moment leaves the last commit; searches
read the newest manifest and are never in the way. One process writes at a time: a file lock says
so where the library is on a disk, and goes with its process. Rows that were deleted or superseded are
cleared away when they are a tenth of what is on the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwm.errors import IncompatibleLatentError, InvalidConfigError, LibraryError, SaveError
from iwm.index.filters import is_address, quote
from iwm.index.sketch import SKETCH

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from lancedb.table import Table

TABLE = "photos"
ANN_ROWS = 4096
"""Rows above which searches use an index of the sketches; below, all sketches are compared."""
PARTITION_ROWS = 4096
"""Rows a partition of that index. All partitions are searched: leaving half of them out would lose
6% of the nearest, because latents of photographs are all about equally far from each other."""
SKETCH_BITS = 2
"""Bits a number of a sketch in the index [RaBitQ, arXiv 2409.09913]."""
FRAGMENTS = 64
"""Files above which they are merged, if half of them hold fewer than `FEW_ROWS`."""
FEW_ROWS = 512
WASTE = 0.1
"""Share of the rows on the disk, deleted or superseded, above which they are cleared away. LanceDB
leaves a file alone until this share of it is deleted."""
_AT_ONCE = timedelta(milliseconds=1)
_FORMAT = 1
_KEY = b"iwm-library"


@dataclass(frozen=True)
class About:
    """Whose latents a library holds.

    Attributes:
        model: name of the model that made them.
        space: fingerprint of its encoder.
        grid: patches high and wide.
        width: numbers a patch token.
    """

    model: str
    space: str
    grid: tuple[int, int]
    width: int

    @property
    def numbers(self) -> int:
        """Numbers a latent."""
        return self.grid[0] * self.grid[1] * self.width


def schema(about: About) -> pa.Schema:
    """Columns of a library."""
    import pyarrow as pa

    columns = {
        "path": pa.string(), "bytes": pa.int64(), "mtime_ns": pa.int64(), "hash": pa.string(),
        "width": pa.int32(), "height": pa.int32(), "taken": pa.timestamp("us"),
        "sketch": pa.list_(pa.float16(), SKETCH), "tokens": pa.list_(pa.float16(), about.numbers),
    }  # fmt: skip
    fields = [pa.field(name, kind, nullable=name == "taken") for name, kind in columns.items()]
    return pa.schema(fields, metadata={_KEY: json.dumps({"format": _FORMAT} | asdict(about))})


def is_library(path: str | os.PathLike[str]) -> bool:
    """Whether this is, or is called like, a library."""
    folder = _folder(path)
    return os.fspath(path).rstrip("/").endswith(".lance") or (folder is not None and _on_disk(folder))


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is a library."""
    folder = _folder(path)
    if folder is not None:
        return _on_disk(folder)
    return TABLE in _connect(os.fspath(path)).table_names()


class Store:
    """The rows of one library. Made by `create` or `open`."""

    def __init__(self, path: str, table: Table, about: About) -> None:
        self.path = path
        self.about = about
        self._folder = _folder(path)
        self._table = table
        self._ann: tuple[int, bool] = (-1, False)

    @classmethod
    def create(cls, path: str | os.PathLike[str], about: About) -> Store:
        """An empty library.

        Raises:
            LibraryError: something is there already.
            SaveError: it cannot be written.
            InvalidConfigError: lancedb is not installed.
        """
        name, folder = _at_home(path), _folder(path)
        if folder is not None and not _is_free(folder):
            if not folder:
                raise LibraryError("A library needs a name, such as library.lance.")
            if _on_disk(folder):
                raise LibraryError(f'{name} is a library already; open it with iwm.Index.open("{name}").')
            raise LibraryError(f"{name} exists already and is no library; name another place for it.")
        database = _connect(name)
        try:
            table = database.create_table(TABLE, schema=schema(about))
        except (OSError, RuntimeError, ValueError) as error:
            if "already exists" in str(error):
                raise LibraryError(
                    f"Another process has just made {name}; the same command adds to it."
                ) from error
            raise SaveError(f"Cannot make a library at {name}: {first_line(error)}") from error
        return cls(name, table, about)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Store:
        """A library that exists.

        Raises:
            LibraryError: there is none, or it is not one that this version of iwm can read.
            InvalidConfigError: lancedb is not installed.
        """
        name, folder = _at_home(path), _folder(path)
        if folder is not None and not _on_disk(folder):
            raise LibraryError(f"No library at {name}; make it: iwm index PHOTOS --out {name}")
        database = _connect(name)
        try:
            table = database.open_table(TABLE)
            about = json.loads((table.schema.metadata or {})[_KEY])
            if about.pop("format") != _FORMAT:
                raise ValueError("made by another version of iwm; index the photographs again")
            return cls(name, table, About(**about | {"grid": tuple(about["grid"])}))
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise LibraryError(f"{name} is not a library that can be read: {first_line(error)}") from error

    def check_space(self, space: str, model: str | None = None) -> None:
        """Raise `IncompatibleLatentError` unless the library holds latents of this encoder."""
        if space != self.about.space and model == self.about.model:
            raise IncompatibleLatentError(
                f'{self.path} was made by other weights of the name "{model}" (space {self.about.space}, '
                f"not {space}); say where they are, with --model on the command line, or index the photographs "
                "again: iwm index PHOTOS --out NEW.lance"
            )
        if space != self.about.space:
            other = f'"{model}" (space {space})' if model else f"an encoder of space {space}"
            raise IncompatibleLatentError(
                f'{self.path} was made by "{self.about.model}" (space {self.about.space}), not by {other}; '
                f'use the model "{self.about.model}" with it, or make another library.'
            )

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the right to write; it ends with the block, or with the process.

        Raises:
            LibraryError: another process holds it.
        """
        if self._folder is None:
            yield
            return
        from filelock import FileLock, Timeout

        lock = FileLock(Path(self._folder) / "writer.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise LibraryError(f"{self.path} is being written by another process; wait for it.") from error
        except OSError as error:
            raise SaveError(f"Cannot write {self.path}: {error}") from error
        try:
            self.refresh()
            yield
        finally:
            lock.release()

    def refresh(self) -> None:
        """See what others have committed."""
        self._table.checkout_latest()

    def count(self, where: str | None = None) -> int:
        """Rows, or those that a condition holds for."""
        return int(self._table.count_rows(where))

    def append(self, rows: pa.Table) -> None:
        """Commit rows of paths that are not in the library.

        In an object store, where no lock keeps a second writer out, what it wrote meanwhile is replaced.
        """
        if self._folder is None:
            self.refresh()
            self.replace(rows)
            return
        with self._committing():
            self._table.add(rows)

    def replace(self, rows: pa.Table) -> None:
        """Commit rows in the place of those with the same paths, in one step."""
        with self._committing():
            merge = self._table.merge_insert("path").when_matched_update_all()
            merge.when_not_matched_insert_all().execute(rows)

    def change(self, rows: pa.Table) -> None:
        """Commit some columns, `path` among them, of rows that are in the library."""
        with self._committing():
            self._table.merge_insert("path").when_matched_update_all().execute(rows)

    def delete(self, paths: Sequence[str]) -> None:
        """Remove rows."""
        with self._committing():
            for start in range(0, len(paths), 500):
                self._table.delete(_among(paths[start : start + 500]))

    def rows(self, paths: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of some paths, in no particular order."""
        query = self._table.search().where(_among(paths))
        return (query.select(list(columns)) if columns else query).limit(max(len(paths), 1)).to_arrow()

    def scan(self, columns: Sequence[str], rows: int, where: str | None = None) -> Iterator[pa.RecordBatch]:
        """All rows, so many at a time."""
        query = self._table.search().select(list(columns))
        yield from (query.where(where) if where else query).to_batches(rows)

    def nearest(self, vector: np.ndarray[Any, Any], count: int, where: str | None) -> pa.Table:
        """Paths and tokens of the rows whose sketches are nearest to one.

        Args:
            vector: `[SKETCH]`.
            count: how many.
            where: a condition on the rows.
        """
        query = self._table.search(vector, vector_column_name="sketch").distance_type("l2").limit(count)
        query = query.select(["path", "tokens", "_distance"])
        rows = self._table.count_rows()
        if where:
            query = query.where(where, prefilter=True)
            rows = self._table.count_rows(where)
        if self._has_ann():
            # A condition that leaves few rows is answered from the sketches themselves.
            query = query.bypass_vector_index() if rows <= ANN_ROWS else query.nprobes(1 << 20)
        return query.to_arrow()

    def maintain(self) -> None:
        """Clear away deleted rows, merge small files and renew the index of sketches, where it pays."""
        with self._committing():
            stats = self._table.stats()
            files = stats["fragment_stats"]
            scattered = files["num_fragments"] > FRAGMENTS and files["lengths"]["p50"] < FEW_ROWS
            if scattered or self._wasted(stats) > WASTE:
                self._optimize()
            rows = self._table.count_rows()
            # Rows that came after it was made are compared one by one until there are enough of them.
            if rows > ANN_ROWS and rows - self._indexed_rows() > max(ANN_ROWS, rows // 20):
                from lancedb.index import IvfRq

                settings = IvfRq(
                    distance_type="l2", num_partitions=max(rows // PARTITION_ROWS, 1), num_bits=SKETCH_BITS
                )
                self._table.create_index("sketch", config=settings)

    def _optimize(self) -> None:
        """Merge files and remove superseded ones, with what a search still reads: it starts again.

        What a killed process left goes only where the lock tells that nobody is writing it now.
        """
        for _ in range(3):
            time.sleep(
                0.02
            )  # A version that was committed just now is too young to go, and LanceDB misses some.
            self._table.optimize(cleanup_older_than=_AT_ONCE, delete_unverified=self._folder is not None)
            if self._wasted(self._table.stats()) <= WASTE:
                return

    def _wasted(self, stats: dict[str, Any]) -> float:
        """Share of the bytes of rows that are deleted or superseded; in an object store, deleted."""
        files = stats["fragment_stats"]
        stored_rows = files["lengths"]["mean"] * files["num_fragments"]
        needed = stats["total_bytes"] * stats["num_rows"] / stored_rows if stored_rows else 0
        used = stats["total_bytes"]
        if self._folder is not None:
            data = Path(self._folder) / f"{TABLE}.lance" / "data"
            used = sum(file.stat().st_size for file in data.glob("*"))
        return 1 - needed / used if used else 0.0

    def _indexed_rows(self) -> int:
        if not self._has_ann():
            return 0
        stats = self._table.index_stats("sketch_idx")
        return stats.num_indexed_rows if stats else 0

    def _has_ann(self) -> bool:
        version = self._table.version
        if self._ann[0] != version:
            self._ann = version, any(index.columns == ["sketch"] for index in self._table.list_indices())
        return self._ann[1]

    @contextlib.contextmanager
    def _committing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            raise SaveError(
                f"Cannot write {self.path}: {first_line(error)}. What was committed before is untouched."
            ) from error


def _folder(path: str | os.PathLike[str]) -> str | None:
    """The folder of a library on a disk; None where it is in an object store."""
    words = _at_home(path)
    if words.startswith("file://"):
        return words.removeprefix("file://")
    return None if is_address(words) else words


def _at_home(path: str | os.PathLike[str]) -> str:
    """A path with `~` spelt out, as LanceDB does."""
    words = os.fspath(path)
    return words if is_address(words) else os.path.expanduser(words)


def _on_disk(path: str) -> bool:
    """Whether a first commit was made here: a process killed before it leaves folders without one."""
    return any((Path(path) / f"{TABLE}.lance" / "_versions").glob("*.manifest"))


def _is_free(path: str) -> bool:
    """Nothing is here, or only what a process left that was killed before its first commit."""
    if not os.path.lexists(path):
        return bool(path)
    ours = {f"{TABLE}.lance", "writer.lock"}
    return os.path.isdir(path) and not _on_disk(path) and set(os.listdir(path)) <= ours


def _connect(path: str) -> Any:
    # Read when the library is first imported; its log would mix with the words of commands.
    os.environ.setdefault("LANCE_LOG", "error")
    try:
        import lancedb
    except ImportError as error:
        raise InvalidConfigError('Libraries need lancedb: pip install "iwm[retrieval]"') from error
    try:
        return lancedb.connect(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise LibraryError(f"Cannot reach {path}: {first_line(error)}") from error


def _among(paths: Sequence[str]) -> str:
    return f"path IN ({', '.join(quote(path) for path in paths)})" if paths else "false"


def first_line(error: Exception) -> str:
    """The first line of an error's words, without its full stop."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
