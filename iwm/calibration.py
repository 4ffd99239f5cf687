"""What the ranges of `int8` exports are measured on: views of photographs, their latents, and actions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from iwm.actions import draw_photometry
from iwm.images import Images
from iwm.photometry import transform

if TYPE_CHECKING:
    from iwm.world_model import WorldModel

_IMAGES = 64


def calibration_rows(model: WorldModel, images: Images | None) -> dict[str, list[tuple[Tensor, ...]]]:
    """Inputs of the encoder and the world model, in small batches.

    Args:
        model: whose parts they are for.
        images: photographs, some dozens; None takes noise with the spectrum of photographs.
    """
    pixels = _pink_noise(model.preprocess.size) if images is None else model.preprocess(images)
    pixels = pixels[:: max(len(pixels) // _IMAGES, 1)][:_IMAGES]
    drawn = model.config.actions.distribution
    photometries = [
        draw_photometry(drawn, seed=0, keys=[(epoch, i) for i in range(len(pixels))]) for epoch in (0, 1)
    ]
    views = transform(pixels, photometries[0])
    tokens = model.encode(views).tokens
    clean = torch.zeros_like(photometries[0])
    clean[:, :3] = 1.0
    targets = photometries[1] if model.config.actions.symmetric else clean
    vectors = model.encode_photometry(torch.stack((photometries[0], targets), dim=1))
    rows = [slice(i, i + 8) for i in range(0, len(pixels), 8)]
    encoder: list[tuple[Tensor, ...]] = [(batch[s],) for batch in (views, pixels) for s in rows]
    return {"encoder": encoder, "world_model": [(tokens[s], vectors[s]) for s in rows]}


def _pink_noise(size: int) -> Tensor:
    """`[B, 3, size, size]` of noise whose amplitude falls with frequency, as that of photographs."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.fft.rfft2(torch.randn(_IMAGES, 3, size, size, generator=generator))
    across, down = torch.fft.rfftfreq(size), torch.fft.fftfreq(size).unsqueeze(1)
    noise /= (across.square() + down.square()).sqrt().clamp_min(1.0 / size)
    shared = torch.fft.irfft2(noise, s=(size, size))
    shared = 0.4 * shared + 0.6 * shared.mean(1, keepdim=True)  # Channels go together in photographs.
    pink: Tensor = 0.45 + 0.25 * shared / shared.std(dim=(1, 2, 3), keepdim=True)
    return pink.clamp(0.0, 1.0)
