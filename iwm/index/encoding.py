"""From files to rows: what every engine does with a batch of photographs, wherever it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from iwm.errors import InvalidImageError
from iwm.images import Preprocess, in_threads
from iwm.index.photo import Photo, content_hash, read_bytes, read_photo
from iwm.index.report import Remark
from iwm.index.sketch import sketch
from iwm.index.walk import Found

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from iwm.world_model import WorldModel


@dataclass(frozen=True)
class Job:
    """A file to encode.

    Attributes:
        found: the file.
        hash: of the bytes that the library knows; None where it does not know the file.
    """

    found: Found
    hash: str | None = None


@dataclass(kw_only=True)
class Readings:
    """A batch of files, read.

    Attributes:
        photos: what has to be encoded, with pixels.
        known: for each, whether it takes the place of a row.
        same: files that were touched and hold the bytes they held before.
        skipped: what cannot be read.
    """

    photos: list[Photo] = field(default_factory=list)
    known: list[bool] = field(default_factory=list)
    same: list[Found] = field(default_factory=list)
    skipped: list[Remark] = field(default_factory=list)


@dataclass(kw_only=True)
class Encoded:
    """A batch of files, encoded.

    Attributes:
        photos: without pixels.
        known: for each, whether it takes the place of a row.
        tokens: `[B, N * D]` float16.
        sketches: `[B, SKETCH]` float16.
        same: as in `Readings`.
        skipped: as in `Readings`.
    """

    photos: list[Photo]
    known: list[bool]
    tokens: np.ndarray[Any, Any]
    sketches: np.ndarray[Any, Any]
    same: list[Found]
    skipped: list[Remark]


def read_jobs(jobs: Sequence[Job], preprocess: Preprocess) -> Readings:
    """Read files; what cannot be read is listed with its reason."""

    def read(job: Job) -> Photo | Remark | None:
        """None is the same as before."""
        try:
            data = read_bytes(job.found)
            if job.hash is not None and content_hash(data) == job.hash:
                return None
            return read_photo(job.found, data, preprocess)
        except InvalidImageError as error:
            return Remark(job.found.path, str(error))

    readings = Readings()
    for job, photo in zip(jobs, in_threads(read, jobs), strict=True):
        if photo is None:
            readings.same.append(job.found)
        elif isinstance(photo, Remark):
            readings.skipped.append(photo)
        else:
            readings.photos.append(photo)
            readings.known.append(job.hash is not None)
    return readings


def encode(model: WorldModel, readings: Readings) -> Encoded:
    """Encode what was read, as `WorldModel.encode` does."""
    count = len(readings.photos)
    if count:
        tokens = model.encode(
            [photo.pixels for photo in readings.photos if photo.pixels is not None], count
        ).tokens
    else:
        tokens = torch.zeros(0, *grid_and_width(model))
    return Encoded(
        photos=[replace(photo, pixels=None) for photo in readings.photos],
        known=readings.known,
        tokens=tokens.flatten(1).to("cpu", torch.float16).numpy(),
        sketches=sketch(tokens).to("cpu", torch.float16).numpy(),
        same=readings.same,
        skipped=readings.skipped,
    )


def grid_and_width(model: WorldModel) -> tuple[int, int]:
    """N and D of a model's latents."""
    side = model.preprocess.size // model.config.encoder.patch_size
    return side * side, model.config.encoder.width


def to_rows(parts: Sequence[tuple[Encoded, list[int]]], columns: pa.Schema) -> pa.Table:
    """Rows of a library.

    Args:
        parts: batches, and which of their photographs to take.
        columns: the library's schema.
    """
    import pyarrow as pa

    def lists(array: np.ndarray[Any, Any]) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])

    batches = []
    for encoded, chosen in parts:
        photos = [encoded.photos[i] for i in chosen]
        plain = {
            "path": [p.found.path for p in photos],
            "bytes": [p.found.bytes for p in photos],
            "mtime_ns": [p.found.mtime_ns for p in photos],
            "hash": [p.hash for p in photos],
            "width": [p.width for p in photos],
            "height": [p.height for p in photos],
            "taken": [p.taken for p in photos],
        }
        arrays = [pa.array(values, columns.field(name).type) for name, values in plain.items()]
        arrays += [lists(encoded.sketches[chosen]), lists(encoded.tokens[chosen])]
        batches.append(pa.record_batch(arrays, schema=columns))
    return pa.Table.from_batches(batches, schema=columns)


def local_engine(model: WorldModel, jobs: Iterator[list[Job]]) -> Iterator[Encoded]:
    """Encode batches in this process; the next one is read while the model works on this."""
    with ThreadPoolExecutor(1, thread_name_prefix="iwm-read") as reader:
        coming: Future[Readings] | None = None
        for batch in jobs:
            previous, coming = coming, reader.submit(read_jobs, batch, model.preprocess)
            if previous:
                yield encode(model, previous.result())
        if coming:
            yield encode(model, coming.result())
