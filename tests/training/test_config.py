"""Ranges of the training configuration."""

import math

import pytest

from iwm.errors import InvalidConfigError
from iwm.training.config import DataConfig, OptimConfig, RunConfig


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (DataConfig, "crop_scale", (0.0, 1.0)),
        (DataConfig, "crop_scale", (0.8, 0.3)),
        (DataConfig, "crop_scale", (0.3, 1.1)),
        (DataConfig, "crop_aspect", (0.0, 1.0)),
        (DataConfig, "crop_aspect", (1.2, 1.1)),
        (DataConfig, "flip", -0.1),
        (DataConfig, "flip", 1.1),
        (DataConfig, "flip", math.nan),
        (DataConfig, "workers", -1),
        (DataConfig, "workers", 257),
        (OptimConfig, "lr", 0.0),
        (OptimConfig, "lr", math.nan),
        (OptimConfig, "lr_start", -1e-5),
        (OptimConfig, "lr_start", 2e-3),
        (OptimConfig, "warmup", 1.5),
        (OptimConfig, "stretch", 0.9),
        (OptimConfig, "clip", -1.0),
        (RunConfig, "steps", 0),
        (RunConfig, "batch_size", 0),
        (RunConfig, "log_every", 0),
        (RunConfig, "checkpoint_every", 0),
        (RunConfig, "accumulate", 0),
        (RunConfig, "monitor_every", -1),
        (RunConfig, "seed", -1),
        (RunConfig, "seed", 2**63),
    ],
)
def test_value_out_of_range_is_refused_by_name(kind, field, value):
    with pytest.raises(
        InvalidConfigError, match=rf"{field} is {value}".replace("(", r"\(").replace(")", r"\)")
    ):
        kind(**{field: value})


def test_defaults_are_the_papers():
    data, optim = DataConfig(), OptimConfig()
    assert (data.crop_scale, data.flip) == ((0.3, 1.0), 0.5)
    assert (optim.lr, optim.betas, optim.stretch) == (1e-3, (0.9, 0.999), 1.25)
    assert (optim.weight_decay, optim.weight_decay_end) == (0.04, 0.4)
    assert optim.warmup * 300 == pytest.approx(40)


def test_an_unknown_field_is_an_error():
    with pytest.raises(TypeError, match="learning_rate"):
        OptimConfig(learning_rate=1e-3)
