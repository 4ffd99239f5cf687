"""Batched pixel operations against torchvision's per-image functions."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv

from iwm import photometry
from iwm.photometry import FIELDS, IDENTITY, transform


def tv_blur(image, sigma):
    size = 2 * math.ceil(4 * sigma) + 1
    return tv.gaussian_blur(image, [size, size], [sigma, sigma])


def tv_switch(operation, image, on):
    return operation(image) if on else image


REFERENCE = {
    "brightness": tv.adjust_brightness,
    "contrast": tv.adjust_contrast,
    "saturation": tv.adjust_saturation,
    "hue": tv.adjust_hue,
    "grayscale": partial(tv_switch, partial(tv.rgb_to_grayscale, num_output_channels=3)),
    "blur": tv_blur,
    "solarize": partial(tv_switch, partial(tv.solarize, threshold=0.5)),
}
OPERATION = {
    "brightness": photometry.adjust_brightness,
    "contrast": photometry.adjust_contrast,
    "saturation": photometry.adjust_saturation,
    "hue": photometry.adjust_hue,
    "grayscale": photometry.grayscale,
    "blur": photometry.gaussian_blur,
    "solarize": photometry.solarize,
}
VALUES = {
    "brightness": [0.0, 0.3, 0.9, 1.4, 2.0, 7.0],
    "contrast": [0.0, 0.4, 0.8, 1.3, 2.5, 9.0],
    "saturation": [0.0, 0.5, 0.9, 1.2, 3.0, 9.0],
    "hue": [-0.5, -0.21, -0.01, 0.05, 0.3, 0.5],
    "grayscale": [1.0, 0.0, 1.0, 0.0, 1.0, 1.0],
    "blur": [0.1, 0.4, 0.77, 1.0, 1.6, 2.0],
    "solarize": [1.0, 1.0, 0.0, 1.0, 0.0, 1.0],
}
MIXED = torch.tensor(
    [
        [1.3, 0.7, 1.4, 0.15, 0.0, 0.9, 1.0],
        [0.6, 1.5, 0.6, -0.2, 1.0, 0.0, 0.0],
        IDENTITY,
        [1.0, 1.0, 1.0, 0.4, 0.0, 2.0, 0.0],
        [1.0, 1.2, 1.0, 0.0, 0.0, 0.3, 1.0],
        IDENTITY,
    ]
)


@pytest.fixture
def images():
    """Noise, a smooth ramp, and the corners of the colour cube: the ties of the hue formula."""
    noise = torch.rand(6, 3, 20, 26)
    noise[1] = torch.linspace(0, 1, 26).expand(3, 20, 26) * torch.tensor([0.9, 0.5, 0.2]).view(3, 1, 1)
    corners = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=3)))
    noise[:, :, 3, :] = corners[:26].T
    noise[3, :, 5:9] = 0.5
    return noise


def reference(images, params):
    """A plain loop over samples, and over the operations in their documented order."""
    out = []
    for image, row in zip(images, params.tolist(), strict=True):
        for name, identity, value in zip(FIELDS, IDENTITY, row, strict=True):
            if value != identity:
                image = REFERENCE[name](image, value)
        out.append(image)
    return torch.stack(out)


def check_close(actual, expected, atol=1e-3):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def column(name, values):
    params = torch.tensor(IDENTITY).repeat(len(values), 1)
    params[:, FIELDS.index(name)] = torch.tensor(values)
    return params


@pytest.mark.parametrize("name", FIELDS)
def test_each_operation_matches_torchvision(images, name):
    values = VALUES[name]
    expected = torch.stack([REFERENCE[name](i, v) for i, v in zip(images, values, strict=True)])
    check_close(OPERATION[name](images, torch.tensor(values)), expected)
    check_close(transform(images, column(name, values)), expected)
    assert (expected - images).abs().max() > 0.1


def test_chain_in_the_documented_order(images):
    assert FIELDS == ("brightness", "contrast", "saturation", "hue", "grayscale", "blur", "solarize")
    check_close(transform(images, MIXED), reference(images, MIXED))


@pytest.mark.parametrize(
    ("first", "second"),
    [("brightness", "contrast"), ("contrast", "saturation"), ("saturation", "hue"), ("hue", "grayscale"),
     ("contrast", "blur"), ("blur", "solarize"), ("grayscale", "solarize")],
)  # fmt: skip
def test_order_of_pairs(images, first, second):
    value = {"brightness": 1.6, "contrast": 1.8, "saturation": 1.9, "hue": 0.3, "blur": 1.2}
    params = column(first, [value.get(first, 1.0)] * 6)
    params[:, FIELDS.index(second)] = value.get(second, 1.0)
    forward = REFERENCE[second](REFERENCE[first](images, value.get(first, 1.0)), value.get(second, 1.0))
    backward = REFERENCE[first](REFERENCE[second](images, value.get(second, 1.0)), value.get(first, 1.0))
    assert (forward - backward).abs().max() > 0.02
    check_close(transform(images, params), forward)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_identity_is_returned_bit_for_bit(images, dtype):
    images = images.to(dtype)
    out = transform(images, torch.tensor(IDENTITY).expand(6, -1))
    assert out.dtype == dtype
    assert torch.equal(out, images)


@pytest.mark.parametrize("name", FIELDS)
def test_identity_inside_a_mixed_batch(images, name):
    values = list(VALUES[name])
    identity = IDENTITY[FIELDS.index(name)]
    values[1] = values[4] = identity
    out = transform(images, column(name, values))
    for i, value in enumerate(values):
        assert torch.equal(out[i], images[i]) == (value == identity)


def test_identity_inside_a_batch_of_everything(images):
    out = transform(images, MIXED)
    assert torch.equal(out[2], images[2])
    assert torch.equal(out[5], images[5])
    assert all((out[i] - images[i]).abs().max() > 0.05 for i in (0, 1, 3, 4))


def test_switched_off_samples_keep_their_bits(images):
    off = torch.tensor([0.0, 1.0] * 3)
    for name in ("grayscale", "solarize", "blur"):
        out = OPERATION[name](images, off)
        assert torch.equal(out[::2], images[::2])
        assert not torch.equal(out[1::2], images[1::2])


def test_batch_equals_one_by_one(images):
    together = transform(images, MIXED)
    alone = torch.cat([transform(images[i : i + 1], MIXED[i : i + 1]) for i in range(6)])
    check_close(together, alone, atol=1e-6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    check_close(transform(images[order], MIXED[order]), together[order], atol=1e-6)


def test_one_photometry_moves_only_its_own_sample(images):
    other = MIXED.clone()
    other[0] = torch.tensor([0.2, 1.9, 0.1, 0.5, 0.0, 5.0, 1.0])
    check_close(transform(images, other)[1:], transform(images, MIXED)[1:], atol=1e-6)


def test_inputs_are_not_changed(images):
    kept, params = images.clone(), MIXED.clone()
    transform(images, params)
    for name in FIELDS:
        OPERATION[name](images, torch.tensor(VALUES[name]))
        transform(images, column(name, VALUES[name]))
    assert torch.equal(images, kept)
    assert torch.equal(params, MIXED)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-6), (torch.float16, 2e-2)])
def test_other_dtypes(images, dtype, atol):
    values = column("saturation", VALUES["saturation"])
    out = transform(images.to(dtype), values)
    assert out.dtype == dtype
    check_close(out.float(), transform(images, values), atol=atol)


@pytest.mark.parametrize("layout", ["channels_last", "permuted", "expanded"])
def test_memory_layouts(images, layout):
    strided = {
        "channels_last": images.contiguous(memory_format=torch.channels_last),
        "permuted": images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        "expanded": images[:1].expand(6, -1, -1, -1),
    }[layout]
    check_close(transform(strided, MIXED), reference(strided, MIXED))


def test_empty_batch():
    assert transform(torch.rand(0, 3, 8, 8), torch.zeros(0, 7)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("factor", [0.0, 2.0, 50.0])
def test_values_stay_in_range(images, factor):
    params = torch.tensor([factor, factor, factor, 0.5, 0.0, 1.0, 1.0]).expand(6, -1)
    out = transform(images, params)
    assert out.min() >= 0
    assert out.max() <= 1


def test_hue_is_a_circle(images):
    half = torch.full((6,), 0.5)
    check_close(photometry.adjust_hue(images, half), photometry.adjust_hue(images, -half), atol=1e-5)
    third = photometry.adjust_hue(images, torch.full((6,), 1 / 3))
    check_close(third, images.roll(1, dims=1), atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(5, 30), (30, 5), (3, 3), (1, 12), (1, 1)])
def test_blur_on_sides_shorter_than_the_kernel(height, width):
    """A loop in float64: what fits of the kernel, renormalised, over mirrored borders."""
    image, sigma = torch.rand(3, height, width), 3.0
    expected = image.double().numpy()
    for axis, side in ((2, width), (1, height)):
        reach = min(math.ceil(4 * sigma), side - 1)
        taps = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1)]
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(expected, pad, mode="reflect")
        expected = sum(
            w / sum(taps) * np.take(padded, range(k, k + side), axis=axis) for k, w in enumerate(taps)
        )
    check_close(
        photometry.gaussian_blur(image[None], torch.tensor([sigma]))[0].double(),
        torch.from_numpy(expected),
        1e-5,
    )


def test_blur_reaches_four_sigma():
    image = torch.zeros(1, 3, 33, 33)
    image[..., 16, 16] = 1.0
    row = photometry.gaussian_blur(image, torch.tensor([2.0]))[0, 0].sum(dim=0)
    assert (row > 0).nonzero().squeeze(1).tolist() == list(range(8, 25))
    assert row.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert (row[18] / row[16]).item() == pytest.approx(math.exp(-0.5), abs=1e-4)


def test_solarize_inverts_from_the_threshold_on():
    image = torch.tensor([0.0, 0.25, 0.499, 0.5, 0.75, 1.0]).expand(1, 3, 1, 6)
    out = photometry.solarize(image, torch.ones(1))
    check_close(out[0, 0, 0], torch.tensor([0.0, 0.25, 0.499, 0.5, 0.25, 0.0]), atol=1e-7)
