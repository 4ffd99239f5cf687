"""What a config may ask for, and how many parameters it says a model has."""

import dataclasses
import itertools
import json
import re
import resource
import time
import tracemalloc

import pytest
import torch
from safetensors.torch import save_file

from iwm.config import (
    MAX_DEPTH,
    MAX_GRID,
    MAX_PARAMETERS,
    ActionConfig,
    EncoderConfig,
    PredictorConfig,
    PreprocessConfig,
    WorldModelConfig,
)
from iwm.errors import IncompatibleWeightsError, InvalidConfigError, quoted
from iwm.model_folder import max_weight_bytes
from iwm.world_model import WorldModel
from iwm.zoo import ZOO

CUSTOM = WorldModelConfig(
    encoder=EncoderConfig(width=64, depth=3, heads=4, patch_size=8, image_size=64, mlp_ratio=2.5),
    predictor=PredictorConfig(width=32, depth=5),
    preprocess=PreprocessConfig(size=64, resize=72),
)


@pytest.mark.parametrize(
    ("cls", "changes", "message"),
    [
        (EncoderConfig, {"depth": MAX_DEPTH + 1}, "encoder.depth is 1025; it must be 1 to 1024."),
        (PredictorConfig, {"depth": MAX_DEPTH + 1}, "predictor.depth is 1025; it must be 1 to 1024."),
        (EncoderConfig, {"heads": 16385, "width": 4}, "encoder.heads is 16385; it must be 1 to 16384."),
        (
            EncoderConfig,
            {"image_size": 2**40, "patch_size": 16},
            "encoder.image_size is 1099511627776; it must be",
        ),
        (
            EncoderConfig,
            {"image_size": 16 * (MAX_GRID + 1)},
            "encoder.image_size makes 257 patches a side; use 256.",
        ),
        (
            WorldModelConfig,
            {"preprocess": PreprocessConfig(size=16 * (MAX_GRID + 1), resize=16 * (MAX_GRID + 1))},
            "preprocess.size makes 257 patches a side; use 256 at most.",
        ),
        (
            WorldModelConfig,
            {"encoder": EncoderConfig(width=16384, depth=4, heads=16)},
            "The config asks for 12,943,341,696 parameters; 10,000,000,000 are allowed.",
        ),
    ],
)
def test_limits(cls, changes, message):
    with pytest.raises(InvalidConfigError) as caught:
        cls(**changes)
    assert message in str(caught.value)


def test_what_the_limits_allow(monkeypatch):
    side = 16 * MAX_GRID
    WorldModelConfig(
        encoder=EncoderConfig(width=12, depth=MAX_DEPTH, image_size=side),
        predictor=PredictorConfig(width=12, depth=MAX_DEPTH), preprocess=PreprocessConfig(size=side, resize=side),
    )  # fmt: skip
    assert CUSTOM.parameters < MAX_PARAMETERS
    monkeypatch.setattr("iwm.config.MAX_PARAMETERS", CUSTOM.parameters)
    assert CUSTOM.replace() == CUSTOM
    monkeypatch.setattr("iwm.config.MAX_PARAMETERS", CUSTOM.parameters - 1)
    with pytest.raises(InvalidConfigError, match="parameters"):
        CUSTOM.replace()


@pytest.mark.parametrize("name", ["a", "A.b-c_D", "0", "a" * 96])
def test_names(name):
    assert WorldModelConfig(name=name).name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../a",
        "/etc",
        "a/b",
        "a\\b",
        "C:a",
        ".a",
        "-a",
        "~",
        "a b",
        "a\n",
        "a\x1b[0m",
        "ü",
        "aü",
        "²",
        "a" * 97,
    ],
)
def test_a_name_is_no_path(name):
    with pytest.raises(InvalidConfigError) as caught:
        WorldModelConfig(name=name)
    said = quoted(repr(name))
    assert (
        str(caught.value) == f"name is {said}; use letters, digits, dots and dashes: it must not be a path."
    )


