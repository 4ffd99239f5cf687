"""From whatever a user has to what the model reads, and back.

Accepted everywhere: a path, a PIL image, an HWC uint8 array, a `[3, H, W]` or `[B, 3, H, W]`
tensor (uint8, or float in [0, 1]), or a list of these. `iwm.opening` says what becomes of files.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from iwm.config import PreprocessConfig
from iwm.device import usable_cpus
from iwm.errors import InvalidDataError, InvalidImageError, UnreadableFolderWarning
from iwm.fields import require_count
from iwm.opening import KINDS_OF_IMAGES, ImageLike, open_rgb
from iwm.photometry import IDENTITY, transform

Images: TypeAlias = "ImageLike | Iterable[ImageLike]"

ImageT = TypeVar("ImageT")
ItemT = TypeVar("ItemT")
ReadT = TypeVar("ReadT")

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
"""Files that count as images when a folder is listed."""

_LONGEST = 4
"""A side of an uncropped image, over the model's size: attention grows with its fourth power."""

_READERS = 8
"""Threads at most that read image files."""
_DRAFT = 4
"""Pixels of a JPEG file's shorter side that are decoded, over those it is resized to: as good as all."""


class Preprocess:
    """Resize the shorter side, crop the centre: any image to `[3, size, size]` in [0, 1].

    A tensor whose sides already are the model's size passes as it is. Large JPEG files are decoded
    at a reduced size, many times faster: their pixels may differ from those of `PIL.Image.open`,
    by less than saving a JPEG again does.

    Args:
        config: sizes.
    """

    def __init__(self, config: PreprocessConfig) -> None:
        self.config = config

    @property
    def size(self) -> int:
        """Side of the model's input in pixels."""
        return self.config.size

    def __call__(self, images: Images, first: int = 0) -> Tensor:
        """Prepare a batch `[B, 3, size, size]` of float32 in [0, 1], on the CPU or where the tensors are.

        Args:
            images: one or several.
            first: number of the first of several, to be counted from in an error.

        Raises:
            InvalidImageError: one of them cannot be read as an image; the message names it, by its
                number where it has no path.
        """
        (batch,) = batched(iterate(images), sys.maxsize)
        target = torch.Size((3, self.size, self.size))
        if is_single(images):
            return torch.stack([self.one(batch[0])])  # A copy.
        kinds = {(t.shape, t.dtype, t.device) if isinstance(t, Tensor) else None for t in batch}
        if len(kinds) == 1 and isinstance(batch[0], Tensor) and batch[0].shape == target:
            with contextlib.suppress(InvalidImageError):  # One by one below, to say which it is.
                return check_pixels(torch.stack(cast("list[Tensor]", batch)))
        numbered = [(image, first + place) for place, image in enumerate(batch)]
        files = all(
            isinstance(image, str | os.PathLike) for image in batch
        )  # An open image may be there twice.
        prepared = list((in_threads if files else map)(self._numbered, numbered))
        return torch.stack([pixels.to(prepared[0].device) for pixels in prepared])

    def _numbered(self, numbered: tuple[ImageLike, int]) -> Tensor:
        image, number = numbered
        try:
            _check_opened(image)
            return self.one(image)
        except InvalidImageError as error:
            if isinstance(image, str | os.PathLike):
                raise
            raise InvalidImageError(f"Image {number} of the list: {error}") from error

    def one(self, image: ImageLike | bytes, name: str = "image") -> Tensor:
        """Prepare a single image, `[3, size, size]`.

        Args:
            image: as for a call, or the bytes of an image file.
            name: what to call bytes in an error.
        """
        if isinstance(image, Tensor):
            pixels = check_pixels(_as_batch(image))[0]
            if pixels.shape[1:] == (self.size, self.size):
                return pixels
            return self._resize_tensor(pixels)
        return to_tensor(self._resize(open_rgb(image, at_least=_DRAFT * self.config.resize, name=name)))

    def whole(self, image: ImageLike, patch: int) -> tuple[Tensor, tuple[int, int]]:
        """Prepare all of an image, uncropped, for a task that is about every pixel.

        Its sides become the nearest multiples of the patch, 2 patches at least. An image with a
        side of more than four times the model's size is shrunk as a whole to that.

        Args:
            image: as for a call.
            patch: side of the model's patches in pixels.

        Returns:
            Pixels `[3, H, W]` in [0, 1], and height and width of the image as it was given.
        """
        given = check_pixels(_as_batch(image)) if isinstance(image, Tensor) else open_rgb(image)
        if isinstance(given, Tensor):
            height, width = given.shape[2:]
        else:
            width, height = given.size
        scale = min(1.0, _LONGEST * self.size / max(height, width))
        rows, columns = (max(round(side * scale / patch), 2) * patch for side in (height, width))
        if isinstance(given, Tensor):
            return _interpolated(given, rows, columns)[0], (height, width)
        if (height, width) != (rows, columns):
            given = given.resize((columns, rows), Image.Resampling.BICUBIC)
        return to_tensor(given), (height, width)

    def _resize(self, image: Image.Image) -> Image.Image:
        image = image.crop(_centre(image.width, image.height))
        width, height = _shorter_side(image.width, image.height, self.config.resize)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return image.crop((left, top, left + self.size, top + self.size))

    def _resize_tensor(self, pixels: Tensor) -> Tensor:
        left, top, right, bottom = _centre(pixels.shape[2], pixels.shape[1])
        pixels = pixels[:, top:bottom, left:right]
        width, height = _shorter_side(pixels.shape[2], pixels.shape[1], self.config.resize)
        resized = _interpolated(pixels[None], height, width)[0]
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return resized[:, top : top + self.size, left : left + self.size]


