"""Configurations: validation, and the way to JSON and back."""

import dataclasses
import json
import math

import pytest

from iwm.config import (
    FORMAT,
    STRENGTHS,
    ActionConfig,
    EncoderConfig,
    PhotometryDistribution,
    PredictorConfig,
    PreprocessConfig,
    WorldModelConfig,
)
from iwm.errors import InvalidConfigError
from iwm.fields import from_dict, to_json

CUSTOM = WorldModelConfig(
    name="mine",
    encoder=EncoderConfig(width=64, depth=3, heads=4, patch_size=8, image_size=64, mlp_ratio=2.5),
    predictor=PredictorConfig(width=32, depth=5, layout="inplace", conditioning="adaln"),
    actions=ActionConfig(
        encoding="pair", distribution=STRENGTHS["strong"].replace(blur_sigma=(0.5, 3.0)), symmetric=True
    ),
    preprocess=PreprocessConfig(size=64, resize=72, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
    license="CC-BY-4.0",
    recipe={"steps": 10, "nested": {"list": [1, 2.5, None, "x"]}},
    metrics={"mrr": 0.5},
)


@pytest.mark.parametrize("config", [WorldModelConfig(), CUSTOM])
def test_json_round_trip(config):
    text = config.to_json()
    assert WorldModelConfig.from_json(text) == config
    assert WorldModelConfig.from_json(text.encode()) == config
    assert text.endswith("}\n")
    assert json.loads(text)["format"] == FORMAT


def test_round_trip_restores_tuples():
    restored = WorldModelConfig.from_json(CUSTOM.to_json())
    assert restored.actions.distribution.blur_sigma == (0.5, 3.0)
    assert hash(restored.preprocess) == hash(CUSTOM.preprocess)


def test_missing_fields_take_their_defaults():
    config = WorldModelConfig.from_json('{"encoder": {"depth": 2}}')
    assert config == WorldModelConfig(encoder=EncoderConfig(depth=2))


def test_nested_dataclass_alone():
    distribution = PhotometryDistribution(hue=0.3)
    assert from_dict(PhotometryDistribution, json.loads(to_json(distribution))) == distribution


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"encoder": {"widht": 64}}, 'No field "encoder.widht". Did you mean "encoder.width"'),
        ({"predictr": {}}, 'No field "predictr". Did you mean "predictor"?'),
        (
            {"actions": {"distribution": {"hues": 0.1}}},
            'No field "actions.distribution.hues". Did you mean "actions.distribution.hue"',
        ),
        ({"encoder": 3}, "encoder must hold fields, not 3."),
        ({"actions": {"distribution": [1]}}, "actions.distribution must hold fields, not [1]."),
        ({"encoder": {"width": "wide"}}, "encoder.width is 'wide': "),
        ({"encoder": {"depth": 2.5}}, "encoder.depth is 2.5: "),
        ({"encoder": {"depth": None}}, "encoder.depth is None: "),
        ({"predictor": {"layout": "apend"}}, "predictor.layout is 'apend': "),
        ({"predictor": {"conditioning": "sequnce"}}, "predictor.conditioning is 'sequnce': "),
        ({"actions": {"encoding": "both"}}, "actions.encoding is 'both': "),
        ({"actions": {"distribution": {"hue": []}}}, "actions.distribution.hue is []: "),
        ({"actions": {"distribution": {"blur_sigma": [1.0]}}}, "actions.distribution.blur_sigma.1"),
        ({"preprocess": {"mean": [0.5, "a", 0.5]}}, "preprocess.mean.1 is 'a': "),
        ({"name": 3}, "name is 3: "),
        ({"encoder": {"width": 0}}, "encoder.width is 0; it must be 1 to 16384."),
    ],
)
def test_from_dict_names_the_field_at_fault(data, message):
    with pytest.raises(InvalidConfigError) as caught:
        from_dict(WorldModelConfig, data)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"encoder": {"width": "64"}}, "encoder.width is '64': Input should be a valid integer"),
        ({"encoder": {"width": 64.0}}, "encoder.width is 64.0: Input should be a valid integer"),
        ({"encoder": {"depth": True}}, "encoder.depth is True: Input should be a valid integer"),
        ({"encoder": {"mlp_ratio": "2"}}, "encoder.mlp_ratio is '2': Input should be a valid number"),
        ({"predictor": {"mlp_ratio": False}}, "predictor.mlp_ratio is False: Input should be a valid number"),
        ({"actions": {"symmetric": "true"}}, "actions.symmetric is 'true': Input should be a valid boolean"),
        ({"actions": {"symmetric": 1}}, "actions.symmetric is 1: Input should be a valid boolean"),
        (
            {"actions": {"distribution": {"blur_sigma": [0.5, "2"]}}},
            "actions.distribution.blur_sigma.1 is '2': Input should be a valid number",
        ),
        ({"license": None}, "license is None: Input should be a valid string"),
    ],
)
def test_types_are_strict(data, message):
    with pytest.raises(InvalidConfigError) as caught:
        from_dict(WorldModelConfig, data)
    assert str(caught.value) == message


