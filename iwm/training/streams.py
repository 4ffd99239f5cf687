"""Images from tar shards or a dataset of the Hub, streamed, in an order that replays exactly.

Hugging Face `datasets` reads the shards, one after another, in an order drawn from (seed, epoch).
Rows are shuffled in blocks, each by a permutation drawn from (seed, epoch, block), and not through
a running buffer, whose content no checkpoint could keep: its own `shuffle` holds such a buffer and
loses a row at every resume. The state of a stream is the place of the block it is in:
a run resumes in the middle of a shard, on any number of processes, with nothing seen twice or
skipped. Every process reads all rows and decodes its own; where one of these cannot be read, also
the rows after it, so that the same crop takes its place on any number of processes.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from iwm.actions import SampleKey
from iwm.errors import InvalidConfigError, InvalidDataError, InvalidImageError
from iwm.training.config import RunConfig
from iwm.training.data import Batches, OddImages, cropped
from iwm.training.distributed import World

BLOCK = 1024
"""Rows that are shuffled together."""

AHEAD = 2
"""Batches that are read and decoded while one is trained."""

PATIENCE = 10
"""Blocks without one readable image after which a run gives up."""

_BLOCK_STREAM = 8
_SHARD_STREAM = 10
ResultT = TypeVar("ResultT")

Cell = dict[str, Any]
"""An undecoded image of `datasets`: `bytes`, or where those are None a `path` to fetch."""

Row = tuple[str, Cell]
"""Where the image is, for the log, and the image."""

Place = tuple[SampleKey, Row, dict[str, Any]]
"""A row of the stream, its key, and the state of the stream after it."""

Decoded = tuple[Tensor, bool] | None
"""A crop, and whether its image was smaller; None where it cannot be read."""

Coming = tuple[list[Place], dict[int, Future[Decoded]]]
"""A batch, and the rows of it that this process decodes."""


def is_stream(name: str) -> bool:
    """Whether `--data` names a stream: `hf:...`, or tar files."""
    return name.startswith("hf:") or name.endswith(".tar")


class StreamSource:
    """An endless stream of crops.

    Args:
        name: `hf:org/name[:split[:column]]` of the Hub, or a glob of tar shards in the
            WebDataset layout, as in `shards/*.tar`.
        size: side of the crops.
        config: supplies seed, batch size and crops.

    Attributes:
        files_sha256: of the names of its files, with their sizes (shards) or their commit (the Hub).

    Raises:
        InvalidDataError: no shards, or no column of images.
        InvalidConfigError: the `datasets` package is missing.
    """

    def __init__(self, name: str, size: int, config: RunConfig) -> None:
        self.size = size
        self.config = config
        self.unreadable = self.enlarged = 0
        self._odd = OddImages(config)
        self._data, self._column, self._shards, self.files_sha256 = _open_stream(name)
        self.listing = f"the stream {name} (files {self.files_sha256[:12]})"
        self._state: dict[str, Any] = {"epoch": 0, "block": 0, "offset": 0, "shards": None}

    def state(self) -> dict[str, Any]:
        """Where the batch that was yielded last ends."""
        return dict(self._state)

    def batches(self, first_step: int, world: World, state: dict[str, Any] | None) -> Batches:
        """One process's share of every batch from `first_step` on.

        Raises:
            InvalidDataError: the run was not begun on a stream, or no image can be read.
            InvalidImageError: one image cannot be read, and the run was asked to end there.
        """
        if first_step and not state:
            raise InvalidDataError("The checkpoint does not say where its stream was; begin another run.")
        rows = self._rows(state or self._state)
        share = self.config.batch_size // world.size
        mine = range(world.rank * share, (world.rank + 1) * share)
        # One thread reads, and so in order, batches ahead of the one that is trained.
        with closing(_Reader()) as reader, ThreadPoolExecutor(max(self.config.data.workers, 1)) as pool:
            ahead: deque[Future[Coming]] = deque()
            try:
                for step in range(first_step, self.config.steps):
                    for _ in range(min(AHEAD + 1, self.config.steps - step) - len(ahead)):
                        ahead.append(reader.submit(self._begin, rows, mine, pool))
                    places, futures = ahead.popleft().result()
                    decoded = {row: future.result() for row, future in futures.items()}
                    self.unreadable += sum(found is None for found in decoded.values())
                    self.enlarged += sum(found[1] for found in decoded.values() if found)
                    crops = torch.stack([self._crop_for(row, places, decoded, reader) for row in mine])
                    self._state = places[-1][2]
                    epochs, indices = torch.tensor([places[row][0] for row in mine]).unbind(1)
                    yield crops, epochs, indices
            finally:
                for coming in ahead:
                    coming.cancel()

    def _begin(self, rows: Iterator[Place], mine: range, pool: ThreadPoolExecutor) -> Coming:
        """Read a batch, and have this process's rows of it decoded."""
        batch = [next(rows) for _ in range(self.config.batch_size)]
        return batch, {row: pool.submit(self._decode, *batch[row][:2]) for row in mine}

    def _crop_for(self, row: int, batch: list[Place], decoded: dict[int, Decoded], reader: _Reader) -> Tensor:
        """The crop of a row of a batch; or of the next readable one, round its end, whoever's it is."""
        for place in (*range(row, len(batch)), *range(row)):
            if place not in decoded:
                decoded[place] = self._decode(*batch[place][:2])
            found = decoded[place]
            if found is not None:
                return found[0]
        decoded[row] = found = reader.submit(self._next_readable, batch[-1][2]).result()
        return found[0]

    def _next_readable(self, state: dict[str, Any]) -> tuple[Tensor, bool]:
        """The next crop after a batch of which no image can be read."""
        for key, row, _ in itertools.islice(self._rows(state), PATIENCE * BLOCK):
            found = self._decode(key, row)
            if found is not None:
                return found
        raise InvalidDataError(
            f"None of {PATIENCE * BLOCK:,} successive images of {self.listing} can be read; see the warnings above."
        )

    def _rows(self, state: dict[str, Any]) -> Iterator[Place]:
        """Rows for ever: key, row, and the state after it."""
        epoch, block, offset, shards = (state[k] for k in ("epoch", "block", "offset", "shards"))
        while True:
            empty = True
            for rows, following in self._blocks(epoch, shards):
                empty = False
                rng = np.random.default_rng((self.config.seed, epoch, block, _BLOCK_STREAM))
                order = rng.permutation(len(rows))
                for place in range(offset, len(rows)):
                    key = (epoch, block * BLOCK + int(order[place]))
                    here = {"epoch": epoch, "block": block, "offset": place + 1, "shards": shards}
                    yield key, rows[order[place]], here
                block, offset, shards = block + 1, 0, following
            if empty and block == 0:
                raise InvalidDataError(f"{self.listing} is empty.")
            epoch, block, offset, shards = epoch + 1, 0, 0, None

    def _blocks(self, epoch: int, state: dict[str, Any] | None) -> Iterator[tuple[list[Row], dict[str, Any]]]:
        """An epoch's rows in blocks, each with the state in which the next one begins."""
        rng = np.random.default_rng((self.config.seed, epoch, 0, _SHARD_STREAM))
        order = rng.permutation(self._data.num_shards)
        done, within, first = (state["done"], state["within"], state.get("row", 0)) if state else (0, None, 0)
        rows: list[Row] = []
        while done < len(order):
            index = int(order[done])
            shard = self._data.shard(num_shards=len(order), index=index)
            if within is not None:
                shard.load_state_dict(within)
            try:
                for number, row in enumerate(shard, start=first):
                    cell = row[self._column] or {"bytes": b"", "path": None}
                    rows.append((f"{cell['path'] or f'row {number}'} of {self._shards[index]}", cell))
                    if len(rows) == BLOCK:
                        yield rows, {"done": done, "within": shard.state_dict(), "row": number + 1}
                        rows = []
            except Exception as error:  # The network and every format have their own.
                raise InvalidDataError(
                    f"{self.listing} breaks off: {type(error).__name__}: {error}. Where that can be "
                    "mended, the same command goes on from the last checkpoint."
                ) from error
            done, within, first = done + 1, None, 0
        if rows:
            yield rows, {"done": done, "within": None, "row": 0}

    def _decode(self, key: SampleKey, row: Row) -> Decoded:
        name, cell = row
        try:
            content = _fetched(cell["path"]) if cell["bytes"] is None else cell["bytes"]
            crop, small = cropped(content, key, self.size, self.config, name)
        except InvalidImageError as error:
            self._odd.refuse(str(error))
            return None
        if small:
            self._odd.enlarge(small)
        return crop, bool(small)


