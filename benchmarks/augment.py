"""Photometric augmentation of a batch: iwm against torchvision v2, kornia and Pillow.

Same photometries, drawn as in training (strong jitter with probability 0.8, grayscale, blur and
solarize with 0.2 each), on the same random images; the libraries take turns in one process.
torchvision has one parameter a call, so it goes image by image; kornia takes the batch, each
operation on the images that have it; Pillow works on uint8, as in a data loader. Values agree
(see `tests/test_photometry.py`) but for Pillow's rounding and kornia's own blur borders.

    python benchmarks/augment.py --images 64 --size 224 --threads 1
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from iwm.actions import draw_photometry
from iwm.config import STRENGTHS
from iwm.photometry import SOLARIZE_THRESHOLD, transform


def with_iwm(images: Tensor, params: Tensor) -> Tensor:
    return transform(images, params)


def with_torchvision(images: Tensor, params: Tensor) -> Tensor:
    out = []
    for image, (brightness, contrast, saturation, hue, gray, sigma, solarize) in zip(
        images, params.tolist(), strict=True
    ):
        if (brightness, contrast, saturation, hue) != (1.0, 1.0, 1.0, 0.0):
            image = tv.adjust_brightness(image, brightness)
            image = tv.adjust_contrast(image, contrast)
            image = tv.adjust_saturation(image, saturation)
            image = tv.adjust_hue(image, hue)
        if gray:
            image = tv.rgb_to_grayscale(image, num_output_channels=3)
        if sigma:
            image = tv.gaussian_blur(image, [2 * math.ceil(4 * sigma) + 1] * 2, [sigma] * 2)
        if solarize:
            image = tv.solarize(image, SOLARIZE_THRESHOLD)
        out.append(image)
    return torch.stack(out)


def with_kornia(images: Tensor, params: Tensor) -> Tensor:
    import kornia

    images = images.clone()
    brightness, contrast, saturation, hue, gray, sigma, solarize = params.unbind(1)
    on = (params[:, :4] != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(dim=1)
    if on.any():
        x = kornia.enhance.adjust_brightness_accumulative(images[on], brightness[on])
        x = kornia.enhance.adjust_contrast_with_mean_subtraction(x, contrast[on])
        x = kornia.enhance.adjust_saturation_with_gray_subtraction(x, saturation[on])
        images[on] = kornia.enhance.adjust_hue(x, 2 * math.pi * hue[on])
    if (on := gray > 0).any():
        images[on] = kornia.color.rgb_to_grayscale(images[on]).expand(-1, 3, -1, -1)
    if (on := sigma > 0).any():
        width = 2 * math.ceil(4 * float(sigma.max())) + 1
        images[on] = kornia.filters.gaussian_blur2d(images[on], (width, width), sigma[on, None].expand(-1, 2))
    if (on := solarize > 0).any():
        images[on] = kornia.enhance.solarize(images[on], SOLARIZE_THRESHOLD)
    return images


def with_pillow(images: Tensor, params: Tensor) -> Tensor:
    out = []
    arrays = images.mul(255).byte().permute(0, 2, 3, 1).numpy()
    for array, (brightness, contrast, saturation, hue, gray, sigma, solarize) in zip(
        arrays, params.tolist(), strict=True
    ):
        image = Image.fromarray(array)
        if (brightness, contrast, saturation, hue) != (1.0, 1.0, 1.0, 0.0):
            image = ImageEnhance.Brightness(image).enhance(brightness)
            image = ImageEnhance.Contrast(image).enhance(contrast)
            image = ImageEnhance.Color(image).enhance(saturation)
            h, s, v = image.convert("HSV").split()
            shifted = Image.fromarray((np.array(h, dtype=np.int16) + round(hue * 255)).astype(np.uint8))
            image = Image.merge("HSV", (shifted, s, v)).convert("RGB")
        if gray:
            image = image.convert("L").convert("RGB")
        if sigma:
            image = image.filter(ImageFilter.GaussianBlur(sigma))
        if solarize:
            image = ImageOps.solarize(image, 128)
        out.append(torch.from_numpy(np.array(image)))
    return torch.stack(out).permute(0, 3, 1, 2).float() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description="Photometric augmentation, side by side.")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = torch.rand(options.images, 3, options.size, options.size)
    keys = [(0, i) for i in range(options.images)]
    params = draw_photometry(STRENGTHS["strong"], seed=0, keys=keys)
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "iwm": with_iwm, "torchvision v2, one by one": with_torchvision, "Pillow, uint8, one by one": with_pillow,
    }  # fmt: skip
    if importlib.util.find_spec("kornia"):
        ways["kornia, batch"] = with_kornia
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    reference = with_torchvision(images, params)
    print(f"{options.images} images of {options.size} px, {options.threads} threads\n")
    print("| | images/s | iwm is faster by | largest difference from torchvision |")
    print("|---|---|---|---|")
    apart = {name: float((way(images, params) - reference).abs().max()) for name, way in ways.items()}
    for _ in range(options.rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way(images, params)
            seconds[name].append(time.perf_counter() - started)
    ours = statistics.median(seconds["iwm"])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"| {name} | {options.images / median:.0f} | {median / ours:.2f} | {apart[name]:.4f} |")


if __name__ == "__main__":
    main()