def _interpolated(pixels: Tensor, height: int, width: int) -> Tensor:
    """`[B, 3, H, W]` at another size; as it is where the size is the same."""
    if pixels.shape[2:] == (height, width):
        return pixels
    moved = F.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return moved.clamp_(0.0, 1.0)


def iterate(images: Images) -> Iterator[ImageLike]:
    """One image at a time from anything a user may pass; nothing is read before it is asked for."""
    if is_single(images):
        yield cast(ImageLike, images)
        return
    _check_opened(images)
    if not isinstance(images, Iterable):
        raise InvalidImageError(
            f"Cannot read a {type(images).__name__} as an image; expected {KINDS_OF_IMAGES}."
        )
    for image in images:
        if _is_batch(image) and not isinstance(images, Tensor):
            yield from cast(Tensor, image)
        else:
            yield image


def _is_batch(image: object) -> bool:
    """Whether it is a tensor of several images."""
    return isinstance(image, Tensor) and image.ndim == 4


def file_list_hash(root: Path, files: Iterable[Path]) -> str:
    """sha256 of the sorted paths below `root`, one a line: shows which files a number is about."""
    listing = "".join(f"{p.relative_to(root).as_posix()}\n" for p in sorted(files))
    return hashlib.sha256(os.fsencode(listing)).hexdigest()


def batched(images: Iterable[ImageLike], size: int) -> Iterator[list[ImageLike]]:
    """Lists of up to `size` images.

    Raises:
        InvalidImageError: there are none.
    """
    require_count("batch_size", size)
    stream, size = iter(images), min(size, sys.maxsize)
    batch = list(itertools.islice(stream, size))
    if not batch:
        raise InvalidImageError(f"No images were given; expected {KINDS_OF_IMAGES}, or a list of these.")
    while batch:
        yield batch
        batch = list(itertools.islice(stream, size))