@pytest.mark.parametrize("text", ["", "CC-BY 4.0 / für alle (©)", "x" * 1000])
def test_licences(text):
    assert WorldModelConfig(license=text).license == text


@pytest.mark.parametrize(
    "text", ["\x1b[31m", "a\nb", "a\r", "\x00", "\x7f", "\x9b", "\u202e", "\u2028", "x" * 1001]
)
def test_a_licence_is_one_line_that_can_be_printed(text):
    with pytest.raises(InvalidConfigError, match=r"^license is .*; use one line of text\.$") as caught:
        WorldModelConfig(license=text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("version", ["9" * 5000, "2", "٣", True, [2], 2.0])
def test_a_format_of_another_type(version):
    with pytest.raises(InvalidConfigError, match=r"^format is "):
        WorldModelConfig.from_json(json.dumps({"format": version}))


def check_counts(config):
    """The counts are those of the model, which is built without memory."""
    with torch.device("meta"):
        model = WorldModel(config)
    built = tuple(sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.predictor))
    assert config.counts == built
    assert config.parameters == sum(built) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("ratios", [(4.0, 4.0), (2.5, 3.3)])
@pytest.mark.parametrize(
    ("layout", "conditioning", "encoding"),
    list(itertools.product(("append", "inplace"), ("feature", "adaln", "none"), ("pair", "difference"))),
)
def test_parameters_are_counted_without_building(layout, conditioning, encoding, ratios):
    check_counts(
        CUSTOM.replace(
            encoder=dataclasses.replace(CUSTOM.encoder, mlp_ratio=ratios[0]),
            predictor=PredictorConfig(
                width=36, depth=5, layout=layout, conditioning=conditioning, mlp_ratio=ratios[1]
            ),
            actions=ActionConfig(encoding=encoding),
        )
    )


@pytest.mark.parametrize("positions", ["sincos", "learned"])
@pytest.mark.parametrize(("side", "conditioning"), [(64, "sequence"), (32, "feature"), (8, "adaln")])
def test_learned_positions_are_counted_too(positions, side, conditioning):
    encoder = dataclasses.replace(CUSTOM.encoder, positions=positions, image_size=side)
    config = CUSTOM.replace(
        encoder=encoder, predictor=PredictorConfig(width=36, depth=2, conditioning=conditioning)
    )
    check_counts(config)
    plain = config.replace(encoder=dataclasses.replace(encoder, positions="sincos"))
    more = (side // 8) ** 2 * 64 if positions == "learned" else 0
    assert config.parameters - plain.parameters == config.counts[0] - plain.counts[0] == more
    assert WorldModelConfig.from_json(config.to_json()) == config


def test_positions_are_of_two_kinds():
    with pytest.raises(InvalidConfigError, match=r'encoder\.positions is "learnt"\. Did you mean "learned"'):
        EncoderConfig(positions="learnt")
    written = json.loads(CUSTOM.to_json())
    del written["encoder"]["positions"]  # As versions before have written it.
    assert WorldModelConfig.from_json(json.dumps(written)) == CUSTOM


def test_a_model_of_learned_positions_keeps_them_on_the_disk(tmp_path):
    encoder = dataclasses.replace(CUSTOM.encoder, positions="learned", image_size=32)
    model = WorldModel(CUSTOM.replace(encoder=encoder))
    torch.nn.init.normal_(model.encoder.position_table)
    model.save_pretrained(tmp_path)
    loaded = WorldModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.encoder.position_table, model.encoder.position_table.half().float())
    assert loaded.space == model.space
    with torch.no_grad():
        loaded.encoder.position_table[3] += 0.1
    assert loaded.space != model.space