def test_whole_numbers_are_floats_too():
    config = from_dict(WorldModelConfig, {"encoder": {"mlp_ratio": 2}, "preprocess": {"mean": [0, 0.5, 1]}})
    assert (config.encoder.mlp_ratio, config.preprocess.mean) == (2.0, (0.0, 0.5, 1.0))
    assert {type(value) for value in (config.encoder.mlp_ratio, *config.preprocess.mean)} == {float}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"encoder": {"width": 0}}, "encoder.width is 0; it must be 1 to 16384."),
        ({"predictor": {"width": 66}}, "predictor.width 66 must be divisible by 4."),
        (
            {"actions": {"distribution": {"hue": 0.6}}},
            "jitter strength hue is 0.6; it must be 0 to 0.5.",
        ),
        (
            {"preprocess": {"size": 230}},
            "preprocess.size 230 is not divisible by encoder.patch_size (16); use 224.",
        ),
    ],
)
def test_impossible_values_are_told_in_one_sentence(data, message):
    with pytest.raises(InvalidConfigError) as caught:
        from_dict(WorldModelConfig, data)
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "null", b"\xff\xfe\x00", '{"name": tiny}'])
def test_not_a_json_object(text):
    with pytest.raises(InvalidConfigError, match=r"config\.json"):
        WorldModelConfig.from_json(text)


@pytest.mark.parametrize(
    "extra", [{}, {"field_of_tomorrow": 1}, {"encoder": {"rotary": True}}, {"encoder": "vit"}]
)
def test_newer_format_asks_for_an_update(extra):
    text = json.dumps({"format": FORMAT + 1} | extra)
    with pytest.raises(InvalidConfigError, match="pip install --upgrade iwm"):
        WorldModelConfig.from_json(text)


@pytest.mark.parametrize("version", [0, -1, 1.5, "new", None])
def test_impossible_format(version):
    with pytest.raises(InvalidConfigError, match="format"):
        WorldModelConfig.from_json(json.dumps({"format": version}))


