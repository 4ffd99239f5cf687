"""From a name or a folder to a model, and the zoo's table."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub_files import check_model, model_files, pinned_entry
from torch.utils.flop_counter import FlopCounterMode

import iwm
from iwm.actions import Action
from iwm.checkpoint import save_model
from iwm.device import resolve_device
from iwm.encoder import Encoder
from iwm.errors import (
    IncompatibleWeightsError,
    InvalidConfigError,
    UnknownModelError,
    UnknownTaskError,
    WeightsUnavailableError,
)
from iwm.finding import list_models
from iwm.loading import load
from iwm.model_folder import read_config
from iwm.pretraining.recipes import find_recipe
from iwm.world_model import WorldModel
from iwm.zoo import DEFAULT, ZOO, find_entry

# Encoder width and depth, predictor depth and width, jitter of the brightness [tables 4, S1, S2, S4].
PAPER = {
    "iwm-equi-18-384": (768, 12, 18, 384, 0.4),
    "iwm-equi-12-384": (768, 12, 12, 384, 0.5),
    "iwm-inv-12-384": (768, 12, 12, 384, 0.4),
    "iwm-equi-36-512": (1024, 24, 36, 512, 0.4),
    "iwm-inv-18-384-l16": (1024, 24, 18, 384, 0.4),
}
NAMES = ["iwm-tiny", "iwm-tiny-inv", *PAPER]
RECIPE_ONLY = [name for name in NAMES if ZOO[name].weights == "recipe only"]
ACTION = Action(brightness=1.5, hue=0.1)


@pytest.fixture
def model(tiny_config):
    return WorldModel(tiny_config())


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def outputs(model, images):
    latent = model.encode(images)
    return latent.tokens.float(), model.apply_action(latent, ACTION).tokens.float()


def check_close(actual, expected, atol):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0)


def test_a_saved_model_gives_what_its_rounded_weights_give(model, folder):
    images = torch.rand(2, 3, 32, 32)
    loaded = WorldModel.from_pretrained(folder)
    check_close(outputs(loaded, images), outputs(model, images), atol=1e-2)
    model.load_state_dict({name: tensor.half().float() for name, tensor in model.state_dict().items()})
    for a, b in zip(outputs(loaded, images), outputs(model, images), strict=True):
        assert torch.equal(a, b)
    assert loaded.config == model.config
    assert loaded.space == model.space
    assert not any(module.training for module in loaded.modules())
    assert {(p.dtype, p.requires_grad) for p in loaded.parameters()} == {(torch.float32, True)}


@pytest.mark.parametrize("name", ["str", "path"])
def test_load_and_from_pretrained_take_folders(folder, name):
    given = str(folder) if name == "str" else folder
    images = torch.rand(1, 3, 32, 32)
    expected = outputs(load(given), images)
    check_close(outputs(WorldModel.from_pretrained(given), images), expected, atol=0)


@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float64, 1e-4), (torch.float16, 0.02), (torch.bfloat16, 0.1)]
)
def test_dtypes_share_one_space(folder, dtype, atol):
    images = torch.rand(2, 3, 32, 32)
    plain, other = load(folder), load(folder, dtype=dtype)
    assert {p.dtype for p in other.parameters()} == {dtype}
    assert other.space == plain.space
    assert other.encode(images).tokens.dtype == dtype
    check_close(outputs(other, images), outputs(plain, images), atol)
    plain.apply_action(other.encode(images), ACTION)


def test_the_student_replaces_the_encoder_alone(model, tmp_path):
    student = Encoder(model.config.encoder, model.config.preprocess)
    save_model(tmp_path, model.config, model, student)
    teacher, loaded = load(tmp_path), load(tmp_path, branch="student")
    for name, tensor in student.state_dict().items():
        assert torch.equal(loaded.encoder.state_dict()[name], tensor.half().float())
    for name, tensor in teacher.predictor.state_dict().items():
        assert torch.equal(loaded.predictor.state_dict()[name], tensor)
    assert loaded.space != teacher.space
    check_close(outputs(load(tmp_path, branch="teacher"), torch.ones(3, 32, 32)),
          outputs(teacher, torch.ones(3, 32, 32)), atol=0)  # fmt: skip


def test_saving_into_its_own_folder_keeps_the_student_of_the_same_teacher_alone(model, tmp_path):
    save_model(tmp_path, model.config, model, Encoder(model.config.encoder, model.config.preprocess))
    loaded = load(tmp_path)
    loaded.save_pretrained(tmp_path)
    assert (tmp_path / "student.safetensors").is_file()
    with torch.no_grad():
        loaded.encoder.patch_embed.proj.bias += 0.5
    loaded.save_pretrained(tmp_path)
    assert not (tmp_path / "student.safetensors").exists()


def test_a_folder_without_a_student(folder):
    with pytest.raises(WeightsUnavailableError, match=r'no student\.safetensors; use branch="teacher"'):
        load(folder, branch="student")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"backend": "torhc"}, InvalidConfigError, 'No backend is called "torhc". Did you mean "torch"'),
        ({"branch": "techer"}, InvalidConfigError, 'No branch is called "techer". Did you mean "teacher"'),
        (
            {"device": "gpu"},
            InvalidConfigError,
            r'^Cannot use device "gpu"; try "cpu" or "auto"\. \(.+[^.]\.\)$',
        ),
        (
            {"device": "cuda:99"},
            InvalidConfigError,
            r'^Cannot use device "cuda:99"; try "cpu" or "auto"\. \(.+[^.]\.\)$',
        ),
        (
            {"task": "in1k"},
            UnknownTaskError,
            '"iwm-tiny" has no task "in1k". Choose from: caltech101, clothing, imagenette',
        ),
        ({"revision": "main"}, UnknownModelError, '"iwm-tiny" is not on the Hub.* leave revision out'),
    ],
)
def test_options_that_cannot_be_met(options, error, words):
    with pytest.raises(error, match=words):
        load("iwm-tiny", **options)


def test_auto_is_cuda_where_there_is_one(monkeypatch):
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda here=available: here)
        assert resolve_device("auto") == torch.device(expected)
    assert resolve_device(torch.device("cpu")) == resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("iwm-tyni", 'is called "iwm-tyni". Did you mean "iwm-tiny"'),
        ("iwm-equi-18-348", 'Did you mean "iwm-equi-18-384"'),
        ("zzz", "Choose from: .*iwm-tiny.* See `iwm list`"),
    ],
)
def test_unknown_names_get_the_nearest(name, words, pretrained):
    with pytest.raises(UnknownModelError, match=words):
        load(name, pretrained=pretrained)


@pytest.mark.parametrize("name", RECIPE_ONLY)
def test_recipes_without_weights_say_how_to_train_them(name):
    command = f"iwm pretrain --recipe {name} --data FOLDER --out DIR"
    with pytest.raises(WeightsUnavailableError, match=f"`{command}`.*pretrained=False"):
        load(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_the_named_architecture_and_leaves_the_licence_open(name):
    held_back = (
        "none yet (not published)"
        if name in RECIPE_ONLY
        else "research only (trained on ImageNet photographs)"
    )
    assert ZOO[name].config.license == held_back
    assert find_recipe(name).model == ZOO[name].config.replace(license="unspecified")


@pytest.mark.parametrize("name", [None, 3, ["iwm-tiny"]])
def test_what_is_no_name(name):
    with pytest.raises(UnknownModelError, match=r"is no name or folder\. Choose from: iwm-equi-12-384"):
        load(name)


@pytest.mark.parametrize("name", ["./runs/one", "../one", "/no/such/folder", "a/b/c", "iwm tiny"])
def test_paths_that_do_not_exist(name):
    with pytest.raises(UnknownModelError, match="No model, folder or repository is called"):
        load(name)


@pytest.mark.parametrize("name", ["photos/00.jpg", "00.jpg", "./photos/00.jpg", "model.safetensors"])
def test_a_file_is_no_model(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / name).write_bytes(b"")
    words = f"^{re.escape(name)} is a file; name the folder that holds config.json and the weights.$"
    with pytest.raises(UnknownModelError, match=words):
        load(name)


def test_random_weights_of_a_name(tmp_path):
    torch.manual_seed(3)
    first = load("iwm-tiny-inv", pretrained=False)
    torch.manual_seed(3)
    again = load("iwm-tiny-inv", pretrained=False, dtype=torch.bfloat16)
    assert first.config == ZOO["iwm-tiny-inv"].config
    assert not first.training
    weight = first.encoder.blocks[5].mlp.fc1.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert torch.equal(again.encoder.blocks[5].mlp.fc1.weight, weight.to(torch.bfloat16))
    assert first.predictor.mask_token.abs().max() > 0


def test_random_weights_of_a_folder(folder):
    fresh, saved = load(folder, pretrained=False), load(folder)
    assert fresh.config == saved.config
    assert fresh.space != saved.space


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '{"format": 2, "future": true}',
            "config.json has format 2, this iwm reads up to 1.*pip install --upgrade iwm",
        ),
        ('{"encodr": {}}', 'No field "encodr". Did you mean "encoder"'),
        ('{"encoder": {"width": 7}}', "encoder.width 7 must be divisible by 4 and by heads"),
        ("{", "config.json is not valid JSON"),
    ],
)
@pytest.mark.parametrize("pretrained", [True, False])
def test_configs_that_cannot_be_used(folder, text, words, pretrained):
    (folder / "config.json").write_text(text)
    with pytest.raises(InvalidConfigError, match=rf"config\.json: ({words})"):
        load(folder, pretrained=pretrained)


def test_folders_that_are_not_whole(folder, tiny_config):
    (folder / "config.json").write_text(tiny_config("append").to_json())
    assert load(folder).config.predictor.layout == "append"
    (folder / "config.json").write_text(tiny_config("append", "feature").to_json())
    with pytest.raises(IncompatibleWeightsError, match=r"missing \(predictor.* unexpected \(predictor"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsUnavailableError, match=r"No weights at .*model\.safetensors"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsUnavailableError, match=r"it has no config\.json"):
        load(folder)


def test_the_embedded_model_is_what_the_zoo_says():
    entry = ZOO[DEFAULT]
    assert (entry.name, entry.weights) == ("iwm-tiny", "embedded")
    stored = read_config(entry.folder)
    for part in ("encoder", "predictor", "actions", "preprocess"):
        assert getattr(stored, part) == getattr(entry.config, part)
    model = iwm.load()
    assert model.config == stored
    assert model.encode(torch.rand(2, 3, 128, 128)).tokens.shape == (2, 64, 256)


def test_the_zoo_in_order():
    assert list(ZOO) == list_models() == NAMES
    assert all(find_entry(name).name == name for name in NAMES)
    assert list_models("*inv*") == ["iwm-tiny-inv", "iwm-inv-12-384", "iwm-inv-18-384-l16"]
    assert list_models("IWM*") == list_models("tiny") == []


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_architectures(name):
    encoder_width, encoder_depth, depth, width, jitter = PAPER[name]
    config = ZOO[name].config
    assert (config.encoder.patch_size, config.encoder.image_size, config.preprocess.size) == (16, 224, 224)
    assert (config.predictor.layout, config.predictor.conditioning) == ("append", "feature")
    assert (config.actions.encoding, config.actions.symmetric) == ("difference", False)
    assert config.actions.distribution.brightness == jitter

    def blocks(d, count):
        return count * (12 * d * d + 13 * d)

    encoder = (3 * 16 * 16 + 1) * encoder_width + blocks(encoder_width, encoder_depth)
    mixer = (width + 10 + 1) * width + 2 * (width + 1) * width
    ends = (encoder_width + 1) * width + width + 2 * width + (width + 1) * encoder_width
    with torch.device("meta"):
        model = WorldModel(config)
    assert sum(p.numel() for p in model.parameters()) == encoder + mixer + ends + blocks(width, depth)


def test_the_papers_main_model_has_118_6_million_parameters():
    with torch.device("meta"):
        model = WorldModel(ZOO["iwm-equi-18-384"].config)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(118.6e6, abs=0.05e6)


@pytest.mark.parametrize(("name", "conditioning"), [("iwm-tiny", "adaln"), ("iwm-tiny-inv", "none")])
def test_our_architectures(name, conditioning):
    config = ZOO[name].config
    assert (config.predictor.layout, config.predictor.conditioning) == ("inplace", conditioning)
    assert (config.actions.encoding, config.actions.symmetric) == ("pair", True)
    model = WorldModel(config).to("meta")
    with FlopCounterMode(display=False) as encoding:
        tokens = model.encoder(torch.rand(1, 3, 128, 128, device="meta"))
    with FlopCounterMode(display=False) as acting:
        model.predictor(tokens, torch.rand(1, 14, device="meta"), (8, 8))
    assert 0 < acting.get_total_flops() <= encoding.get_total_flops() / 2


def test_a_folder_never_shadows_a_zoo_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "iwm-tiny-inv").mkdir()
    assert iwm.load("iwm-tiny-inv", pretrained=False).config == ZOO["iwm-tiny-inv"].config


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": torch.int32}, "dtype is torch.int32"), ({"dtype": "float16"}, "dtype is 'float16'"),
     ({"device": "meta"}, "holds no values"), ({"device": None}, "Cannot use device")],
)  # fmt: skip
def test_types_and_devices_that_cannot_be_used(options, message):
    with pytest.raises(InvalidConfigError, match=message):
        iwm.load(**options)


@pytest.mark.parametrize("name", ["", "a" * 5000])
def test_names_that_can_be_no_folder(name):
    with pytest.raises(UnknownModelError, match="No model, folder or repository is called"):
        iwm.load(name)


def test_a_path_is_never_a_zoo_name(tmp_path, monkeypatch, tiny_config):
    monkeypatch.chdir(tmp_path)
    WorldModel(tiny_config()).save_pretrained("iwm-tiny")
    for folder in (Path("iwm-tiny"), "./iwm-tiny"):
        assert iwm.load(folder).config.encoder.width != ZOO["iwm-tiny"].config.encoder.width
    assert iwm.load("iwm-tiny").config.encoder.width == ZOO["iwm-tiny"].config.encoder.width


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_random_weights_by_the_seed(name, monkeypatch):
    """At the widths of the entry; `tests/test_hubconf.py` builds all of its blocks."""
    config = ZOO[name].config
    shallow = config.replace(
        encoder=replace(config.encoder, depth=1), predictor=replace(config.predictor, depth=1)
    )
    monkeypatch.setitem(ZOO, name, replace(ZOO[name], config=shallow, embedded=False))
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(load(name, pretrained=False))
    assert all(model.config == shallow for model in drawn)
    first, again, other = (dict(model.named_parameters()) for model in drawn)
    for key, tensor in first.items():
        assert torch.equal(tensor, again[key]), key
        assert torch.equal(tensor, other[key]) == (key.endswith("bias") or "norm" in key), key


@pytest.mark.parametrize("entry", list(ZOO.values()), ids=NAMES)
def test_the_zoos_table_is_whole(entry):
    assert re.fullmatch(r"iwm-[a-z0-9-]+", entry.name)
    assert entry.name.replace("-", "_").isidentifier()
    assert entry.summary
    assert entry.embedded == (entry.folder / "model.safetensors").is_file()
    assert {**entry.config.recipe, **entry.config.provenance, **entry.config.metrics} == {}
    if entry.hub:
        assert re.fullmatch("[0-9a-f]{40}", entry.hub.revision)
        assert entry.hub.sha256.keys() >= {"config.json", "model.safetensors"}
        assert all(re.fullmatch("[0-9a-f]{64}", value) for value in entry.hub.sha256.values())


def test_a_published_entry_loads_by_its_name(hub, monkeypatch, tiny_config, tmp_path):
    files = model_files(tmp_path / "made", tiny_config().replace(name="my-model"), student=True)
    commit = hub.add_repo("org/tiny", files)
    entry = pinned_entry(tiny_config().replace(name="my-model"), commit, files)
    monkeypatch.setitem(ZOO, "my-model", entry)
    assert (find_entry("my-model"), entry.weights, list_models("my-*")) == (entry, "hub", ["my-model"])
    options = {"cache_dir": tmp_path / "cache"}
    with pytest.raises(WeightsUnavailableError, match="iwm download"):
        load("my-model", local_files_only=True, **options)
    check_model(load("my-model", **options), files)
    hub.requests.clear()
    check_model(load("my-model", local_files_only=True, **options), files)
    assert not hub.requests
    assert load("my-model", branch="student", **options).space != load("my-model", **options).space


@pytest.mark.parametrize(
    ("options", "message"),
    [({"branch": "techer"}, 'No branch is called "techer". Did you mean "teacher"'),
     ({"dtype": torch.int32}, "dtype is torch.int32"), ({"dtype": "float16"}, "dtype is 'float16'")],
)  # fmt: skip
def test_from_pretrained_takes_no_other_choices(folder, options, message):
    for name in (folder, "org/none"):
        with pytest.raises(InvalidConfigError, match=message):
            WorldModel.from_pretrained(name, **options)
