"""Batched photometric operations on pixels: the actions of an Image World Model.

Implements the seven operations of the paper's augmentations [arXiv 2403.00504, section 3,
App. A.1] for a whole batch with one parameter per sample, on any device. Values agree with
`torchvision.transforms.v2.functional`, whose per-image functions are the reference in the
tests. Drawing random parameters is somewhere else (`iwm.actions`): these functions are pure.

Shapes: images are `[B, 3, H, W]` floats in [0, 1]; a parameter is `[B]`; `params` is
`[B, 7]` in the order of `FIELDS`. Samples at an operation's identity are returned bit for bit.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FIELDS = ("brightness", "contrast", "saturation", "hue", "grayscale", "blur", "solarize")
"""Columns of a parameter tensor, in the order in which the operations are applied."""

IDENTITY = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
"""Parameters of an untouched image."""

SOLARIZE_THRESHOLD = 0.5
_LUMA = (0.2989, 0.587, 0.114)


def transform(images: Tensor, params: Tensor) -> Tensor:
    """Apply one photometry per sample, in the fixed order of `FIELDS`.

    Args:
        images: `[B, 3, H, W]` floats in [0, 1].
        params: `[B, 7]`, columns as in `FIELDS`; factors >= 0, hue in turns, blur a sigma in
            pixels (0 is none), grayscale and solarize 0 or 1. On the CPU, they keep no GPU waiting.

    Returns:
        Images of the same shape and dtype, never changed in place; the very same tensor where
        every photometry is the identity.
    """
    params = params.to(images.dtype)
    there = _moved(params, images)

    def blur(images: Tensor, sigma: Tensor) -> Tensor:
        return gaussian_blur(images, sigma, largest=params[:, 5].max().item())

    operations = (
        adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue, grayscale, blur, solarize,
    )  # fmt: skip
    out = images
    for column, (operation, identity) in enumerate(zip(operations, IDENTITY, strict=True)):
        rows = (params[:, column] != identity).nonzero().squeeze(1)
        if 0 < len(rows) == len(images):
            out = operation(out, there[:, column])
        elif len(rows):  # The samples away from identity only: exact, and no work for the rest.
            rows = _moved(rows, images)
            out = images.clone() if out is images else out
            out.index_copy_(0, rows, operation(out[rows], there[rows, column]))
    return out


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by `factor` `[B]` and clamp; 0 is black, 1 the identity."""
    return (images * _per_sample(factor)).clamp_(0.0, 1.0)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luma of each image; 0 is flat grey, 1 the identity."""
    mean = _luma(images).mean(dim=(-2, -1), keepdim=True)
    return torch.lerp(mean, images, _per_sample(factor)).clamp_(0.0, 1.0)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the luma of each pixel; 0 is colourless, 1 the identity."""
    return torch.lerp(_luma(images), images, _per_sample(factor)).clamp_(0.0, 1.0)


def adjust_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue of each pixel by `turns` `[B]` of the colour circle, in [-0.5, 0.5].

    In HSV, channel n in (5, 3, 1) for (R, G, B) is `V - C * clamp(min(k, 4 - k), 0, 1)`
    with `k = (n + 6 h) mod 6`, where V is the maximum and C the chroma.
    """
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = chroma.clamp_min(torch.finfo(images.dtype).tiny).reciprocal_()
    sector = torch.where(
        value == green, (blue - red).mul_(scale).add_(2.0), (red - green).mul_(scale).add_(4.0)
    )
    sector = torch.where(value == red, (green - blue).mul_(scale), sector)
    sector += 6.0 * turns.view(-1, 1, 1)
    out = torch.empty_like(images)
    for channel, offset in enumerate((5.0, 3.0, 1.0)):
        k = sector + offset
        k -= torch.floor(k / 6.0).mul_(6.0)  # Twice as fast as torch.remainder on a CPU.
        ramp = k.sub_(2.0).abs_().neg_().add_(2.0).clamp_(0.0, 1.0)  # min(k, 4 - k)
        torch.addcmul(value, chroma, ramp, value=-1.0, out=out[:, channel])
    return out


def grayscale(images: Tensor, on: Tensor) -> Tensor:
    """Replace the three channels by their luma where `on` `[B]` is not zero."""
    return torch.where(_per_sample(on) != 0, _luma(images).expand_as(images), images)


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float | None = None) -> Tensor:
    """Separable Gaussian of `sigma` `[B]` pixels: 4 sigma on each side, reflected borders.

    A side shorter than the kernel keeps as much of it as can be reflected. Sigma 0 leaves
    its sample as it is. `largest` is the largest sigma, where that is known.
    """
    batch, channels, height, width = images.shape
    largest = sigma.max().item() if largest is None else largest
    radius = min(max(math.ceil(4.0 * largest), 1), max(height, width) - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    # Each sample's own 4 sigma, so that a result never depends on the rest of its batch.
    inside = offsets.abs() <= torch.ceil(4.0 * sigma).unsqueeze(1)
    safe = sigma.clamp_min(1e-3).unsqueeze(1)
    kernel = torch.exp(-0.5 * (offsets / safe).square()) * inside
    out = images
    for side, shape in ((width, (1, -1)), (height, (-1, 1))):
        reach = min(radius, side - 1)
        taps = kernel[:, radius - reach : radius + reach + 1]
        taps = taps / taps.sum(dim=1, keepdim=True)
        weight = taps.repeat_interleave(channels, 0).view(batch * channels, 1, *shape)
        pad = (reach, reach, 0, 0) if shape[0] == 1 else (0, 0, reach, reach)
        flat = F.pad(out, pad, mode="reflect").reshape(1, batch * channels, *_padded(out, pad))
        out = F.conv2d(flat, weight, groups=batch * channels).view(images.shape)
    return out.clamp_(0.0, 1.0)  # Rounding may leave 1 by a bit.


def solarize(images: Tensor, on: Tensor) -> Tensor:
    """Invert the values of at least 0.5 where `on` `[B]` is not zero."""
    flip = (_per_sample(on) != 0) & (images >= SOLARIZE_THRESHOLD)
    return torch.where(flip, 1.0 - images, images)


def _moved(tensor: Tensor, images: Tensor) -> Tensor:
    """A tensor on the images' device; a GPU is not waited for."""
    return tensor.to(images.device, non_blocking=images.is_cuda)


def _per_sample(parameter: Tensor) -> Tensor:
    return parameter.view(-1, 1, 1, 1)


def _luma(images: Tensor) -> Tensor:
    """ITU-R 601 luma, `[B, 1, H, W]`."""
    red, green, blue = images.unbind(1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).unsqueeze(1)


def _padded(images: Tensor, pad: tuple[int, int, int, int]) -> tuple[int, int]:
    return images.shape[2] + pad[2] + pad[3], images.shape[3] + pad[0] + pad[1]
