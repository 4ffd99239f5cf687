"""The pretraining configuration: ranges, JSON, copies."""

import json

import pytest

from iwm.config import EncoderConfig, PreprocessConfig, WorldModelConfig
from iwm.errors import InvalidConfigError
from iwm.fields import from_dict, to_json
from iwm.pretraining.config import MaskConfig, PretrainConfig
from iwm.training.config import OptimConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("blocks", 0),
        ("blocks", 65),
        ("scale", (0.0, 0.2)),
        ("scale", (0.2, 0.1)),
        ("scale", (0.5, 1.0)),
        ("aspect", (0.0, 1.0)),
        ("aspect", (1.5, 1.0)),
        ("unmasked", -0.1),
        ("unmasked", 1.1),
    ],
)
def test_mask_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(InvalidConfigError, match=rf"masks\.{field} is "):
        MaskConfig(**{field: value})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ema": 1.1}, "ema is 1.1"),
        ({"steps": 0}, "steps is 0"),
        ({"clean": 0.6}, "clean is 0.6; it must be 0 to 0.5"),
    ],
)
def test_run_value_out_of_range_is_refused(changes, words):
    with pytest.raises(InvalidConfigError, match=words):
        PretrainConfig(**changes)


def test_a_grid_of_one_patch_leaves_nothing_to_mask():
    model = WorldModelConfig(
        encoder=EncoderConfig(image_size=16), preprocess=PreprocessConfig(size=16, resize=16)
    )
    with pytest.raises(InvalidConfigError, match="A grid of 1 x 1 patches leaves nothing to mask"):
        PretrainConfig(model=model)


def test_masks_default_to_the_papers():
    masks = MaskConfig()
    assert (masks.blocks, masks.scale, masks.aspect, masks.unmasked) == (4, (0.15, 0.2), (0.75, 1.5), 0.0)


def test_json_round_trip(make_config):
    config = make_config(masks=MaskConfig(blocks=2, unmasked=0.25), optim=OptimConfig(clip=3.0), seed=9)
    assert from_dict(PretrainConfig, json.loads(to_json(config))) == config


def test_replace_changes_one_field_and_validates_it(make_config):
    config = make_config()
    changed = config.replace(ema=0.5)
    assert (changed.ema, changed.replace(ema=config.ema)) == (0.5, config)
    with pytest.raises(InvalidConfigError, match="ema is 2"):
        config.replace(ema=2)


def test_training_size_and_grid_must_agree():
    model = WorldModelConfig(preprocess=PreprocessConfig(size=160, resize=160))
    with pytest.raises(
        InvalidConfigError, match=r"size is 160 and model\.encoder\.image_size 224; .* set both"
    ):
        PretrainConfig(model=model)
