"""Labelled images as batches of the training loop, in an order that replays exactly.

A batch is (pixels, epochs, indices), as the loop takes it. Indices count over the images of all
tasks, one task after another, and say what the label is. The rows of a batch belong to the tasks
in turn, so that any even share of a batch is split evenly between them [section 5.2].
Segmentation puts the mask's classes behind the three colours, as a fourth channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from iwm.actions import SampleKey
from iwm.config import PreprocessConfig
from iwm.errors import InvalidConfigError, InvalidDataError, InvalidImageError
from iwm.evaluation.labelled import IGNORED, read_mask
from iwm.finetuning.augment import augment_image, rand_augment
from iwm.finetuning.config import FinetuneConfig
from iwm.finetuning.folders import Split, TaskData
from iwm.images import Preprocess, to_pil
from iwm.opening import open_rgb
from iwm.training.data import Batches, StepSampler, as_bytes, cropped_image, read_ahead
from iwm.training.distributed import World
from iwm.training.signals import outlive_first_signal
from iwm.training.workers import batches_of

_SCALE_STREAM = 14
SCALES = (0.5, 2.0)
"""Range of the random scale of segmentation, as in MMSegmentation's ADE20k setting."""

Sample = tuple[Tensor, Tensor, Tensor]


class CropDataset(Dataset[Sample]):
    """Views `[3, S, S]` uint8 of labelled photographs: crops, flips, RandAugment.

    Every view is a function of (seed, epoch, index).

    Args:
        paths: image files.
        preprocess: supplies the size, and the centre crop.
        config: supplies the seed and the augmentation.
    """

    def __init__(self, paths: Sequence[Any], preprocess: PreprocessConfig, config: FinetuneConfig) -> None:
        self.paths = paths
        self.preprocess = Preprocess(preprocess)
        self.config = config
        text = config.augment.rand_augment
        self.augment: Callable[[Image.Image], Image.Image] | None = (
            rand_augment(text, preprocess.size, preprocess) if text else None
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: SampleKey) -> Sample:
        epoch, index = key
        path, config = self.paths[index], self.config
        try:
            if config.centre:
                image = to_pil(self.preprocess.one(path))  # Bytes again, exactly.
            else:
                image = cropped_image(path, key, self.preprocess.size, config)
        except InvalidImageError as error:  # It could be read when the run began.
            raise InvalidDataError(f"{str(error).rstrip('.')}. Mend it; the same command goes on.") from error
        if self.augment is not None:
            image = augment_image(image, self.augment, config.seed, key)
        return as_bytes(image), torch.tensor(epoch), torch.tensor(index)


class SegmentationDataset(Dataset[Sample]):
    """Images and their masks, `[4, S, S]` uint8: random scale, crop and flip of both.

    Args:
        split: images and masks.
        size: side of the crops.
        config: supplies the seed.
    """

    def __init__(self, split: Split, size: int, config: FinetuneConfig) -> None:
        self.split = split
        self.size = size
        self.config = config

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: SampleKey) -> Sample:
        epoch, index = key
        try:
            image = open_rgb(self.split.images[index])
            mask = read_mask(self.split.masks[index], self.split.numbers, image.size)
        except InvalidImageError as error:
            raise InvalidDataError(f"{str(error).rstrip('.')}. Mend it; the same command goes on.") from error
        rng = np.random.default_rng((self.config.seed, *key, _SCALE_STREAM))
        pixels = joint_crop(image, mask, self.size, rng, self.config.data.flip)
        return pixels, torch.tensor(epoch), torch.tensor(index)


def joint_crop(
    image: Image.Image, mask: Image.Image, size: int, rng: np.random.Generator, flip: float
) -> Tensor:
    """An image and its mask at one random scale, cropped and flipped alike, `[4, size, size]` uint8.

    At scale 1 the shorter side is `size` pixels. What a small scale leaves free is black and
    does not count.
    """
    low, high = SCALES
    scale = size * rng.uniform(low, high) / min(image.size)
    width, height = (max(round(side * scale), 1) for side in image.size)
    pixels = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    classes = np.array(mask.resize((width, height), Image.Resampling.NEAREST))
    both = np.concatenate((pixels, classes[..., None]), axis=2)
    room_down, room_right = max(size - height, 0), max(size - width, 0)
    if room_down or room_right:
        empty = np.zeros((height + room_down, width + room_right, 4), dtype=np.uint8)
        empty[..., 3] = IGNORED
        top, left = rng.integers(room_down + 1), rng.integers(room_right + 1)
        empty[top : top + height, left : left + width] = both
        both = empty
    top, left = rng.integers(both.shape[0] - size + 1), rng.integers(both.shape[1] - size + 1)
    both = both[top : top + size, left : left + size]
    if rng.random() < flip:
        both = both[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(both)).permute(2, 0, 1)


