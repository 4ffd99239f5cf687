"""Sketches: a random projection whose distances are those of the latents, in the mean."""

import pytest
import torch

from iwm.index.sketch import SKETCH, sketch


@pytest.mark.parametrize("shape", [(64, 256), (16, 48), (7, 5)])
def test_every_coordinate_is_added_once_with_a_sign(shape):
    size = shape[0] * shape[1]
    units = torch.eye(size).view(size, *shape)
    images = sketch(units[:: max(size // 300, 1)])
    assert images.shape[1] == SKETCH
    assert (images.abs().sum(dim=1) == 1).all()
    assert {-1.0, 1.0} <= set(images.unique().tolist())


def test_it_is_linear_and_the_same_every_time():
    a, b = torch.randn(2, 1, 64, 256)
    torch.testing.assert_close(sketch(a + 2 * b), sketch(a) + 2 * sketch(b), rtol=1e-4, atol=1e-4)
    assert torch.equal(sketch(a), sketch(a))
    # Part of the format: stored sketches are compared with those of later versions.
    ramp = sketch((torch.arange(64 * 256, dtype=torch.float32) / 1000).view(1, 64, 256))[0]
    torch.testing.assert_close(ramp[:4], torch.tensor(RAMP), rtol=1e-5, atol=1e-4)


RAMP = [-24.237999, 9.123001, -42.256998, 10.512001]


def test_squared_distances_deviate_by_three_percent():
    a, b = torch.randn(200, 64, 256), torch.randn(200, 64, 256)
    true = (a - b).flatten(1).pow(2).sum(dim=1)
    ratio = (sketch(a) - sketch(b)).pow(2).sum(dim=1) / true
    assert ratio.mean().item() == pytest.approx(1.0, abs=0.01)
    assert ratio.std().item() == pytest.approx((2 / SKETCH) ** 0.5, rel=0.25)


def test_half_precision_latents():
    tokens = torch.randn(3, 64, 256)
    assert sketch(tokens.half()).dtype == torch.float32
    torch.testing.assert_close(sketch(tokens.half()), sketch(tokens), rtol=0, atol=0.02)
