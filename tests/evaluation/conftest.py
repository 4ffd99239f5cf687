"""Small models with random weights everywhere, so that images and actions both matter."""

import pytest
import torch

from iwm.world_model import WorldModel


@pytest.fixture
def make_model(tiny_config):
    """`make_model(layout, conditioning, encoding)`: a world model of 4 x 4 patches."""

    def build(layout="inplace", conditioning="adaln", encoding="pair"):
        torch.manual_seed(1)
        model = WorldModel(tiny_config(layout, conditioning, encoding))
        for part, size in ((model.encoder, 0.1), (model.predictor, 0.4)):
            for parameter in part.parameters():
                parameter.data.add_(torch.randn_like(parameter), alpha=size)
        return model

    return build


@pytest.fixture
def model(make_model):
    return make_model()
