"""`iwm.Index`: a photo library on disk, searched like a bank.

A search has two stages. The first finds some hundred candidates by short sketches of the latents;
the second ranks these by the bank's distance, Euclidean over all normalised patch tokens, on the
tokens as stored in float16. So distances are exact, and what can be missed is only a photograph
that the first stage left out; `exact=True` compares with every row instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from iwm.bank import Id, SearchResult, distances
from iwm.errors import IncompatibleLatentError, InvalidConfigError, LibraryError, nearest, quoted
from iwm.fields import require_count
from iwm.images import spread
from iwm.index.encoding import grid_and_width, local_engine
from iwm.index.filters import Filter, library_path
from iwm.index.record import COLUMNS, PhotoRecord
from iwm.index.report import IndexReport
from iwm.index.sketch import sketch
from iwm.index.store import About, Store, first_line
from iwm.index.update import Engine, update
from iwm.latent import Latent

if TYPE_CHECKING:
    import pyarrow as pa

    from iwm.world_model import WorldModel

CANDIDATES = 300
"""Photographs that the first stage passes on, for up to 15 asked for."""
EXACT_ROWS = 1024
"""Photographs up to which all are compared: no slower than two stages."""
_SCAN_ROWS = 1024

T = TypeVar("T")

Ids = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
"""Photographs of a library, by path; or one."""

_ENGINES = ("local", "ray")


class Index:
    """A library of photographs on disk.

    Made by `Index.create` or `Index.open`. Several processes may search it while one adds to it;
    every search sees what was committed last.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    def create(cls, path: str | os.PathLike[str], model: WorldModel) -> Index:
        """An empty library for the latents of one model.

        Args:
            path: a folder to make, such as `library.lance`, or an address such as
                `s3://bucket/library.lance`.
            model: whose latents it will hold.

        Raises:
            LibraryError: something is there already.
            SaveError: it cannot be written.
            InvalidConfigError: lancedb is not installed.
        """
        side = model.preprocess.size // model.config.encoder.patch_size
        return cls(
            Store.create(path, About(model.config.name, model.space, (side, side), grid_and_width(model)[1]))
        )

    @classmethod
    def open(cls, path: str | os.PathLike[str], model: WorldModel | None = None) -> Index:
        """A library that exists.

        Args:
            path: where it is.
            model: checked to be the one that made it, where given.

        Raises:
            LibraryError: there is none, or it cannot be read.
            IncompatibleLatentError: another model made it.
            InvalidConfigError: lancedb is not installed.
        """
        index = cls(Store.open(path))
        if model is not None:
            index.check_model(model)
        return index

    def check_model(self, model: WorldModel) -> None:
        """Raise `IncompatibleLatentError`, with both names, unless `model` made this library."""
        self._store.check_space(model.space, model.config.name)

    @property
    def path(self) -> str:
        """Where the library is."""
        return self._store.path

    @property
    def model_name(self) -> str:
        """Name of the model that made the latents."""
        return self._store.about.model

    @property
    def space(self) -> str:
        """Fingerprint of the encoder that made the latents."""
        return self._store.about.space

    @property
    def grid(self) -> tuple[int, int]:
        """Patches high and wide."""
        return self._store.about.grid

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """A copy, or what another process is sent, is the library opened again."""
        return Index.open, (self.path,)

    def __len__(self) -> int:
        return self.count()

    def __repr__(self) -> str:
        return (
            f"Index({self.path!r}, {len(self)} photographs, model={self.model_name!r}, space={self.space!r})"
        )

    def update(
        self,
        model: WorldModel,
        photos: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        prune: bool = False,
        engine: str = "local",
        workers: int = 2,
        batch_size: int = 64,
        progress: bool = False,
        on_commit: Callable[[list[str]], None] | None = None,
    ) -> IndexReport:
        """Encode what is new or changed below some folders.

        May be stopped at any moment, also by a kill: what was committed stays, and the same call
        goes on with the rest. What cannot be read is skipped and listed in the report; a file that
        was readable before keeps its last readable row.

        Args:
            model: the one that made the library.
            photos: files, folders, or addresses such as `s3://bucket/photos`.
            prune: remove photographs below `photos` whose files are gone. Not done unasked: a disk
                that is not mounted looks just like one whose photographs were deleted.
            engine: `local` encodes in this process, `ray` through Ray Data.
            workers: processes of the `ray` engine.
            batch_size: photographs encoded at a time.
            progress: show a progress bar.
            on_commit: called after each commit with the paths that are safe now.

        Raises:
            IncompatibleLatentError: another model made the library.
            InvalidConfigError: a `batch_size` of less than 1, or an unknown engine.
            InvalidDataError: one of `photos` does not exist.
            LibraryError: another process is writing.
            SaveError: the disk is full, or the library cannot be written.
        """
        require_count("batch_size", batch_size)
        self.check_model(model)
        check_engine(engine)
        roots = _listed(photos)

        def watch(files: Iterable[Any]) -> Iterable[Any]:
            if not progress:
                return files
            from iwm.display import track

            return track(files, "indexing")

        with self._store.writing():
            return update(
                self._store, roots, _engine(engine, model, workers),
                prune=prune, batch_size=batch_size, on_commit=on_commit, watch=watch,
            )  # fmt: skip

    def delete(self, ids: Ids) -> int:
        """Remove photographs from the library; their files stay.

        Their latents leave the disk at once where they are more than a tenth of the library's, and
        with the deletion that reaches this share otherwise.

        Args:
            ids: paths, as searches return them, or one.

        Returns:
            How many there were.

        Raises:
            LibraryError: another process is writing.
            SaveError: the library cannot be written.
        """
        paths = _paths(ids)
        with self._store.writing():
            before = self._store.count()
            self._store.delete(paths)
            self._store.maintain()
            return before - self._store.count()

    def search(
        self, latent: Latent, k: int = 5, *, where: Filter | None = None, exact: bool = False
    ) -> SearchResult:
        """The k nearest photographs to each query, fewer where the library is smaller.

        Args:
            latent: B queries.
            k: how many, at least 1.
            where: which photographs may be found.
            exact: compare with every photograph instead of the first stage's candidates.

        Raises:
            IncompatibleLatentError: a query of another space or grid.
            InvalidConfigError: `k` is less than 1, or `where` is no filter.
            LibraryError: the library cannot be read.
        """
        self._check(latent, k)
        condition = _condition(where)
        queries = latent.tokens.detach().cpu()
        return self._read(lambda: self._search(queries, k, condition, exact))

    def count(self, where: Filter | None = None) -> int:
        """How many photographs a search may find.

        Raises:
            InvalidConfigError: `where` is no filter.
            LibraryError: the library cannot be read.
        """
        condition = _condition(where)
        return self._read(lambda: self._store.count(condition))

    def photos(self, ids: Ids) -> list[PhotoRecord]:
        """What the library knows of photographs besides their latents.

        Args:
            ids: paths, as searches return them, or one.

        Returns:
            Records in the order of `ids`, without those that are not in the library.

        Raises:
            LibraryError: the library cannot be read.
        """
        paths = _paths(ids)
        rows = self._read(lambda: self._store.rows(paths, COLUMNS).to_pylist())
        records = {row["path"]: PhotoRecord(**row) for row in rows}
        return [records[path] for path in paths if path in records]

    def sample(self, count: int) -> Latent:
        """Latents of some photographs, spread evenly over the sorted paths: references for `model.undo`.

        Args:
            count: how many at most, at least 1.

        Raises:
            InvalidConfigError: `count` is less than 1.
            LibraryError: the library cannot be read.
        """
        require_count("count", count)
        return self._read(lambda: self._sample(count))

    def _sample(self, count: int) -> Latent:
        paths = [
            path for batch in self._store.scan(("path",), _SCAN_ROWS) for path in batch["path"].to_pylist()
        ]
        some = spread(sorted(paths), count)
        rows = self._store.rows(some, ("path", "tokens")).sort_by("path")
        return Latent(self._tokens(rows["tokens"].combine_chunks()).float(), self.grid, self.space)

    def _read(self, read: Callable[[], T]) -> T:
        """What a read of the last commit gives; once more where its files were cleared away meanwhile."""
        try:
            self._store.refresh()
            return read()
        except (OSError, RuntimeError):
            pass
        try:
            self._store.refresh()
            return read()
        except (OSError, RuntimeError) as error:
            raise LibraryError(f"Cannot read {self.path}: {first_line(error)}.") from error

    def _search(self, queries: Tensor, k: int, condition: str | None, exact: bool) -> SearchResult:
        rows = self._store.count(condition)
        if exact or not len(queries) or rows <= max(EXACT_ROWS, k):
            return self._scan(queries, min(k, rows), condition)
        count = min(max(CANDIDATES, 20 * k), rows)
        found = [self._two_stages(query[None], k, count, condition) for query in queries]
        return SearchResult([ids for ids, _ in found], torch.stack([values for _, values in found]))

    def _check(self, latent: Latent, k: int) -> None:
        if not isinstance(latent, Latent):
            raise IncompatibleLatentError(
                f"Expected iwm.Latent, got {type(latent).__name__}; write model.encode(image)."
            )
        self._store.check_space(latent.space)
        if latent.grid != self.grid:
            raise IncompatibleLatentError(
                f"The library holds latents of grid {self.grid}, the query's is {latent.grid}; "
                "encode images of one size."
            )
        require_count("k", k)

    def _two_stages(
        self, query: Tensor, k: int, count: int, condition: str | None
    ) -> tuple[list[Id], Tensor]:
        rows = self._store.nearest(sketch(query)[0].numpy(), count, condition)
        order = distances(query, self._tokens(rows["tokens"].combine_chunks()))[0].topk(k, largest=False)
        paths = rows["path"].to_pylist()
        return [paths[i] for i in order.indices.tolist()], order.values

    def _scan(self, queries: Tensor, k: int, condition: str | None) -> SearchResult:
        """Every row, a piece at a time, keeping the nearest so far."""
        paths: list[list[Id]] = [[] for _ in queries]
        values = torch.empty(len(queries), 0)
        for batch in self._store.scan(("path", "tokens"), _SCAN_ROWS, condition):
            values = torch.cat([values, distances(queries, self._tokens(batch["tokens"]))], dim=1)
            order = values.topk(min(k, values.shape[1]), largest=False)
            names = batch["path"].to_pylist()
            paths = [
                [(kept + names)[i] for i in row]
                for kept, row in zip(paths, order.indices.tolist(), strict=True)
            ]
            values = order.values
        return SearchResult(paths, values)

    def _tokens(self, column: pa.FixedSizeListArray) -> Tensor:
        about = self._store.about
        flat = torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).copy())
        return flat.view(len(column), about.grid[0] * about.grid[1], about.width)


