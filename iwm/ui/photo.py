"""A photograph that somebody dropped on the page: read, encoded once, and kept for the sliders."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from iwm.errors import InvalidImageError
from iwm.images import to_pil
from iwm.latent import Latent
from iwm.opening import ImageLike
from iwm.world_model import WorldModel


@dataclass(frozen=True, eq=False, kw_only=True)
class Photo:
    """One photograph as the model sees it.

    Attributes:
        name: of the file.
        pixels: `[3, S, S]` in [0, 1], the model's input.
        latent: of these pixels, so that an action costs a prediction and no encoding.
    """

    name: str
    pixels: Tensor
    latent: Latent

    @property
    def picture(self) -> Image.Image:
        """The pixels, to be shown."""
        return to_pil(self.pixels)


def encode_photo(model: WorldModel, image: ImageLike, name: str) -> Photo:
    """Prepare and encode an image."""
    pixels = model.preprocess.one(image)
    return Photo(name=name, pixels=pixels, latent=model.encode(pixels))


def read_photo(model: WorldModel, data: bytes, name: str) -> Photo:
    """Decode and encode an image file.

    Args:
        model: what encodes it.
        data: the file's bytes.
        name: what to call it in an error.

    Raises:
        InvalidImageError: it is empty, broken, no image, or has too many pixels.
    """
    if not data:
        raise InvalidImageError(f"{name} is empty: zero bytes.")
    return encode_photo(model, model.preprocess.one(data, name=name), name)