@pytest.mark.parametrize("name", list(ZOO))
def test_parameters_of_every_entry(name):
    check_counts(ZOO[name].config)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("iwm-equi-18-384", 118.6), ("iwm-equi-12-384", 108.0), ("iwm-inv-12-384", 108.0),
        ("iwm-equi-36-512", 418.4), ("iwm-inv-18-384-l16", 336.3),
    ],
)  # fmt: skip
def test_parameters_of_the_papers_models(name, millions):
    assert ZOO[name].config.parameters / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    "config",
    [
        CUSTOM,
        ZOO["iwm-tiny"].config,
        # Many small tensors: their names take more room than their values.
        WorldModelConfig(
            encoder=EncoderConfig(width=4, depth=200, heads=1), predictor=PredictorConfig(width=4, depth=200)
        ),
    ],
    ids=["custom", "tiny", "deep"],
)
def test_a_float32_file_is_not_larger_than_its_config_allows(config, tmp_path):
    with torch.device("meta"):
        state = WorldModel(config).state_dict()
    save_file({name: torch.zeros(tensor.shape) for name, tensor in state.items()}, tmp_path / "model")
    size = (tmp_path / "model").stat().st_size
    assert 4 * config.parameters < size <= max_weight_bytes(config)
    assert 8 * config.parameters <= max_weight_bytes(config) <= 8 * config.parameters + 2**20


def test_a_terabyte_is_refused_before_it_is_allocated(tmp_path):
    greedy = {
        "encoder": {"width": 16384, "depth": 1024, "heads": 1, "mlp_ratio": 16.0},
        "predictor": {"width": 16384, "depth": 1024, "mlp_ratio": 16.0},
    }
    (tmp_path / "config.json").write_text(json.dumps(greedy))
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(
        InvalidConfigError, match=r"asks for [\d,]{17,} parameters; 10,000,000,000 are allowed"
    ):
        WorldModel.from_pretrained(tmp_path)
    assert time.perf_counter() - start < 10
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_large_model_without_its_weights_takes_no_memory(tmp_path):
    side = 16 * MAX_GRID
    largest = WorldModelConfig(
        encoder=EncoderConfig(width=16384, depth=3, heads=16, image_size=side),
        preprocess=PreprocessConfig(size=side, resize=side),
    )
    assert 0.9 * MAX_PARAMETERS < largest.parameters <= MAX_PARAMETERS
    (tmp_path / "config.json").write_text(largest.to_json())
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(IncompatibleWeightsError, match="does not fit the model"):
        WorldModel.from_pretrained(tmp_path)
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    )  # Kilobytes; weights have 40 GB.


LONG = "\x1b[2J" * 200_000
DIGITS = int("7" * 4000)


@pytest.mark.parametrize(
    "fields",
    [
        {LONG: 1},
        {"encoder": {LONG: 1}},
        {"actions": {"distribution": {LONG: 1}}},
        {"encoder": LONG},
        {"encoder": {"width": LONG}},
        {"encoder": {"width": DIGITS}},
        {"encoder": {"heads": -DIGITS}},
        {"predictor": {"layout": LONG}},
        {"preprocess": {"size": DIGITS}},
        {"preprocess": {"mean": [1] * 100_000}},
        {"actions": {"encoding": [LONG]}},
        {"name": LONG},
        {"license": LONG},
        {"license": {LONG: LONG}},
        {"recipe": [LONG]},
        {"metrics": LONG},
        {"format": DIGITS},
        {"format": -DIGITS},
        {"format": LONG},
    ],
    ids=lambda fields: re.sub(r"[^a-z]+", " ", str(fields)[:60]),
)
def test_a_strangers_words_stay_short_and_printable(fields):
    with pytest.raises(InvalidConfigError) as caught:
        WorldModelConfig.from_json(json.dumps(fields))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def nested(depth):
    """A config whose recipe is this deep."""
    return '{"recipe": ' + '{"a": ' * depth + "1" + "}" * (depth + 1)


@pytest.mark.parametrize("depth", [1, 50, 100, 150])
def test_nested_values_are_read(depth):
    config = WorldModelConfig.from_json(nested(depth))
    assert WorldModelConfig.from_json(config.to_json()) == config


def test_values_that_are_nested_too_deeply_are_refused():
    for depth in (300, 500, *range(850, 1010), 2000, 10_000, 100_000):  # Every limit is met by one of them.
        with pytest.raises(InvalidConfigError) as caught:
            WorldModelConfig.from_json(nested(depth))
        assert len(str(caught.value)) < 500
