"""Edits taken back in pixels, and what is said about those that cannot be."""

import numpy as np
import pytest
import torch
from PIL import Image

from iwm.actions import Action, Photometry
from iwm.errors import InvalidActionError, InvalidImageError
from iwm.restoring import restore

JITTER = Photometry(brightness=0.8, contrast=1.1, saturation=0.7, hue=0.12)


@pytest.fixture(scope="module")
def pixels():
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return 0.3 + 0.3 * torch.nn.functional.interpolate(coarse, size=20, mode="bicubic").clamp(0, 1)


def edited(pixels, photometry):
    return Action.between(Photometry(), photometry).apply(pixels)


def test_jitter_comes_back_exactly_where_nothing_was_clipped(pixels):
    restored = restore(edited(pixels, JITTER), JITTER)
    torch.testing.assert_close(restored.image, pixels, atol=1e-5, rtol=0)
    assert (restored.undone, restored.lost) == (JITTER, ())


def test_eight_bits_come_back_but_for_rounding(pixels):
    photo = (pixels[0].permute(1, 2, 0).numpy() * 255).round().astype("uint8")
    back = restore(edited(photo, JITTER), JITTER).image
    assert isinstance(back, np.ndarray)
    assert np.abs(back.astype(int) - photo).max() <= 4
    assert isinstance(restore(Image.fromarray(photo), JITTER).image, Image.Image)


def test_what_has_no_inverse_is_said_and_left(pixels):
    blurred = Photometry(brightness=0.8, blur=1.0)
    seen = edited(pixels, blurred)
    restored = restore(seen, blurred)
    torch.testing.assert_close(restored.image, seen / 0.8)
    assert restored.lost == ("blur: fine detail is gone",)
    gray = Photometry(grayscale=True, brightness=0.8, hue=0.1, saturation=0.5)
    restored = restore(edited(pixels, gray), gray)
    assert restored.undone == Photometry(brightness=0.8)
    assert restored.lost == ("grayscale: the colours are gone",)
    solarized = Photometry(solarize=True, brightness=0.8)
    restored = restore(pixels, solarized)
    assert torch.equal(restored.image, pixels)
    assert restored.undone.is_clean
    assert restored.lost == ("solarize: two values became one", "brightness: what solarize did hides it")
    solarized = Photometry(solarize=True, brightness=0.8, contrast=1.1, hue=0.1)
    assert restore(pixels, solarized).lost[1] == "brightness, contrast, hue: what solarize did hides it"
    assert restore(pixels, Photometry(solarize=True)).lost == ("solarize: two values became one",)


@pytest.mark.parametrize("photometry", [Photometry(), Photometry(blur=1.0)])
def test_what_comes_back_is_a_copy(pixels, photometry):
    restored = restore(pixels, photometry).image
    assert torch.equal(restored, pixels)
    assert restored.data_ptr() != pixels.data_ptr()


def test_colour_that_a_factor_took(pixels):
    restored = restore(pixels, Photometry(saturation=0.0, brightness=0.5))
    assert restored.undone == Photometry(brightness=0.5)
    assert restored.lost == ("saturation 0: the colours are gone",)
    with pytest.raises(InvalidActionError, match="contrast is 0: nothing of the image is left"):
        restore(pixels, Photometry(contrast=0.0))
    with pytest.raises(InvalidImageError):
        restore("photo.jpg", JITTER)
    with pytest.raises(InvalidActionError, match=r"Expected iwm\.Photometry, got Action\. .*action\.target"):
        restore(pixels, Action())
    with pytest.raises(InvalidActionError, match=r"Expected iwm\.Photometry, got NoneType\.$"):
        restore(pixels, None)
