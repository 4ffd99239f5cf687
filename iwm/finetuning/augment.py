"""Augmentations of finetuning [arXiv 2403.00504, App. A.2], all of them timm's.

timm draws from the global generators of Python, NumPy and torch. Here they are seeded for the
duration of a call and put back afterwards: the draws of one image are a function of (seed,
epoch, index), those of a batch of (seed, step, its first sample). A run that was stopped goes
on with the same draws, on the same number of processes and pieces.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from iwm.actions import SampleKey, draw_photometry
from iwm.config import PhotometryDistribution, PreprocessConfig
from iwm.errors import InvalidConfigError
from iwm.photometry import transform

if TYPE_CHECKING:
    from iwm.finetuning.config import AugmentConfig

_IMAGE_STREAM = 11
_BATCH_STREAM = 12
_PHOTOMETRY_STREAM = 13


@contextmanager
def seeded(*numbers: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global generators by some numbers, and put them back after.

    Args:
        numbers: the same ones give the same draws.
        device: whose torch generator is seeded beside the CPU's.
    """
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "little") >> 1
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device] if device is not None and device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed every GPU.
            for each in devices:
                with torch.cuda.device(each):
                    torch.cuda.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def rand_augment(text: str, size: int, preprocess: PreprocessConfig) -> Callable[[Image.Image], Image.Image]:
    """Timm's RandAugment of a string such as `rand-m9-mstd0.5-inc1`.

    Args:
        text: timm's notation.
        size: side of the images; bounds translations, as in timm's own loader.
        preprocess: whose channel means fill what a translation leaves empty.

    Raises:
        InvalidConfigError: not timm's notation.
    """
    from timm.data.auto_augment import rand_augment_transform

    fill = tuple(min(255, round(255 * mean)) for mean in preprocess.mean)
    hparams: dict[str, Any] = {
        "translate_const": int(size * 0.45),
        "img_mean": fill,
        "interpolation": Image.Resampling.BICUBIC,
    }
    try:
        augment: Callable[[Image.Image], Image.Image] = rand_augment_transform(text, hparams)
    except (AssertionError, ValueError, KeyError) as error:
        raise InvalidConfigError(
            f'augment.rand_augment is "{text}", which timm cannot read; write "rand-m9-mstd0.5-inc1".'
        ) from error
    return augment


def augment_image(
    image: Image.Image, augment: Callable[[Image.Image], Image.Image], seed: int, key: SampleKey
) -> Image.Image:
    """One image through RandAugment; every draw a function of the seed and its key."""
    with seeded(seed, *key, _IMAGE_STREAM):
        return augment(image)


def photometric(
    pixels: Tensor, distribution: PhotometryDistribution, seed: int, keys: Sequence[SampleKey]
) -> Tensor:
    """Pixels `[B, 3, H, W]` in [0, 1] as the source views of pretraining look [App. A.2, attentive]."""
    params = draw_photometry(distribution, seed=seed, keys=keys, stream=_PHOTOMETRY_STREAM)
    return transform(pixels, params)


class BatchAugment:
    """Random erasing, then mixup or cutmix, of a batch and its targets.

    Args:
        config: what to do, and how strongly.
        classes: number of classes.
        preprocess: pixels are erased by noise in the encoder's normalisation.
        seed: of the run.
    """

    def __init__(self, config: AugmentConfig, classes: int, preprocess: PreprocessConfig, seed: int) -> None:
        self.config = config
        self.classes = classes
        self.preprocess = preprocess
        self.seed = seed

    def __call__(
        self, pixels: Tensor, targets: Tensor, step: int, keys: Sequence[SampleKey]
    ) -> tuple[Tensor, Tensor]:
        """Augmented pixels and the probabilities to learn.

        Args:
            pixels: `[B, 3, H, W]` in [0, 1].
            targets: `[B]` class indices.
            step: of the run.
            keys: of the samples.

        Returns:
            Pixels, which erasing may leave outside [0, 1], and `[B, classes]`.
        """
        with seeded(self.seed, step, *keys[0], _BATCH_STREAM, device=pixels.device):
            if self.config.erasing:
                pixels = self._erase(pixels)
            if self.config.mixes:
                return self._mix(pixels, targets)
        return pixels, soft_targets(targets, self.classes, self.config.label_smoothing)

    def _erase(self, pixels: Tensor) -> Tensor:
        from timm.data.random_erasing import RandomErasing

        mean, std = (
            torch.tensor(v, device=pixels.device).view(1, 3, 1, 1)
            for v in (self.preprocess.mean, self.preprocess.std)
        )
        erase = RandomErasing(self.config.erasing, mode="pixel", device=str(pixels.device))  # type: ignore[no-untyped-call]
        erased: Tensor = erase((pixels - mean) / std)
        return erased * std + mean

    def _mix(self, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        from timm.data.mixup import Mixup

        mix = Mixup(  # type: ignore[no-untyped-call]
            mixup_alpha=self.config.mixup,
            cutmix_alpha=self.config.cutmix,
            label_smoothing=self.config.label_smoothing,
            num_classes=self.classes,
        )
        mixed: tuple[Tensor, Tensor] = mix(pixels.clone(), targets)
        return mixed


def soft_targets(targets: Tensor, classes: int, smoothing: float) -> Tensor:
    """Class indices `[B]` as probabilities `[B, classes]`, smoothed."""
    return F.one_hot(targets, classes).float() * (1.0 - smoothing) + smoothing / classes
