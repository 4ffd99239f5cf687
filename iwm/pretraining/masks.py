"""Multi-block masks of the source view [arXiv 2403.00504, section 3, App. A.1].

M_x is the union of rectangles of random area and aspect. The source loses those patches and
the predictor predicts them. So that a batch is rectangular, all its samples keep the same
number of patches, which depends on (seed, step) alone: it is what one reference draw leaves.
Each sample takes, of several placements of the blocks, the one that comes nearest to it, and is
trimmed or extended by the few random patches still needed.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from iwm.actions import SampleKey
from iwm.pretraining.config import MaskConfig

_STEP_STREAM = 2
_MASK_STREAM = 3
_PLACEMENTS = 8


def draw_masks(
    config: MaskConfig, grid: tuple[int, int], *, seed: int, step: int, keys: Sequence[SampleKey]
) -> tuple[Tensor, Tensor] | None:
    """Visible and masked positions of a batch.

    Args:
        config: block sizes and the share of unmasked steps.
        grid: patches along height and width, N in all.
        seed, step: decide whether this step masks at all, and how many patches stay.
        keys: (epoch, index) of each sample; decide where its blocks lie.

    Returns:
        Sorted positions `[B, V]` (kept) and `[B, N - V]` (dropped), or None for a step
        without masks.
    """
    step_rng = np.random.default_rng((seed, step, 0, _STEP_STREAM))
    if step_rng.random() < config.unmasked:
        return None
    height, width = grid
    count = height * width
    sizes = [_block_size(config, grid, step_rng) for _ in range(config.blocks)]
    kept = int(count - _union(sizes, grid, step_rng).sum())
    kept = min(max(kept, 1), count - 1)
    order_keys = np.empty((len(keys), count))
    for row, key in enumerate(keys):
        rng = np.random.default_rng((seed, *key, _MASK_STREAM))
        unions = [_union(sizes, grid, rng) for _ in range(_PLACEMENTS)]
        nearest = min(unions, key=lambda union: abs(count - kept - int(union.sum())))
        # Visible patches sort before masked ones, in random order within each.
        order_keys[row] = nearest.reshape(-1) + rng.random(count)
    order = torch.from_numpy(np.argsort(order_keys, axis=1))
    return order[:, :kept].sort(dim=1).values, order[:, kept:].sort(dim=1).values


def _block_size(config: MaskConfig, grid: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    height, width = grid
    area = rng.uniform(*config.scale) * height * width
    aspect = rng.uniform(*config.aspect)
    tall = min(max(round(np.sqrt(area * aspect)), 1), height)
    wide = min(max(round(np.sqrt(area / aspect)), 1), width)
    return tall, wide


def _union(
    sizes: list[tuple[int, int]], grid: tuple[int, int], rng: np.random.Generator
) -> "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]":
    masked = np.zeros(grid, dtype=np.bool_)
    for tall, wide in sizes:
        top = rng.integers(grid[0] - tall + 1)
        left = rng.integers(grid[1] - wide + 1)
        masked[top : top + tall, left : left + wide] = True
    return masked
