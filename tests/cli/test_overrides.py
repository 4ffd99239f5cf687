"""Dotted options of `iwm pretrain`: how they are read, and what is said of wrong ones."""

import json
import re

import pytest

from iwm.cli.pretrain import parse_overrides, set_dotted
from iwm.errors import InvalidConfigError
from iwm.fields import from_dict, to_json
from iwm.pretraining.config import PretrainConfig
from iwm.pretraining.recipes import RECIPES, find_recipe

RECIPE = json.loads(to_json(find_recipe("iwm-tiny")))


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([], {}),
        (["--optim.lr", "5e-4"], {"optim.lr": 5e-4}),
        (["--optim.lr=5e-4", "--ema", "1"], {"optim.lr": 5e-4, "ema": 1}),
        (["--data.crop-scale", "[0.5, 1]"], {"data.crop_scale": [0.5, 1]}),
        (["--masks.unmasked", "-1"], {"masks.unmasked": -1}),
        (["--model.actions.symmetric", "true"], {"model.actions.symmetric": True}),
        (["--freeze-encoder"], {"freeze_encoder": True}),
        (
            ["--tensorboard", "--ema", "1", "--freeze_encoder"],
            {"tensorboard": True, "ema": 1, "freeze_encoder": True},
        ),
        (
            ["--freeze-encoder", "false", "--tensorboard", "true"],
            {"freeze_encoder": False, "tensorboard": True},
        ),
        (["--freeze-encoder=false"], {"freeze_encoder": False}),
        (["--model.actions.symmetric", "--steps", "3"], {"model.actions.symmetric": True, "steps": 3}),
        (["--init-encoder", "timm:a"], {"init_encoder": "timm:a"}),
        (["--precision", "float32"], {"precision": "float32"}),
        (["--model.license=a=b --c"], {"model.license": "a=b --c"}),
        (["--model.name="], {"model.name": ""}),
        (["--model.name", "123"], {"model.name": "123"}),
        (["--model.name=true", "--model.license", "null"], {"model.name": "true", "model.license": "null"}),
        (["--model.encoder.depth", "fast"], {"model.encoder.depth": "fast"}),
        (["--ema", "0.9", "--ema", "0.8"], {"ema": 0.8}),
    ],
    ids=str,
)
def test_words_become_names_and_values(words, values):
    before, fields = list(words), json.loads(json.dumps(RECIPE))
    found = parse_overrides(words, fields)
    assert found == values
    assert [type(value) for value in found.values()] == [type(value) for value in values.values()]
    assert (words, fields) == (before, RECIPE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photos"], 'Unexpected word "photos"; options look like --optim.lr 5e-4.'),
        (["--ema", "0.9", "0.8"], 'Unexpected word "0.8"; options look like --optim.lr 5e-4.'),
        (["--freeze-encoder", "yes"], 'Unexpected word "yes"; options look like --optim.lr 5e-4.'),
        (["--optim.lr"], "--optim.lr needs a value; options look like --optim.lr 5e-4."),
        (["--optim.lr", "--ema", "1"], "--optim.lr needs a value; options look like --optim.lr 5e-4."),
    ],
)
def test_words_that_are_no_options(words, message):
    with pytest.raises(InvalidConfigError, match=f"^{re.escape(message)}$"):
        parse_overrides(words, RECIPE)


