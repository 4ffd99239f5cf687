"""Uploaded files: decoded and encoded once, or refused in words."""

import io

import pytest
import torch
from PIL import Image

from iwm.errors import InvalidImageError
from iwm.ui.photo import encode_photo, read_photo


def file_of(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, format=kind)
    return file.getvalue()


def test_a_file_is_what_the_model_reads(acting_model, colours):
    photo = read_photo(acting_model, file_of(colours), "colours.png")
    assert torch.equal(photo.latent.tokens, acting_model.encode(colours).tokens)
    assert photo.picture.size == (32, 32)
    assert torch.equal(photo.latent.tokens, encode_photo(acting_model, photo.pixels, "").latent.tokens)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "holiday.jpg is empty"),
        (b"Dear diary, today I took no photograph.", "Cannot read holiday.jpg as an image: no format"),
        (file_of(Image.effect_noise((64, 64), 90), "JPEG")[:900], "Cannot read holiday.jpg as an image"),
        (
            file_of(Image.new("1", (10_000, 10_000))),
            r"holiday.jpg has more than [\d,]+ pixels; make it smaller",
        ),
    ],
    ids=["empty", "text", "cut off", "100 megapixels"],
)
def test_what_cannot_be_read_says_so_by_its_name(acting_model, data, words):
    with pytest.raises(InvalidImageError, match=words):
        read_photo(acting_model, data, "holiday.jpg")