@pytest.mark.parametrize(
    ("cls", "changes", "message"),
    [
        (EncoderConfig, {"width": 0}, "width is 0"),
        (EncoderConfig, {"depth": -1}, "depth is -1"),
        (EncoderConfig, {"depth": 99999}, "depth is 99999"),
        (EncoderConfig, {"heads": 5}, r"divisible by 4 and by heads \(5\)"),
        (EncoderConfig, {"width": 30, "heads": 5}, "width 30 must be divisible by 4"),
        (EncoderConfig, {"image_size": 230}, "230 is not divisible by patch_size 16; use 224"),
        (EncoderConfig, {"image_size": 10}, "10 is not divisible by patch_size 16; use 16"),
        (EncoderConfig, {"mlp_ratio": 0.0}, r"mlp_ratio is 0\.0"),
        (EncoderConfig, {"mlp_ratio": math.nan}, "mlp_ratio is nan"),
        (PredictorConfig, {"width": 66}, "width 66 must be divisible by 4"),
        (PredictorConfig, {"depth": 0}, "depth is 0"),
        (PredictorConfig, {"mlp_ratio": 17.0}, r"mlp_ratio is 17\.0"),
        (PhotometryDistribution, {"contrast": -0.1}, r"contrast is -0\.1"),
        (PhotometryDistribution, {"saturation": 11.0}, r"saturation is 11\.0"),
        (PhotometryDistribution, {"brightness": math.nan}, "brightness is nan"),
        (PhotometryDistribution, {"hue": 0.6}, r"hue is 0\.6; it must be 0 to 0\.5"),
        (PhotometryDistribution, {"blur_probability": 1.5}, r"blur_probability is 1\.5"),
        (PhotometryDistribution, {"jitter_probability": -0.5}, r"jitter_probability is -0\.5"),
        (PhotometryDistribution, {"blur_sigma": (0.0, 1.0)}, "0 < low <= high"),
        (PhotometryDistribution, {"blur_sigma": (2.0, 1.0)}, "0 < low <= high"),
        (PreprocessConfig, {"size": 0, "resize": 0}, "size is 0"),
        (PreprocessConfig, {"size": 224, "resize": 200}, "resize is 200; it must be 224 to 896"),
        (PreprocessConfig, {"size": 32, "resize": 129}, "resize is 129"),
        (PreprocessConfig, {"std": (0.2, 0.0, 0.2)}, "every value must be positive"),
        (WorldModelConfig, {"predictor": PredictorConfig(width=100)}, r"divisible by encoder\.heads \(12\)"),
        (
            WorldModelConfig,
            {"preprocess": PreprocessConfig(size=230)},
            r"not divisible by encoder\.patch_size",
        ),
        (WorldModelConfig, {"format": FORMAT + 1}, "pip install --upgrade iwm"),
    ],
)
def test_impossible_values(cls, changes, message):
    with pytest.raises(InvalidConfigError, match=message):
        cls(**changes)


@pytest.mark.parametrize("cls", [EncoderConfig, PhotometryDistribution, PreprocessConfig, WorldModelConfig])
def test_frozen_and_keyword_only(cls):
    config = cls()
    name = dataclasses.fields(cls)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, getattr(config, name))
    with pytest.raises(TypeError):
        cls(getattr(config, name))


def test_replace_validates():
    assert CUSTOM.replace(name="other").name == "other"
    assert CUSTOM.name == "mine"
    with pytest.raises(InvalidConfigError):
        CUSTOM.replace(preprocess=PreprocessConfig(size=60))
    with pytest.raises(InvalidConfigError):
        STRENGTHS["paper"].replace(hue=1.0)


def test_strengths_are_the_papers():
    paper, strong = STRENGTHS["paper"], STRENGTHS["strong"]
    assert (paper.brightness, paper.contrast, paper.saturation, paper.hue) == (0.4, 0.4, 0.2, 0.1)
    assert (strong.brightness, strong.contrast, strong.saturation, strong.hue) == (0.5, 0.5, 0.4, 0.2)
    for s in (paper, strong):
        assert (s.jitter_probability, s.grayscale_probability) == (0.8, 0.2)
        assert (s.blur_probability, s.solarize_probability, s.blur_sigma) == (0.2, 0.2, (0.1, 2.0))


def test_without_destructive_keeps_the_jitter():
    strong = STRENGTHS["strong"]
    jitter = strong.without_destructive()
    assert (jitter.grayscale_probability, jitter.blur_probability, jitter.solarize_probability) == (0, 0, 0)
    assert jitter.replace(
        grayscale_probability=0.2, blur_probability=0.2, solarize_probability=0.2
    ) == strong  # fmt: skip


def test_grid():
    assert EncoderConfig(image_size=224, patch_size=16).grid == 14
    assert CUSTOM.encoder.grid == 8
