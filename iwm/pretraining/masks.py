"""Multi-block masks of the source view [arXiv 2403.00504, section 3, App. A.1].

M_x is the union of rectangles of random area and aspect. The source loses those patches and
the predictor predicts them. So that a batch is rectangular, all its samples keep the same
number of patches, which depends on (seed, step) alone: it is what one reference draw leaves.
Each sample takes, of several placements of the blocks, the one that comes nearest to it, and is
trimmed or extended by the few random patches still needed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.actions import SampleKey, uniforms
from iwm.pretraining.config import MaskConfig

_STEP_STREAM = 2
_MASK_STREAM = 3
_PLACEMENTS = 8


def draw_masks(
    config: MaskConfig,
    grid: tuple[int, int],
    *,
    seed: int,
    step: int,
    keys: Sequence[SampleKey],
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor] | None:
    """Visible and masked positions of a batch.

    Args:
        config: block sizes and the share of unmasked steps.
        grid: patches along height and width, N in all.
        seed, step: decide whether this step masks at all, and how many patches stay.
        keys: (epoch, index) of each sample; decide where its blocks lie.
        device: of the result. With CUDA the blocks are laid there, and come to lie in the same places.

    Returns:
        Sorted positions `[B, V]` (kept) and `[B, N - V]` (dropped), or None for a step
        without masks.
    """
    step_rng = np.random.default_rng((seed, step, 0, _STEP_STREAM))
    if step_rng.random() < config.unmasked:
        return None
    count = grid[0] * grid[1]
    sizes = np.array([_block_size(config, grid, step_rng) for _ in range(config.blocks)])
    reference = torch.from_numpy(step_rng.random((1, 1, config.blocks, 2)))
    kept = count - int(_unions(sizes, grid, reference).sum())
    kept = min(max(kept, 1), count - 1)
    corners = _PLACEMENTS * config.blocks * 2
    u = uniforms(seed, keys, stream=_MASK_STREAM, count=corners + count)
    if torch.device(device).type == "cuda":  # Other devices may have no float64.
        u = u.to(device, non_blocking=True)
    unions = _unions(sizes, grid, u[:, :corners].view(-1, _PLACEMENTS, config.blocks, 2))
    nearest = (unions.sum(dim=2) - (count - kept)).abs().argmin(dim=1)
    masked = unions[torch.arange(len(u), device=u.device), nearest]
    # Visible patches sort before masked ones, in random order within each.
    order = (masked + u[:, corners:]).argsort(dim=1)
    visible, dropped = (part.sort(dim=1).values.to(device) for part in (order[:, :kept], order[:, kept:]))
    return visible, dropped


def _block_size(config: MaskConfig, grid: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    height, width = grid
    area = rng.uniform(*config.scale) * height * width
    aspect = rng.uniform(*config.aspect)
    tall = min(max(round(np.sqrt(area * aspect)), 1), height)
    wide = min(max(round(np.sqrt(area / aspect)), 1), width)
    return tall, wide


def _unions(sizes: np.ndarray[Any, Any], grid: tuple[int, int], corners: Tensor) -> Tensor:
    """Unions of blocks, `[B, P, N]` bool.

    Args:
        sizes: height and width of every block, `[K, 2]`.
        grid: patches along height and width.
        corners: uniforms `[B, P, K, 2]`: where the top left corner of every block falls among
            the places it can have.
    """
    spans = []
    for axis in (0, 1):
        size = torch.from_numpy(sizes[:, axis]).to(corners.device, non_blocking=corners.is_cuda)
        first = (corners[..., axis] * (grid[axis] - size + 1)).floor().unsqueeze(-1)
        positions = torch.arange(grid[axis], device=corners.device)
        spans.append((positions >= first) & (positions < first + size.unsqueeze(-1)))
    rows, columns = spans
    return (rows.unsqueeze(-1) & columns.unsqueeze(-2)).any(dim=2).flatten(2)
