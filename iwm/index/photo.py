"""One photograph file: its bytes read once, and what they say.

The hash, the capture time and the pixels come from the same bytes, whatever happens to the file.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from datetime import datetime

from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from iwm.errors import InvalidImageError
from iwm.images import Preprocess
from iwm.index.filters import is_address
from iwm.index.walk import Found, file_system
from iwm.opening import exif_of, open_header, too_many_pixels, upright_size, without_warnings

LARGEST = 1 << 30
"""Bytes of a file that is read: bounds the memory of indexing."""

_NEED_A_DECODER = {
    ".heic": "pillow-heif", ".heif": "pillow-heif", ".avif": "a Pillow with AVIF", ".jxl": "pillow-jxl-plugin",
}  # fmt: skip

_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
_PNG_BITS = 24
"""Place of the bit depth: after the signature, the header's length and name, width and height."""


@dataclass(frozen=True, eq=False)
class Photo:
    """What an indexed photograph is known by.

    Attributes:
        found: the file.
        hash: BLAKE2b-128 of its bytes, hexadecimal.
        width: in pixels, upright.
        height: in pixels, upright.
        taken: capture time by EXIF, the camera's local time, where there is one.
        remark: what was lost on the way to pixels; empty where nothing was.
        pixels: `[3, S, S]` in [0, 1], the model's input; None once it is encoded.
    """

    found: Found
    hash: str
    width: int
    height: int
    taken: datetime | None
    remark: str
    pixels: Tensor | None


def read_bytes(found: Found) -> bytes:
    """The bytes of a file.

    Raises:
        InvalidImageError: it is empty, gone, too large or may not be read.
    """
    path = found.path
    if found.bytes > LARGEST:
        raise InvalidImageError(f"{path} has {found.bytes:,} bytes, more than {LARGEST:,}.")
    try:
        if is_address(path):
            store, inner = file_system(path)
            with store.open_input_file(inner) as file:
                data = bytes(file.read())
        else:
            with open(path, "rb") as file:
                data = file.read(LARGEST + 1)
    except OSError as error:
        raise InvalidImageError(f"Cannot read {path}: {error.strerror or error}") from error
    if not data:
        raise InvalidImageError(f"{path} is empty: zero bytes.")
    return data


def content_hash(data: bytes) -> str:
    """BLAKE2b-128 of a file's bytes, hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_photo(found: Found, data: bytes, preprocess: Preprocess) -> Photo:
    """Decode a photograph.

    Raises:
        InvalidImageError: it cannot be; the message names the file.
    """
    width, height, taken, remark = _about(found.path, data)
    pixels = preprocess.one(data, name=found.path)
    return Photo(found, content_hash(data), width, height, taken, remark, pixels)


def _about(path: str, data: bytes) -> tuple[int, int, datetime | None, str]:
    """Width, height, capture time and a remark, from the file's header."""
    try:
        with open_header(data) as image:
            width, height = upright_size(image)
            exif = exif_of(image)
            with without_warnings():
                return width, height, _taken(exif), _remark(image, data)
    except UnidentifiedImageError as error:
        suffix = os.path.splitext(path)[1].lower()
        package = _NEED_A_DECODER.get(suffix)
        if package and suffix not in Image.registered_extensions():
            raise InvalidImageError(
                f"Cannot read {path}: no decoder for this format is installed; convert it to JPEG, "
                f"or index it from Python after registering one ({package})."
            ) from error
        raise InvalidImageError(f"Cannot read {path} as an image: its format is not known.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidImageError(too_many_pixels(path)) from error
    except Exception as error:  # Decoders of damaged files raise many kinds.
        raise InvalidImageError(f"Cannot read {path} as an image: {error}") from error


def _remark(image: Image.Image, data: bytes) -> str:
    """What is lost. Pictures beside the first one of a JPEG, as phones add them, are no loss."""
    remarks = []
    several = getattr(image, "is_animated", False)
    if several and image.format in _ANIMATED:
        remarks.append("animated; its first frame is indexed")
    if several and image.format == "TIFF":
        remarks.append("further pictures in the file are left out")
    if image.mode == "CMYK":
        remarks.append("CMYK; converted to RGB without a colour profile")
    if image.mode.startswith(("I", "F")) or _bits(image, data) > 8:
        remarks.append("more than 8 bits a pixel; reduced to 8")
    return "; ".join(remarks)


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits of a number in the file, by its header; Pillow reads deep colour as 8 bits and does not say so."""
    if image.format == "PNG":
        return data[_PNG_BITS]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits: tuple[int, ...] = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (8,))
        return max(bits)
    return 8


def _taken(exif: Image.Exif) -> datetime | None:
    """DateTimeOriginal, or DateTimeDigitized; what is malformed counts as absent."""
    try:
        fields = exif.get_ifd(ExifTags.IFD.Exif)
        words = fields.get(ExifTags.Base.DateTimeOriginal) or fields.get(ExifTags.Base.DateTimeDigitized)
        return datetime.strptime(str(words).strip("\0 "), "%Y:%m:%d %H:%M:%S") if words else None
    except Exception:  # Whatever a broken EXIF block can raise; the photograph itself may be fine.
        return None
