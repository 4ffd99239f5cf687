"""Block masks: partition, determinism, shapes and sizes."""

import numpy as np
import pytest
import torch

from iwm.pretraining.config import MaskConfig
from iwm.pretraining.masks import draw_masks

KEYS = [(0, 3), (0, 8), (1, 3), (5, 100)]
GRID = (14, 14)


def _draw(config=MaskConfig(), grid=GRID, seed=0, step=0, keys=KEYS):  # noqa: B008
    return draw_masks(config, grid, seed=seed, step=step, keys=keys)


def _as_grid(masked, grid=GRID):
    out = torch.zeros(len(masked), grid[0] * grid[1], dtype=torch.bool)
    return out.scatter(1, masked, True).view(-1, *grid)


@pytest.mark.parametrize("grid", [(14, 14), (4, 4), (6, 10), (2, 2)])
@pytest.mark.parametrize("step", range(4))
def test_visible_and_masked_partition_the_grid_in_order(grid, step):
    visible, masked = _draw(grid=grid, step=step)
    count = grid[0] * grid[1]
    assert visible.shape[0] == masked.shape[0] == len(KEYS)
    assert visible.dtype == masked.dtype == torch.int64
    assert torch.equal(
        torch.cat((visible, masked), 1).sort(1).values, torch.arange(count).expand(len(KEYS), -1)
    )
    for part in (visible, masked):
        assert part.shape[1] >= 1
        assert (part.diff(dim=1) > 0).all()


def test_number_of_visible_patches_depends_on_seed_and_step_alone():
    counts = [_draw(step=step)[0].shape[1] for step in range(20)]
    assert [_draw(step=step, keys=[(9, 7)])[0].shape[1] for step in range(20)] == counts
    assert [_draw(step=step, seed=1)[0].shape[1] for step in range(20)] != counts
    assert len(set(counts)) > 5


def test_place_depends_on_the_sample_and_not_on_its_batch():
    _, masked = _draw(step=7)
    for row, key in enumerate(KEYS):
        for keys in ([key], [(2, 2), key], [*KEYS[::-1], key]):
            assert torch.equal(_draw(step=7, keys=keys)[1][-1], masked[row])
    assert len({tuple(row.tolist()) for row in masked}) == len(KEYS)
    assert not torch.equal(_draw(step=7, seed=1)[1], masked)


def test_one_block_is_one_rectangle_of_the_configured_area_and_aspect():
    grid = (40, 40)
    heights, widths = [], []
    for step in range(60):
        _, masked = _draw(MaskConfig(blocks=1), grid=grid, step=step)
        for one in _as_grid(masked, grid):
            rows, columns = one.any(1).nonzero().squeeze(1), one.any(0).nonzero().squeeze(1)
            tall, wide = (int(side[-1] - side[0] + 1) for side in (rows, columns))
            assert int(one.sum()) == tall * wide
        heights.append(tall)
        widths.append(wide)
    tall, wide = np.array(heights), np.array(widths)
    half_patch = 0.5
    area_low, area_high = (tall - half_patch) * (wide - half_patch), (tall + half_patch) * (wide + half_patch)
    assert (area_high >= 0.15 * 1600).all()
    assert (area_low <= 0.2 * 1600).all()
    assert ((tall + half_patch) / (wide - half_patch) >= 0.75).all()
    assert ((tall - half_patch) / (wide + half_patch) <= 1.5).all()
    assert (tall / wide).min() < 0.85
    assert (tall / wide).max() > 1.35
    assert (tall * wide).min() < 0.16 * 1600
    assert (tall * wide).max() > 0.19 * 1600


def _expected_share(config, grid):
    """Mean masked share: block positions summed exactly, block sizes on a fine lattice."""
    lattice = [(i + 0.5) / 30 for i in range(30)]
    covered = np.zeros(grid)
    for a in lattice:
        for b in lattice:
            area = (config.scale[0] + a * (config.scale[1] - config.scale[0])) * grid[0] * grid[1]
            aspect = config.aspect[0] + b * (config.aspect[1] - config.aspect[0])
            axes = []
            for side, length in zip(grid, (np.sqrt(area * aspect), np.sqrt(area / aspect)), strict=True):
                length = round(length)
                starts = side - length + 1
                hits = np.zeros(side)
                for start in range(starts):
                    hits[start : start + length] += 1 / starts
                axes.append(hits)
            covered += np.outer(*axes) / len(lattice) ** 2
    return float((1 - (1 - covered) ** config.blocks).mean())


def test_masked_share_is_that_of_a_union_of_four_blocks():
    shares = np.array([_draw(step=step, keys=[(0, step)])[1].shape[1] for step in range(1500)]) / 196
    assert shares.mean() == pytest.approx(_expected_share(MaskConfig(), GRID), abs=0.01)
    assert shares.min() >= 0.15
    assert shares.max() <= 0.8


def test_masked_patches_come_in_blocks_not_scattered():
    keys = [(0, i) for i in range(8)]
    inside, total = 0, 0
    for step in range(25):
        one = _as_grid(_draw(step=step, keys=keys)[1])
        full = one.unfold(1, 3, 1).unfold(2, 3, 1).all(-1).all(-1)
        cells = torch.zeros_like(one)
        for row in range(3):
            for column in range(3):
                cells[:, row : row + 12, column : column + 12] |= full
        inside, total = inside + int(cells.sum()), total + int(one.sum())
    assert inside / total > 0.5


def test_the_middle_is_masked_more_often_than_the_corners():
    masks = [_as_grid(_draw(step=step, keys=[(step, i) for i in range(64)])[1]) for step in range(16)]
    often = torch.cat(masks).double().mean(0)
    assert often[6:8, 6:8].mean() > 0.7
    assert often[[0, 0, -1, -1], [0, -1, 0, -1]].mean() < 0.3
    for axes in ([0], [1], [0, 1]):
        torch.testing.assert_close(often, often.flip(axes), atol=0.12, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_steps_without_a_mask(share):
    config = MaskConfig(unmasked=share)
    without = [_draw(config, grid=(4, 4), step=step, keys=[(0, 0)]) is None for step in range(1200)]
    assert np.mean(without) == pytest.approx(share, abs=0.04 if 0 < share < 1 else 0)
    assert [_draw(config, grid=(4, 4), step=step) is None for step in range(50)] == without[:50]


@pytest.mark.parametrize(("blocks", "scale"), [(4, (0.15, 0.2)), (64, (0.9, 0.95)), (1, (0.01, 0.02))])
@pytest.mark.parametrize("grid", [(2, 2), (2, 7), (3, 2)])
def test_any_block_size_leaves_something_to_see_and_to_predict(blocks, scale, grid):
    for step in range(10):
        visible, masked = _draw(MaskConfig(blocks=blocks, scale=scale), grid=grid, step=step)
        assert visible.shape[1] >= 1
        assert masked.shape[1] >= 1
        assert visible.shape[1] + masked.shape[1] == grid[0] * grid[1]
