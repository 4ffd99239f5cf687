"""A fixed seed and a small configuration, shared by all tests."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from iwm.config import (
    ActionConfig,
    ActionEncoding,
    Conditioning,
    EncoderConfig,
    Layout,
    PredictorConfig,
    PreprocessConfig,
    WorldModelConfig,
)


def _tiny_config(
    layout: Layout = "inplace", conditioning: Conditioning = "adaln", encoding: ActionEncoding = "pair"
) -> WorldModelConfig:
    return WorldModelConfig(
        name="tiny",
        encoder=EncoderConfig(width=48, depth=2, heads=4, patch_size=8, image_size=32, mlp_ratio=2.0),
        predictor=PredictorConfig(width=32, depth=2, layout=layout, conditioning=conditioning, mlp_ratio=2.0),
        actions=ActionConfig(encoding=encoding),
        preprocess=PreprocessConfig(size=32, resize=36),
    )


@pytest.fixture
def tiny_config() -> Callable[..., WorldModelConfig]:
    """`tiny_config(layout=..., conditioning=..., encoding=...)`: a model of 4 x 4 patches of 8 pixels."""
    return _tiny_config


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Twelve JPEGs of smooth random colours in two subfolders; the path has a space in it."""
    folder = tmp_path_factory.mktemp("my photos")
    for i in range(12):
        coarse = np.random.default_rng(i).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        path = folder / f"class{i % 2}" / f"{i:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(coarse).resize((50, 40), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder
