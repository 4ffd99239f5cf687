"""Images from a folder to uint8 crops, in an order that replays exactly.

A step's samples are a function of (seed, step) alone: position p = step * batch_size + i of an
endless stream falls in epoch p // n, whose order is a permutation drawn from (seed, epoch). So
a run resumes mid-epoch with nothing seen twice or skipped. The loader only decodes and crops
[arXiv 2403.00504, App. A.1: random crop, horizontal flip]; pixels are changed later, in batch.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from iwm.actions import SampleKey
from iwm.errors import InvalidDataError, InvalidImageError
from iwm.opening import open_rgb
from iwm.training.config import RunConfig
from iwm.training.distributed import World
from iwm.training.signals import outlive_first_signal
from iwm.training.workers import batches_of

_CROP_STREAM = 1
_ORDER_STREAM = 6

_NAMED = 10
"""Small images that are named."""

READ_AHEAD = 2**15
"""Images that a process's workers have ready or in hand at most, where a batch is no larger: 5 GB at 224 px."""

log = logging.getLogger(__name__)


Batch = tuple[Tensor, Tensor, Tensor]
"""Crops `[B, 3, S, S]` uint8, epochs `[B]`, indices `[B]`."""

Batches = Generator[Batch, None, None]

Sample = tuple[Tensor, SampleKey, list[str], str]
"""A crop, its key, what was wrong with the images whose place it takes, and what is said of a small one."""


class Source(Protocol):
    """Where a run's images come from."""

    listing: str
    """Names the images, so that a run is not continued on others."""

    unreadable: int
    """Draws of this process, so far, whose image could not be read."""

    enlarged: int
    """Draws of this process, so far, whose image was smaller than its crop."""

    def batches(self, first_step: int, world: World, state: dict[str, Any] | None) -> Batches:
        """One process's share of every batch, from `first_step` to the last; closing it ends its workers."""

    def state(self) -> dict[str, Any] | None:
        """What `batches` needs to go on after the batch it gave last; None is nothing."""


class FolderSource:
    """Image files on a disk; nothing has to be remembered to go on."""

    def __init__(self, paths: Sequence[Path], size: int, config: RunConfig, listing: str = "") -> None:
        self.paths = PathArray(paths)
        self.size = size
        self.config = config
        self.listing = listing
        self.unreadable = self.enlarged = 0
        self._odd = OddImages(config)

    def batches(self, first_step: int, world: World, state: dict[str, Any] | None = None) -> Batches:
        """See `Source`.

        Raises:
            InvalidImageError: one image cannot be read, and the run was asked to end there.
            InvalidDataError: not one can be read.
        """
        try:
            loader = make_loader(self.paths, self.size, self.config, first_step, world)
            for crops, keys, problems, small in batches_of(loader):
                for problem in itertools.chain.from_iterable(problems):
                    self._odd.refuse(problem)
                for said in filter(None, small):
                    self._odd.enlarge(said)
                self.unreadable += sum(map(bool, problems))
                self.enlarged += sum(map(bool, small))
                yield crops, keys[:, 0], keys[:, 1]
        except InvalidDataError as error:  # Said by a worker, with its traceback in the words.
            raise InvalidDataError(
                f"None of the {len(self.paths)} images can be read any more. When they are back, the same "
                "command goes on."
            ) from error

    def state(self) -> None:
        """Nothing: the order is a function of (seed, step)."""


class PathArray(Sequence[Path]):
    """Paths, read-only, as two arrays: of a list, every worker of a loader comes to have a copy.

    Counting references writes to the pages of a list's objects, which processes share only until then.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        names = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([0, *map(len, names)])
        self._names = np.frombuffer(b"".join(names), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return Path(os.fsdecode(self._names[self._ends[place] : self._ends[place + 1]].tobytes()))


class OddImages:
    """Images that cannot be read, which may be the end of the run, and small ones: named in the log, each once."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._named: set[str] = set()
        self._small: set[str] = set()

    def refuse(self, problem: str) -> None:
        """Take note of one that cannot be read.

        Args:
            problem: names the image, and says what is wrong with it.

        Raises:
            InvalidImageError: `data.on_unreadable` is `fail`.
        """
        if self.config.data.on_unreadable == "fail":
            raise InvalidImageError(
                f"{problem.rstrip('.')}. Mend it, or let the next image take its place: --data.on_unreadable skip"
            )
        if problem not in self._named:
            self._named.add(problem)
            log.warning("skipped: %s", problem)

    def enlarge(self, said: str) -> None:
        """Take note of one that is smaller than its crop: of a whole set of them the first few are named."""
        if said not in self._small and len(self._small) < _NAMED:
            self._small.add(said)
            more = "; more of them are only counted" if len(self._small) == _NAMED else ""
            log.warning("enlarged: %s%s", said, more)


class CropDataset(Dataset[Sample]):
    """Random crops `[3, size, size]` uint8, each a function of (seed, epoch, index).

    The place of an unreadable file is taken by the next readable one.
    """

    def __init__(self, paths: Sequence[Path], size: int, config: RunConfig) -> None:
        self.paths = paths
        self.size = size
        self.config = config

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: SampleKey) -> Sample:
        problems: list[str] = []
        for offset in range(len(self.paths)):
            path = self.paths[(key[1] + offset) % len(self.paths)]
            try:
                crop, small = cropped(path, key, self.size, self.config)
                return crop, key, problems, small
            except InvalidImageError as error:
                problems.append(str(error))
        raise InvalidDataError("None of the images can be read.")


