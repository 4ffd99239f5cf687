"""Latents of a frozen encoder, computed once and kept on disk.

A file holds the tokens `[views x images, N, D]` float16 of every view of every image. Its name
is a hash of all that they depend on: the encoder (`WorldModel.space`), the files and their sizes
and times, the crops, the seed. So a file either is what is asked for or has another name; it is
written whole or not at all. One that was damaged since is made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from iwm.actions import SampleKey
from iwm.display import track
from iwm.errors import TrainingError
from iwm.evaluation.marginal import marginalised
from iwm.fields import to_json
from iwm.files import atomic_write
from iwm.finetuning.augment import photometric
from iwm.finetuning.config import FinetuneConfig
from iwm.finetuning.datasets import CropDataset, Sample, without_traceback
from iwm.training.execution import autocast, precision_on
from iwm.training.workers import batches_of, death_of_a_worker, what_ended
from iwm.world_model import WorldModel

_BATCH = 64

log = logging.getLogger(__name__)


class LatentDataset(Dataset[Sample]):
    """Cached tokens `[N, D]` float16 by (epoch, index); epoch e takes view e modulo the views.

    Args:
        path: of the cache file.
        images: how many there are; the file holds a whole number of views of each.
    """

    def __init__(self, path: Path, images: int) -> None:
        self.tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        self.images = images
        self.views = len(self.tokens) // images

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, key: SampleKey) -> Sample:
        epoch, index = key
        row = (epoch % self.views) * self.images + index
        return torch.from_numpy(self.tokens[row].copy()), torch.tensor(epoch), torch.tensor(index)


def cached_latents(
    model: WorldModel, paths: Sequence[Path], config: FinetuneConfig, folder: Path, marginalise: int = 0
) -> Path:
    """The file that holds the latents of all views of some images; made if it is not there.

    View v of image i is what an uncached run would train on with the key (v, i).

    Args:
        model: whose encoder encodes, on its own device.
        paths: images.
        config: supplies crops, augmentation, seed, precision and the number of views.
        folder: of the cache.
        marginalise: keep averages of so many predictions, see `iwm.evaluation.marginal`; 0 keeps
            the encodings.

    Raises:
        SaveError: the disk is full.
        InvalidDataError: an image cannot be read.
        TrainingError: a process that reads images was killed.
    """
    path = folder / f"latents-{_fingerprint(model, paths, config, marginalise)}.npy"
    views, count = max(config.cache_views, 1), len(paths)
    keys = [(view, index) for view in range(views) for index in range(count)]
    device = model.device
    side = model.preprocess.size // model.config.encoder.patch_size
    shape = (len(keys), side * side, model.config.encoder.width)
    if path.is_file():
        if _holds(path, shape):
            return path
        log.warning("%s is damaged; its latents are computed anew", path)
    with _saying_what_killed_a_worker(), atomic_write(path) as temporary, without_traceback():
        tokens = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
        _take_room(temporary)
        dataset = CropDataset(paths, model.config.preprocess, config)
        batches = [keys[i : i + _BATCH] for i in range(0, len(keys), _BATCH)]
        loader = DataLoader(dataset, batch_sampler=batches, num_workers=config.data.workers)
        done = 0
        for crops, epochs, indices in track(batches_of(loader), "encoding once", len(batches)):
            batch = list(zip(epochs.tolist(), indices.tolist(), strict=True))
            encoded = encode_views(model, crops.to(device), batch, config)
            if marginalise:
                numbers = [epoch * count + index for epoch, index in batch]
                encoded = marginalised(model, encoded.float(), marginalise, config.seed, numbers)
            tokens[done : done + len(batch)] = encoded.to("cpu", torch.float16).numpy()
            done += len(batch)
        tokens.flush()
        del tokens
    log.info("kept the latents of %d views in %s", len(keys), path)
    return path


@contextmanager
def _saying_what_killed_a_worker() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if (death := death_of_a_worker(error)) is None:
            raise
        raise TrainingError(f"{what_ended(death)} The same command encodes the images anew.") from error


def _take_room(path: Path) -> None:
    """Have the disk keep all that a new file is said to hold.

    It is sparse: writing into its map on a full disk would kill the process.

    Raises:
        OSError: there is not enough room.
    """
    if not hasattr(os, "posix_fallocate"):  # As on macOS and Windows.
        return
    with path.open("rb+") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # Some file systems cannot promise.
                raise


def _holds(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a file is a whole array of such a shape."""
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):  # No array, or fewer bytes than it says.
        return False
    return isinstance(tokens, np.ndarray) and tokens.shape == shape and tokens.dtype == np.float16


@torch.no_grad()
def encode_views(
    model: WorldModel, crops: Tensor, keys: Sequence[SampleKey], config: FinetuneConfig
) -> Tensor:
    """Tokens `[B, N, D]` of crops `[B, 3, S, S]` uint8, as training would encode them."""
    pixels = crops.float() / 255.0
    if config.augment.photometry:
        pixels = photometric(pixels, model.config.actions.distribution, config.seed, keys)
    with autocast(crops.device, config.precision):
        tokens: Tensor = model.encoder(pixels)
    return tokens


def _fingerprint(model: WorldModel, paths: Sequence[Path], config: FinetuneConfig, marginalise: int) -> str:
    data: dict[str, Any] = json.loads(to_json(config.data))
    del data["workers"]
    drawn = bool(marginalise or config.augment.rand_augment or config.augment.photometry)
    depends_on = {
        "space": model.space,
        "preprocess": json.loads(to_json(model.config.preprocess)),
        "distribution": json.loads(to_json(model.config.actions.distribution)),
        "data": {} if config.centre else data,
        "augment": [config.augment.rand_augment, config.augment.photometry],
        "centre": config.centre,
        "views": max(config.cache_views, 1),
        "seed": config.seed if drawn or not config.centre else None,
        "marginalise": [marginalise, predictor_state(model)] if marginalise else [],
        "precision": precision_on(model.device, config.precision),
        "files": [[str(p.absolute()), (s := p.stat()).st_size, s.st_mtime_ns] for p in paths],
    }
    return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]


def predictor_state(model: WorldModel) -> str:
    """Fingerprint of the world model, which `space` is not about."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.predictor.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
