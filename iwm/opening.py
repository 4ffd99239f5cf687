"""One image, from a file or from what other libraries make of it, as an upright RGB image.

EXIF orientation is honoured, alpha is composited on white, and grayscale, palette, CMYK and 16-bit
images become RGB. Pillow decodes; what is damaged, or was made to fill the memory, is an error
that names the file.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from iwm.errors import InvalidImageError

if TYPE_CHECKING:
    from torch import Tensor

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor"

_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_ORIENTED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
"""Where Pillow finds the orientation of an image that it has read."""

KINDS_OF_IMAGES = "a path, a PIL image, an HWC uint8 array, or a [3, H, W] or [B, 3, H, W] tensor"

_FILTERS = threading.Lock()
"""Filters of warnings are the whole process's: one thread at a time changes them, to open a file."""

if hasattr(os, "register_at_fork"):  # A child has no thread that would release it.
    os.register_at_fork(
        before=_FILTERS.acquire, after_in_parent=_FILTERS.release, after_in_child=_FILTERS.release
    )


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """For what Pillow says of malformed EXIF data, which nobody can mend; one thread at a time."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def open_header(image: str | os.PathLike[str] | bytes) -> Image.Image:
    """A file or its bytes, of which no more than the header is read.

    Raises:
        PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning: it has too many pixels.
    """
    with without_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)


def too_many_pixels(path: object) -> str:
    """What to say of a file that was made to fill the memory, or looks like one."""
    return f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller first."


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image, as Pillow opened it, once it is turned upright."""
    swapped = isinstance(image, TiffImagePlugin.TiffImageFile) and ExifTags.Base.Orientation in image.tag_v2
    turned = not swapped and exif_of(image).get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def exif_of(image: Image.Image) -> Image.Exif:
    """EXIF data with its blocks; of what is malformed nothing is said."""
    if image.format == "PNG":
        image.load()  # Where Pillow looks for it.
    with without_warnings():
        try:
            exif = image.getexif()
        except Exception:  # Whatever a broken header can raise: then there is none.
            return Image.Exif()
        for block in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop):
            with contextlib.suppress(Exception):
                exif.get_ifd(block)
        return exif


def open_rgb(image: ImageLike | bytes, at_least: int | None = None, name: str = "image") -> Image.Image:
    """Any single image but a tensor as an upright RGB PIL image.

    Args:
        image: a path, a PIL image, an array, or the bytes of an image file.
        at_least: a JPEG may be decoded at a half, quarter or eighth of its size, as long as its
            shorter side keeps so many pixels; much faster. None decodes all of it.
        name: what to call bytes in an error.

    Raises:
        InvalidImageError: a missing or corrupt file, an array of another shape or type.
    """
    if isinstance(image, Image.Image):
        return _to_rgb(image, "image")
    if isinstance(image, np.ndarray):
        return _to_rgb(_from_array(image), "array")
    if isinstance(image, str | os.PathLike | bytes):
        path = name if isinstance(image, bytes) else Path(image)
        try:
            with open_header(image) as opened:
                if opened.format == "EPS":  # Pillow would run it.
                    raise InvalidImageError(f"{path} is PostScript, a program; save it as PNG first.")
                if at_least:
                    opened.draft(None, (at_least, at_least))  # Does nothing but to JPEG files.
                return _to_rgb(opened, str(path))
        except InvalidImageError:
            raise
        except FileNotFoundError as error:
            raise InvalidImageError(f"No such image file: {path}") from error
        except IsADirectoryError as error:
            raise InvalidImageError(f"{path} is a folder; pass the image files in it.") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise InvalidImageError(too_many_pixels(path)) from error
        except UnidentifiedImageError as error:  # Its words name a stream in memory, not the image.
            raise InvalidImageError(f"Cannot read {path} as an image: no format that Pillow knows") from error
        except Exception as error:  # Decoders of damaged files raise many kinds.
            raise InvalidImageError(f"Cannot read {path} as an image: {error}") from error
    raise InvalidImageError(f"Cannot read a {type(image).__name__} as an image; expected {KINDS_OF_IMAGES}.")


def _upright(image: Image.Image) -> Image.Image:
    """Honour the EXIF orientation, also where other EXIF fields are malformed."""
    exif_of(image)  # Pillow would read it of a TIFF file with warnings.
    _load(image)
    turn = _ORIENTATIONS.get(exif_of(image).get(ExifTags.Base.Orientation, 1))
    if turn is None:
        return image
    turned = image.transpose(turn)
    for place in _ORIENTED:  # Or it would be turned again.
        turned.info.pop(place, None)
    return turned


def _load(image: Image.Image) -> None:
    """Decode an image; this turns TIFF files upright."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or not image.tile:
        image.load()
        return
    name, image.filename = (
        image.filename,
        "",
    )  # Or Pillow maps the file, and garbles pixels that have to be turned.
    try:
        image.load()
    finally:
        image.filename = name


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        image = _upright(image)
        if 0 in image.size:
            raise InvalidImageError(f"The {name} of {image.width} x {image.height} has no pixels.")
        if image.mode.startswith(("I", "F")):
            return _from_deep(image, name)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image).convert("RGB")
        return image.convert("RGB")  # Also loads the pixels of a lazily opened file.
    except InvalidImageError:
        raise
    except Exception as error:  # Decoders of damaged files raise many kinds.
        raise InvalidImageError(f"Cannot read {name} as an image: {error}") from error


def _from_deep(image: Image.Image, name: str) -> Image.Image:
    """16-bit and 32-bit integer images span 0 to 65535, float images 0 to 1; one value may be transparent."""
    values = np.array(image, dtype=np.float32)
    scale = 1.0 if image.mode == "F" else 65535.0
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > scale:
        raise InvalidImageError(f"{name} has values outside 0 to {scale:g}; rescale it first.")
    if image.mode == "I" and 0 < values.max() <= 255:
        raise InvalidImageError(
            f"{name} is of mode I, whose values go to 65535, and has none above {values.max():.0f}: "
            'if they go to 255, write image.convert("L").'
        )
    clear = values == transparent if (transparent := image.info.get("transparency")) is not None else None
    values *= 255.0 / scale
    gray = np.rint(values, out=values).astype(np.uint8)
    if clear is not None:
        gray[clear] = 255
    return Image.fromarray(gray).convert("RGB")


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    shape = "x".join(map(str, array.shape))
    if array.dtype != np.uint8:
        hint = (
            " Write (array >> 8).astype('uint8') if values go to 65535."
            if array.dtype == np.uint16
            else " For floats in [0, 1] write (array * 255).round().astype('uint8')."
        )
        raise InvalidImageError(f"Array of {array.dtype} and shape {shape}; expected uint8.{hint}")
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4)):
        if 0 in array.shape:
            raise InvalidImageError(f"Array of shape {shape} has no pixels.")
        return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    raise InvalidImageError(f"Array of shape {shape}; expected height x width x 3 (or 1, or 4) channels.")
