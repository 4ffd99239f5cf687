"""Reading large JPEG files: at the reduced size that the model needs, against whole.

    python benchmarks/large_photos.py --photos imagenette/val --images 8

Photographs are enlarged to 12 megapixels, given the noise of a sensor (8 of 255 levels) and saved as
JPEG. Printed are seconds a file by turns, medians, and how far what the model sees is from the whole
file: of pixels, in levels of 255, and of latents, by the bank's distance; beside it the same for a
photograph that was decoded whole and saved once more at the model's size.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import iwm
from iwm.bank import distances
from iwm.images import list_images, to_pil
from iwm.opening import open_rgb

SIZE = (4000, 3000)
NOISE = 8.0
QUALITY = 90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--images", type=int, default=8)
    options = parser.parse_args()
    files = list_images(options.photos)
    chosen = [files[i] for i in torch.randperm(len(files), generator=torch.Generator().manual_seed(0))]
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}", flush=True)
    model = iwm.load()
    draws = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {"reduced": [], "whole": [], "encode": []}
    off: dict[str, list[tuple[float, float]]] = {"reduced": [], "saved again": []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "large.jpg"
        for path in chosen[: options.images]:
            large = np.asarray(open_rgb(path).resize(SIZE, Image.Resampling.BICUBIC), dtype=np.float32)
            noisy = large + NOISE * draws.standard_normal(large.shape, dtype=np.float32)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=QUALITY)
            started = time.perf_counter()
            reduced = model.preprocess.one(file)
            seconds["reduced"].append(time.perf_counter() - started)
            started = time.perf_counter()
            whole = model.preprocess.one(Image.open(file))
            seconds["whole"].append(time.perf_counter() - started)
            started = time.perf_counter()
            truth = model.encode(whole).tokens
            seconds["encode"].append(time.perf_counter() - started)
            for name, pixels in (("reduced", reduced), ("saved again", saved_again(whole))):
                moved = float(distances(truth, model.encode(pixels).tokens))
                off[name].append((255 * (pixels - whole).abs().mean().item(), moved))
    medians = {name: round(statistics.median(values), 4) for name, values in seconds.items()}
    print(json.dumps({"seconds": medians, "faster by": round(medians["whole"] / medians["reduced"], 2)}))
    for name, values in off.items():
        levels, moved = (round(statistics.fmean(column), 3) for column in zip(*values, strict=True))
        print(json.dumps({name: {"pixels": levels, "latents": moved}}))


def saved_again(pixels: Tensor) -> Tensor:
    """Pixels `[3, S, S]` after one more JPEG."""
    stream = io.BytesIO()
    to_pil(pixels).save(stream, "jpeg", quality=QUALITY)
    again = np.asarray(Image.open(stream), dtype=np.float32) / 255.0
    return torch.from_numpy(again).permute(2, 0, 1)


if __name__ == "__main__":
    main()