def _is_image(path: Path) -> bool:
    """By its ending; hidden files are somebody's bookkeeping."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def count(images: Images) -> int | None:
    """How many images there are, where that can be told without reading them."""
    if is_single(images):
        return 1
    if isinstance(images, list | tuple):
        return sum(len(image) if isinstance(image, Tensor) and _is_batch(image) else 1 for image in images)
    return len(images) if isinstance(images, Sized) and not _is_unopened(images) else None


def _is_unopened(images: object) -> bool:
    """Whether it is the bytes of a file, or an open file, whose bytes or lines are no images."""
    return isinstance(images, bytes | bytearray | memoryview) or hasattr(images, "read")


def _check_opened(image: object) -> None:
    if _is_unopened(image):
        raise InvalidImageError(
            f"Cannot read a {type(image).__name__} as an image; expected {KINDS_OF_IMAGES}. "
            "Open it: PIL.Image.open(io.BytesIO(data)), or PIL.Image.open(file)."
        )


def spread(items: Sequence[ItemT], most: int) -> list[ItemT]:
    """So many of a sequence at most, evenly spaced, in its order."""
    number = min(most, len(items))
    return [items[i * len(items) // number] for i in range(number)]


def is_single(images: Images) -> bool:
    """Whether one image was given, and not several."""
    if isinstance(images, Tensor):
        return images.ndim != 4
    return isinstance(images, str | os.PathLike | Image.Image | np.ndarray)


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """All image files below a folder, sorted; hidden ones are left out.

    Links to folders are followed, once each. A folder below it that cannot be listed is warned of.

    Raises:
        InvalidDataError: a folder that does not exist, cannot be listed or holds no images.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InvalidDataError(f"No such folder: {root}")

    def unlisted(error: OSError) -> None:
        if error.filename == str(root):
            raise InvalidDataError(f"{root} cannot be listed: {error.strerror}.") from error
        said = f"{error.filename} cannot be listed and is left out: {error.strerror}."
        warnings.warn(said, UnreadableFolderWarning, stacklevel=5)

    images: list[Path] = []
    visited: set[tuple[int, int]] = set()
    roots = [str(root)]
    for start in roots:  # To which links add what they lead to: it may be visited without them.
        for place, folders, files in os.walk(start, onerror=unlisted):
            about = os.stat(place)
            if (about.st_dev, about.st_ino) in visited:
                folders.clear()
                continue
            visited.add((about.st_dev, about.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            roots += [inner for name in folders if os.path.islink(inner := os.path.join(place, name))]
            images += [path for name in files if _is_image(path := Path(place, name)) and path.is_file()]
    images.sort()
    if not images:
        raise InvalidDataError(
            f"No images in {root}; looked for {', '.join(sorted(EXTENSIONS))}, in subfolders too."
        )
    return images


def in_threads(read: Callable[[ItemT], ReadT], items: Sequence[ItemT]) -> list[ReadT]:
    """`[read(item) for item in items]` for what reads images, which several threads do at once.

    An error is that of the first item that has one.
    """
    threads = min(usable_cpus(), _READERS, len(items))
    if threads < 2:
        return [read(item) for item in items]
    with ThreadPoolExecutor(threads, thread_name_prefix="iwm-read") as pool:
        return list(pool.map(read, items))


def to_tensor(image: Image.Image) -> Tensor:
    """RGB PIL image to `[3, H, W]` float32 in [0, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float().div_(255.0)


def to_pil(pixels: Tensor) -> Image.Image:
    """`[3, H, W]` floats in [0, 1] to an RGB PIL image."""
    array = pixels.detach().mul(255.0).round_().clamp_(0, 255).to(torch.uint8)
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())


def transform_image(image: ImageT, params: Sequence[float]) -> ImageT:
    """Transform the pixels of one image, or of a batch tensor, and return the kind given.

    Args:
        image: as for `map_pixels`.
        params: seven numbers, as in `iwm.photometry.FIELDS`.

    Raises:
        InvalidImageError: not an image that `iwm.Action.apply` takes.
    """
    row = torch.tensor([params])
    if tuple(params) == IDENTITY and isinstance(image, Tensor):
        check_pixels(image if image.ndim == 4 else image[None])
        return cast(ImageT, image.clone())
    return map_pixels(image, lambda pixels: transform(pixels, row.expand(len(pixels), -1)))


def map_pixels(image: ImageT, change: Callable[[Tensor], Tensor]) -> ImageT:
    """Change the pixels of one image, or of a batch tensor, and return the kind given.

    PIL images and arrays come back as RGB.

    Args:
        image: PIL image, HWC uint8 array, or `[3, H, W]` / `[B, 3, H, W]` tensor.
        change: from `[B, 3, H, W]` floats in [0, 1] to the same.

    Raises:
        InvalidImageError: not an image of one of these kinds.
    """
    if isinstance(image, Tensor):
        out = change(check_pixels(image if image.ndim == 4 else image[None]))
        if image.dtype == torch.uint8:
            out = out.mul(255.0).round_().to(torch.uint8)
        return cast(ImageT, out.to(image.dtype).view(image.shape))
    if isinstance(image, Image.Image | np.ndarray):
        moved = to_pil(change(to_tensor(open_rgb(image))[None])[0])
        return cast(ImageT, np.array(moved) if isinstance(image, np.ndarray) else moved)
    raise InvalidImageError(
        f"Pixels are those of a PIL image, an HWC uint8 array or a tensor, not of a {type(image).__name__}; "
        "open a file first with PIL.Image.open."
    )


def _as_batch(image: Tensor) -> Tensor:
    """A single image as a batch of one.

    Raises:
        InvalidImageError: it has not the shape of one.
    """
    if image.ndim != 3 or image.shape[0] != 3:
        hint = " Write tensor.permute(2, 0, 1)." if image.ndim == 3 and image.shape[2] == 3 else ""
        raise InvalidImageError(f"Tensor of shape {list(image.shape)}; expected [3, H, W].{hint}")
    return image[None]


def check_pixels(images: Tensor) -> Tensor:
    """A `[B, 3, H, W]` tensor as float32 in [0, 1].

    Raises:
        InvalidImageError: another shape or dtype, or values outside the range.
    """
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise InvalidImageError(f"Tensor of shape {list(images.shape)}; expected [3, H, W] or [B, 3, H, W].")
    if images.dtype == torch.uint8:
        return images.float().div_(255.0)
    if not images.is_floating_point():
        raise InvalidImageError(f"Tensor of {images.dtype}; expected uint8, or float in [0, 1].")
    pixels = images.detach().float()
    low, high = (float(v) for v in pixels.aminmax())
    if not (low >= 0.0 and high <= 1.0):
        if not (math.isfinite(low) and math.isfinite(high)):
            hint = " It must be finite."
        elif low < -0.2:
            hint = " Do not normalise: the model does that."
        elif high > 1.5:
            hint = " Divide by 255, or pass uint8."
        else:
            hint = " Write tensor.clamp(0, 1) if that is rounding, as after resizing."
        raise InvalidImageError(
            f"Float tensor with values from {low:.8g} to {high:.8g}; expected [0, 1].{hint}"
        )
    return pixels


def _centre(width: int, height: int) -> tuple[int, int, int, int]:
    """The box to keep of a very long image: no longer than four times its shorter side.

    What lies beyond is cropped away in the end; enlarging it first would only take memory.
    """
    longest = 4 * min(width, height)
    left, top = max(width - longest, 0) // 2, max(height - longest, 0) // 2
    return left, top, left + min(width, longest), top + min(height, longest)


def _shorter_side(width: int, height: int, target: int) -> tuple[int, int]:
    scale = target / min(width, height)
    return max(round(width * scale), target), max(round(height * scale), target)