def _paths(ids: Ids) -> list[str]:
    """As the library has them."""
    return [library_path(path) for path in _listed(ids)]


def _listed(paths: Any) -> list[Any]:
    """One path or several, as a list; `library_path` says what of it is no path."""
    one = isinstance(paths, str | bytes | os.PathLike) or not isinstance(paths, Iterable)
    return [paths] if one else list(paths)


def _condition(where: Filter | None) -> str | None:
    if where is not None and not isinstance(where, Filter):
        raise InvalidConfigError(
            f"where is {quoted(repr(where))}; pass a filter, such as iwm.index.Filter(under=FOLDER)."
        )
    return where.sql() if where else None


def check_engine(name: str) -> None:
    """Raise `InvalidConfigError` unless there is such an engine."""
    if name not in _ENGINES:
        raise InvalidConfigError(f'No engine is called "{name}".{nearest(name, _ENGINES)}')


def _engine(name: str, model: WorldModel, workers: int) -> Engine:
    if name == "local":
        return lambda jobs: local_engine(model, jobs)
    if not model.differentiable:
        raise InvalidConfigError(
            'The engine "ray" sends PyTorch models to its workers; use the model this was made from, or '
            'the engine "local".'
        )
    from iwm.index.ray_engine import ray_engine

    return lambda jobs: ray_engine(model, jobs, workers)