@pytest.mark.parametrize("word", ["b.tar", "photos"])
def test_words_of_a_pattern_that_the_shell_expanded(monkeypatch, tmp_path, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(
        InvalidConfigError, match=rf'^Unexpected word "{word}".* Quote patterns.*; repeat --data for'
    ):
        parse_overrides([word], RECIPE)


@pytest.fixture
def fields():
    return {"steps": 1, "optim": {"lr": 0.1, "betas": [0.9, 0.99]}, "model": {"predictor": {"depth": 2}}}


@pytest.mark.parametrize(
    ("name", "value", "changed"),
    [
        ("steps", 5, {"steps": 5}),
        ("optim.lr", 0.2, {"optim": {"lr": 0.2, "betas": [0.9, 0.99]}}),
        ("optim.betas", [0.5, 0.6], {"optim": {"lr": 0.1, "betas": [0.5, 0.6]}}),
        ("model.predictor.depth", "x", {"model": {"predictor": {"depth": "x"}}}),
    ],
)
def test_a_field_is_set_and_no_other(fields, name, value, changed):
    expected = fields | changed
    set_dotted(fields, name, value)
    assert fields == expected


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("stesp", ' Did you mean "--steps"?'),
        ("optim.lrr", ' Did you mean "--optim.lr"'),
        ("optm.lr", ' Did you mean "--optim.lr"?'),
        ("optim", ' Did you mean "--optim.lr"'),
        ("optim.lr.start", ' Did you mean "--optim.lr"'),
        ("model.predictor", ' Did you mean "--model.predictor.depth"'),
        ("predictor.depth", ' Did you mean "--model.predictor.depth"?'),
        ("lr", ' Did you mean "--optim.lr"?'),
        ("depth", " Choose from: --model.encoder.depth, --model.predictor.depth."),
        ("resme", ' Did you mean "--resume"'),
        ("resume.step", ' Did you mean "--resume"'),
    ],
)
def test_a_name_that_does_not_exist_gets_a_suggestion(fields, name, suggestion):
    fields["model"]["encoder"] = {"depth": 3}
    before = json.loads(json.dumps(fields))
    message = re.escape(f"No option --{name}.{suggestion}")
    for words in ([f"--{name}", "1"], [f"--{name}=1"], [f"--{name}"]):
        with pytest.raises(InvalidConfigError, match=f"^{message}"):
            parse_overrides(words, fields, ["--resume", "--out", "-o"])
    assert fields == before


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_field_of_a_recipe_can_be_set_to_what_it_is(recipe):
    config = find_recipe(recipe)
    fields = json.loads(to_json(config))
    words = []

    def collect(holder, prefix=""):
        for name, value in holder.items():
            if isinstance(value, dict):
                collect(value, f"{prefix}{name}.")
            else:
                words.extend([f"--{prefix}{name}", value if isinstance(value, str) else json.dumps(value)])

    collect(fields)
    assert len(words) > 70
    for name, value in parse_overrides(words, fields).items():
        set_dotted(fields, name, value)
    assert from_dict(PretrainConfig, fields) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.predictor.dept", "4"], r'No option --model\.predictor\.dept\. Did you mean "--model\.predictor\.depth"'),
        (["--batchsize", "4"], r'No option --batchsize\. Did you mean .*"--batch-size"'),
        (["--lr", "1e-3"], r'No option --lr\. Did you mean "--optim\.lr"\?'),
        (["--resme"], r'No option --resme\. Did you mean "--resume"'),
        (["--optim.lr"], r"--optim\.lr needs a value"),
        (["more"], r'Unexpected word "more"'),
        (["--optim.lr", "fast"], r"optim\.lr is 'fast': Input should be a valid number"),
        (["--model.predictor.depth", "1.5"], r"model\.predictor\.depth is 1\.5: Input should be a valid integer"),
        (["--model.predictor.layout", "inplac"], r"model\.predictor\.layout is 'inplac': .*'append' or 'inplace'"),
        (["--precision", "fp8"], r"precision is 'fp8': .*'float32' or 'bf16'"),
        (["--model.encoder.heads", "[2]"], r"model\.encoder\.heads is \[2\]: Input should be a valid integer"),
        (["--optim.lr", "-1"], r"^Error: optim\.lr is -1\.0; it must be positive"),
        (["--optim.lr", "NaN"], r"optim\.lr is nan; it must be positive"),
        (["--model.encoder.heads", "3"], r"^Error: encoder\.width 32 must be divisible by 4 and by heads \(3\)"),
        (["--data.crop_scale", "[0.9, 0.3]"], r"^Error: data\.crop_scale is \(0\.9, 0\.3\); use 0 < low <= high <= 1"),
        (["--ema", "2"], r"^Error: ema is 2\.0; it must be 0 to 1"),
        (["--device", "gpux"], r'Cannot use device "gpux"; try "cpu" or "auto"'),
        (["--recipe", "iwm-tyni"], r'No recipe is called "iwm-tyni"\. Did you mean "iwm-tiny"'),
        (["--data", "nowhere"], r"No such folder: nowhere"),
        (["--data", "nowhere*.tar"], r"--data takes one stream alone, not .*nowhere\*\.tar"),
        (["--init-encoder", "nowhere"], r"No encoder at nowhere\. Name a safetensors file, or timm:<name>"),
        (["--init-encoder", "timm:vit_tyny_patch16_224"], r'no model "vit_tyny_patch16_224".*"vit_tiny_patch16_224"'),
        (["--clean", "2"], r"^Error: clean is 2\.0; it must be 0 to 0\.5"),
        (["--accumulate", "3"], r"batch_size 4 cannot be shared evenly by 1 processes in 3 pieces each"),
        (["--seed", str(2**63)], r"seed is 9223372036854775808; it must be 0 to 2\^63 - 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_run_that_cannot_start_writes_nothing(command, pretrain_words, photos, tmp_path, options, message):
    words = ["pretrain", "--recipe", "iwm-tiny", "--data", photos, "--out", tmp_path / "run"]
    shown = command(*words, *pretrain_words, *options)
    assert shown.code == 1
    assert re.fullmatch(r"Error: .+\n", shown.err)
    assert re.search(message, shown.err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--steps", 0, "(equal to |x>=)1"), ("--batch-size", "many", "valid integer"), ("--seed", -1, "0")],
)  # fmt: skip
def test_plain_options_are_checked_too(command, photos, tmp_path, option, value, message):
    words = ["pretrain", "--recipe", "iwm-tiny", "--data", photos, "--out", tmp_path / "run"]
    shown = command(*words, option, value)
    assert shown.code == 2
    assert f"Invalid value for '{option}'" in shown.words
    assert re.search(message, shown.words)