def cropped(
    image: Path | bytes, key: SampleKey, size: int, config: RunConfig, name: str = "image"
) -> tuple[Tensor, str]:
    """A random crop `[3, size, size]` uint8 of an image file, and what is said of one that is smaller than that.

    See `cropped_image`.
    """
    decoded = _decoded(image, size, config, name)
    width, height = decoded.size
    named = name if isinstance(image, bytes) else image
    small = (
        f"{named} has {width} x {height} pixels, less than crops of {size}"
        if min(width, height) < size
        else ""
    )
    return as_bytes(_crop(decoded, key, size, config)), small


def as_bytes(image: Image.Image) -> Tensor:
    """An RGB image as `[3, H, W]` uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def cropped_image(
    image: Path | bytes, key: SampleKey, size: int, config: RunConfig, name: str = "image"
) -> Image.Image:
    """A random crop of an image file, `size` pixels a side, flipped or not.

    A large JPEG is decoded at a half, quarter or eighth of its size, where the smallest crop
    still has all the pixels it needs. An image smaller than its crop is enlarged, were it one pixel.

    Raises:
        InvalidImageError: it cannot be read.
    """
    return _crop(_decoded(image, size, config, name), key, size, config)


def _decoded(image: Path | bytes, size: int, config: RunConfig, name: str) -> Image.Image:
    (low, _), (tall, wide) = config.data.crop_scale, config.data.crop_aspect
    return open_rgb(image, at_least=math.ceil(size * math.sqrt(max(wide, 1 / tall) / low)), name=name)


def _crop(decoded: Image.Image, key: SampleKey, size: int, config: RunConfig) -> Image.Image:
    rng = np.random.default_rng((config.seed, *key, _CROP_STREAM))
    box = random_crop(decoded.width, decoded.height, config, rng)
    crop = decoded.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if rng.random() < config.data.flip:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return crop


def check_readable(paths: list[Path]) -> None:
    """Raise `InvalidDataError` where not one image can be read: said here, not by a worker."""
    for path in paths:
        try:
            open_rgb(path)
        except InvalidImageError as error:
            log.warning("unreadable: %s", error)
        else:
            return
    raise InvalidDataError(f"None of the {len(paths)} images can be read; the first is {paths[0]}.")


def random_crop(
    width: int, height: int, config: RunConfig, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A random box (left, top, right, bottom) of the configured area and aspect that fits."""
    data = config.data
    for _ in range(10):
        area = rng.uniform(*data.crop_scale) * width * height
        aspect = math.exp(rng.uniform(*np.log(data.crop_aspect)))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


class StepSampler(Sampler[list[SampleKey]]):
    """Batches of sample keys from `first_step` to the last; of each, the rows of one process."""

    def __init__(
        self, length: int, config: RunConfig, first_step: int = 0, rank: int = 0, size: int = 1
    ) -> None:
        self.length = length
        self.config = config
        self.first_step = first_step
        rows = config.batch_size // size
        self.rows = range(rank * rows, (rank + 1) * rows)

    def __len__(self) -> int:
        return self.config.steps - self.first_step

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        size = self.config.batch_size
        for step in range(self.first_step, self.config.steps):
            batch = []
            for row in self.rows:
                position = step * size + row
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = np.random.default_rng((self.config.seed, epoch, 0, _ORDER_STREAM)).permutation(
                        self.length
                    )
                batch.append((epoch, int(order[position % self.length])))
            yield batch


def read_ahead(workers: int, rows: int) -> tuple[int, int | None]:
    """How far a loader reads ahead: four batches a worker, as long as these are `READ_AHEAD` images at most.

    A worker holds one whole batch at least, so of large ones fewer are read at a time.

    Args:
        workers: that were asked for.
        rows: images of a batch, of this process.

    Returns:
        Workers to start, and the batches that each prepares; None without workers.

    >>> read_ahead(8, 1024), read_ahead(8, 4096), read_ahead(8, 16_384)
    ((8, 4), (8, 1), (2, 1))
    """
    batches = max(READ_AHEAD // rows, 1)
    started = min(workers, batches)
    return started, min(batches // started, 4) if started else None


def make_loader(
    paths: Sequence[Path], size: int, config: RunConfig, first_step: int = 0, world: World | None = None
) -> DataLoader[Sample]:
    """Loader from `first_step` on of crops `[B, 3, size, size]` uint8, keys `[B, 2]`, and what `Sample` has of each.

    B is one process's share of the batch.
    """
    dataset = CropDataset(paths, size, config)
    rank, processes = (world.rank, world.size) if world else (0, 1)
    workers, batches = read_ahead(config.data.workers, config.batch_size // processes)
    return DataLoader(
        dataset,
        batch_sampler=StepSampler(len(paths), config, first_step, rank, processes),
        collate_fn=_collate,
        num_workers=workers,
        prefetch_factor=batches,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=outlive_first_signal,
    )


def _collate(samples: list[Sample]) -> tuple[Tensor, Tensor, list[list[str]], list[str]]:
    crops, keys, problems, small = zip(*samples, strict=True)
    return torch.stack(crops), torch.tensor(keys), list(problems), list(small)