class SplitSampler(Sampler[list[SampleKey]]):
    """One process's keys of every batch, split evenly between tasks.

    Each task goes through its own images epoch by epoch, as `StepSampler` does.

    Args:
        lengths: images of every task.
        config: supplies seed, batch size and steps.
        first_step: where to go on.
        rank, size: the process, of how many.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        config: FinetuneConfig,
        first_step: int = 0,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        part = config.replace(batch_size=config.batch_size // len(lengths), accumulate=1)
        self.samplers = [StepSampler(length, part, first_step, rank, size) for length in lengths]
        self.offsets = [sum(lengths[:i]) for i in range(len(lengths))]

    def __len__(self) -> int:
        return len(self.samplers[0])

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for parts in zip(*self.samplers, strict=True):
            yield [
                (epoch, offset + index)
                for row in zip(*parts, strict=True)
                for offset, (epoch, index) in zip(self.offsets, row, strict=True)
            ]


@contextmanager
def without_traceback() -> Iterator[None]:
    """What a `DataLoader`'s worker says of bad data, in its own words; the loader adds where that was raised.

    Raises:
        InvalidDataError: one was raised in the block.
    """
    try:
        yield
    except InvalidDataError as error:
        said = str(error).rpartition(f"{InvalidDataError.__name__}: ")[2].strip()
        raise InvalidDataError(said) from error


class TaskSource:
    """The batches of one or several tasks.

    Args:
        dataset: all images, one task after another.
        lengths: images of every task.
        config: see `FinetuneConfig`.
        listing: names the images.
    """

    def __init__(
        self, dataset: Dataset[Sample], lengths: Sequence[int], config: FinetuneConfig, listing: str
    ) -> None:
        self.dataset = dataset
        self.lengths = lengths
        self.config = config
        self.listing = listing
        self.unreadable = self.enlarged = 0  # All were read before the run began.

    def batches(self, first_step: int, world: World, state: dict[str, Any] | None = None) -> Batches:
        """See `iwm.training.data.Source`.

        Raises:
            InvalidDataError: an image, or a mask, cannot be read any more.
        """
        workers, ahead = read_ahead(self.config.data.workers, self.config.batch_size // world.size)
        loader = DataLoader(
            self.dataset,
            batch_sampler=SplitSampler(self.lengths, self.config, first_step, world.rank, world.size),
            num_workers=workers,
            prefetch_factor=ahead,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=outlive_first_signal,
        )
        with without_traceback():
            yield from batches_of(loader)

    def state(self) -> None:
        """Nothing: the order is a function of (seed, step)."""


def check_shares(config: FinetuneConfig, tasks: int, processes: int) -> None:
    """Raise `InvalidConfigError` where a batch cannot be split evenly between tasks, processes and pieces."""
    multiple = tasks * processes * config.accumulate
    if config.batch_size % multiple:
        parts = (
            (tasks, f"between {tasks} tasks"),
            (processes, f"over {processes} processes"),
            (config.accumulate, f"into {config.accumulate} pieces"),
        )
        said = ", ".join(words for count, words in parts if count > 1)
        raise InvalidConfigError(
            f"batch_size {config.batch_size} cannot be split evenly {said}; use a multiple of {multiple}."
        )
    if config.augment.mixes and config.batch_size // multiple % 2:
        raise InvalidConfigError(
            f"Images are mixed in pairs within a task; use a batch_size that is a multiple of {2 * multiple}."
        )
    if config.batch_size < 2 * multiple and (config.batch_norm or config.head == "upernet"):
        raise InvalidConfigError(
            f"Batch norms need 2 images of a task at a time; use batch_size {2 * multiple} at least."
        )


def training_set(
    tasks: Sequence[TaskData], preprocess: PreprocessConfig, config: FinetuneConfig
) -> Dataset[Sample]:
    """The training images of all tasks."""
    if config.task == "segmentation":
        return SegmentationDataset(tasks[0].train, preprocess.size, config)
    return CropDataset([path for task in tasks for path in task.train.images], preprocess, config)
