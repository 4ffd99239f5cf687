"""A fixed seed and a small configuration, shared by all tests."""

from collections.abc import Callable

import pytest
import torch

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