class _Reader:
    """One thread that does what it is given, in order. A pool's would be waited for, however long its storage stalls."""

    def __init__(self) -> None:
        self._given: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def submit(self, call: Callable[..., ResultT], *arguments: Any) -> Future[ResultT]:
        """What the call will give."""
        future: Future[ResultT] = Future()
        self._given.put((future, partial(call, *arguments)))
        return future

    def close(self) -> None:
        """It ends after what it is doing."""
        self._given.put(None)

    def _work(self) -> None:
        for future, call in iter(self._given.get, None):
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)


def _fetched(path: str) -> bytes:
    """An image that a dataset lists without its content, as folders of images on the Hub do."""
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            content: bytes = file.read()
    except FileNotFoundError as error:
        raise InvalidImageError(f"No such image file: {path}") from error
    except Exception as error:  # The network and every file system have their own.
        raise InvalidDataError(f"Cannot fetch {path}: {type(error).__name__}: {error}") from error
    return content


def _open_stream(name: str) -> tuple[Any, str, list[str], str]:
    """A streaming dataset of undecoded images, their column, what to call each shard, its files' hash."""
    repo, split, column = _hub_name(name) if name.startswith("hf:") else ("", "", "")
    files: list[str] = []
    known: dict[str, Any]
    try:
        import datasets
    except ImportError as error:
        raise InvalidConfigError(
            f"Streams need the package datasets: pip install 'iwm[train]' ({error})"
        ) from error
    try:
        if name.startswith("hf:"):
            builder = datasets.load_dataset_builder(repo)
            data = builder.as_streaming_dataset(split=split or "train")
            known = {
                str(part): (list(map(str, found)), getattr(found, "origin_metadata", None))
                for part, found in (builder.config.data_files or {}).items()
            }
        else:
            files = sorted(glob.glob(os.path.expanduser(name)))
            if not files:
                raise InvalidDataError(f"No tar shards match {name}.")
            known = {os.path.basename(file): os.path.getsize(file) for file in files}
            data = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True)
        features = data.features or data._resolve_features().features
    except InvalidDataError:
        raise
    except Exception as error:  # The network, the Hub and every format have their own.
        raise InvalidDataError(f"Cannot stream {name}: {type(error).__name__}: {error}") from error
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    if column and column not in images:
        raise InvalidDataError(f'{name} has no column of images called "{column}"; it has {images}.')
    if not images:
        raise InvalidDataError(f"{name} has no column of images; its columns are {sorted(features)}.")
    column = column or images[0]
    undecoded = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    shards = files or [f"shard {i} of the stream {name}" for i in range(data.num_shards)]
    return undecoded, column, shards, hashlib.sha256(repr(sorted(known.items())).encode()).hexdigest()


def _hub_name(name: str) -> list[str]:
    """Repository, split and column of `hf:repository[:split[:column]]`; what is not given is empty.

    Raises:
        InvalidDataError: no repository, or more parts.
    """
    parts = name.removeprefix("hf:").split(":")
    if not parts[0] or len(parts) > 3:
        raise InvalidDataError(
            f"{name} names no dataset of the Hub; write hf:org/name, hf:org/name:split or "
            "hf:org/name:split:column."
        )
    return parts + [""] * (3 - len(parts))
