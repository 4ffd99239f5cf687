"""Taking an edit back in pixels, as far as it left anything to take back.

Brightness, contrast, saturation and hue have inverses (`iwm.photometry`), exact but for what was
clipped at 0 and 1 and for the rounding of eight bits. Grayscale, blur and solarize have none: they
are left as they are, and the result says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from iwm.actions import Action, Photometry
from iwm.errors import InvalidActionError
from iwm.images import map_pixels
from iwm.photometry import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation

ImageT = TypeVar("ImageT")

_LOST = {
    "grayscale": "grayscale: the colours are gone",
    "blur": "blur: fine detail is gone",
    "solarize": "solarize: two values became one",
}


@dataclass(frozen=True)
class Restored(Generic[ImageT]):
    """An image with an edit taken back.

    Attributes:
        image: of the kind that was given.
        undone: what was taken back.
        lost: a line for every operation that has no inverse, and one for what lies below a solarize.
    """

    image: ImageT
    undone: Photometry
    lost: tuple[str, ...]


def restore(image: ImageT, photometry: Photometry) -> Restored[ImageT]:
    """Take back what a photometry did to an image.

    Below a solarize nothing is taken back: what it did to a pixel depends on the value before.

    Args:
        image: PIL image, HWC uint8 array, or `[3, H, W]` / `[B, 3, H, W]` tensor.
        photometry: the edit, such as `model.undo` or `model.infer_action` finds.

    Raises:
        InvalidActionError: no photometry, or a factor of 0: nothing of the image is left.
        InvalidImageError: not an image of one of these kinds.

    >>> import torch
    >>> dark = torch.full((3, 2, 2), 0.2)
    >>> restore(dark, Photometry(brightness=0.5, blur=1.0)).lost
    ('blur: fine detail is gone',)
    """
    if not isinstance(photometry, Photometry):
        raise InvalidActionError(_no_photometry(photometry))
    for name in ("brightness", "contrast"):
        if not getattr(photometry, name):
            raise InvalidActionError(f"{name} is 0: nothing of the image is left to restore.")
    lost = tuple(words for name, words in _LOST.items() if getattr(photometry, name))
    undone = replace(photometry, grayscale=False, blur=0.0, solarize=False)
    if photometry.solarize:
        hidden = [
            name
            for name in ("brightness", "contrast", "saturation", "hue")
            if getattr(undone, name) != getattr(Photometry(), name)
        ]
        if hidden:
            lost += (f"{', '.join(hidden)}: what solarize did hides it",)
        undone = Photometry()
    elif photometry.grayscale or not photometry.saturation:
        undone = replace(undone, saturation=1.0, hue=0.0)
        if not photometry.saturation and not photometry.grayscale:
            lost += ("saturation 0: the colours are gone",)
    return Restored(map_pixels(image, lambda pixels: _invert(pixels.clone(), undone)), undone, lost)


def _no_photometry(given: object) -> str:
    hint = " It has two: write action.target." if isinstance(given, Action) else ""
    return f"Expected iwm.Photometry, got {type(given).__name__}.{hint}"


def _invert(pixels: Tensor, undone: Photometry) -> Tensor:
    """The inverse operations in the reverse order; each clips, as the operation before it did."""
    for operation, value, identity in (
        (adjust_hue, -undone.hue, 0.0),
        (adjust_saturation, 1.0 / undone.saturation, 1.0),
        (adjust_contrast, 1.0 / undone.contrast, 1.0),
        (adjust_brightness, 1.0 / undone.brightness, 1.0),
    ):
        if value != identity:
            pixels = operation(pixels, torch.full((len(pixels),), value).to(pixels))
    return pixels
