"""Classes of images and pixels: values, defaults, folders, and what is said when it cannot be done."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adapter_parts import SPACE, classification, make_model, segmentation, shake
from PIL import Image

import iwm
from iwm.actions import Action
from iwm.adapter import Adapter
from iwm.checkpoint import save_adapter
from iwm.config import AdapterConfig
from iwm.errors import (
    IncompatibleLatentError,
    IncompatibleWeightsError,
    IntegrityError,
    InvalidActionError,
    InvalidConfigError,
    InvalidImageError,
    UnknownTaskError,
    WeightsUnavailableError,
)
from iwm.hub_client import HubOptions
from iwm.model_folder import read_config, task_file
from iwm.tasks import class_map
from iwm.world_model import WorldModel

PETS, STREET = classification(head="attentive"), segmentation()
NUMBERS = classification(*(str(i) for i in range(12)), batch_norm=True)


@pytest.fixture
def config(tiny_config):
    return tiny_config()


@pytest.fixture
def model(config):
    """Two tasks share a predictor; a third reads the encoder."""
    return make_model(
        config,
        shared={"tasks": {"pets": PETS, "numbers": NUMBERS}, "predictor": config.predictor},
        street={"tasks": {"street": STREET}, "reads": "encoder", "license": "CC-BY-4.0"},
    )


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def probabilities(model, tokens, task, grid=(4, 4)):
    adapter = model.heads[model.config.adapter_of(task)]
    with torch.no_grad():
        return adapter(model, tokens, grid, task).softmax(dim=-1)


def check_close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@pytest.mark.parametrize(("task", "topk", "kept"), [("pets", 2, 2), ("pets", 5, 3), ("numbers", 5, 5)])
def test_classify_names_the_likeliest(model, task, topk, kept):
    images = torch.rand(5, 3, 32, 32)
    found = model.classify(images, task=task, topk=topk)
    expected = probabilities(model, model.encode(images).tokens, task)
    assert (found.task, len(found), found.probabilities.shape) == (task, 5, (5, kept))
    for labels, values, row in zip(found.labels, found.probabilities, expected, strict=True):
        ranked = sorted(range(len(row)), key=lambda i: -float(row[i]))[:kept]
        assert labels == [model.config.tasks[task].labels[i] for i in ranked]
        check_close(values, row[ranked])


def test_one_encoding_serves_several_tasks(model, photo):
    latent = model.encode([photo, photo])
    for task in ("pets", "numbers"):
        seen, encoded = model.classify(photo, task), model.classify(latent, task)
        assert encoded.labels == seen.labels * 2
        check_close(encoded.probabilities, seen.probabilities.expand(2, -1))
    moved = model.apply_action(latent, Action(brightness=2.0))
    check_close(model.classify(moved, "pets", topk=3).probabilities.sum(dim=1), torch.ones(2))


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_batch_size_changes_nothing(model, batch_size):
    images = torch.rand(3, 3, 32, 32)
    whole = model.classify(images, "pets")
    for given in (images, model.encode(images), (image for image in images)):
        found = model.classify(given, "pets", batch_size=batch_size)
        assert found.labels == whole.labels
        check_close(found.probabilities, whole.probabilities)


def test_latents_of_another_size_of_image(model):
    tokens = torch.randn(2, 24, 48)
    found = model.classify(iwm.Latent(tokens, (6, 4), model.space), "pets", topk=3)
    check_close(found.probabilities, probabilities(model, tokens, "pets", (6, 4)).sort(descending=True)[0])


def test_a_classification_prints_a_line_an_image():
    found = iwm.Classification(
        "pets", [["cat", "dog"], ["dog", "cat"]], torch.tensor([[0.9, 0.1], [0.75, 0.25]])
    )
    assert str(found) == "cat 90.0%, dog 10.0%\ndog 75.0%, cat 25.0%"


def by_hand(model, pixels, size):
    """Scores of every pixel, all classes at once."""
    adapter = model.heads["street"]
    with torch.no_grad():
        features = model.encoder.features(pixels[None])
        logits = adapter.head("street")(features, model.encoder.grid_of(pixels[None]))
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize(
    ("width", "height", "seen"),
    [
        (60, 40, (64, 40)),  # Not cropped; 60 is as near to 56 as to 64.
        (32, 32, (32, 32)),
        (5, 9, (16, 16)),  # Two patches at least.
        (300, 30, (128, 16)),  # Four times the model's size at most, as a whole.
        (500, 1000, (64, 128)),
    ],
)
def test_a_segmentation_has_the_images_own_size(model, width, height, seen):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    pixels, size = model.preprocess.whole(photo, 8)
    assert (tuple(pixels.shape), size) == ((3, seen[1], seen[0]), (height, width))
    scores = by_hand(model, pixels, size)
    found = model.segment(photo, task="street")
    assert (tuple(found.shape), found.dtype) == ((height, width), torch.int64)
    chosen = scores.gather(0, found[None])[0]
    check_close(chosen, scores.amax(dim=0))
    assert found.unique().numel() > 1
    assert all(model.labels("street")[int(i)] in STREET.labels for i in found.unique())


def test_several_images_give_a_list(model, photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    one = model.segment(tmp_path / "photo.png")
    many = model.segment([photo, photo.resize((24, 16))])
    assert torch.equal(many[0], one)
    assert [tuple(part.shape) for part in many] == [(40, 60), (16, 24)]
    batch = torch.rand(2, 3, 32, 32)
    assert [tuple(part.shape) for part in model.segment(batch)] == [(32, 32)] * 2
    assert torch.equal(model.segment(batch[0]), model.segment(batch)[0])
    assert [tuple(part.shape) for part in model.segment(image for image in batch)] == [(32, 32)] * 2


def test_tensors_are_resized_like_pictures(model, photo):
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    resized, size = model.preprocess.whole(pixels, 8)
    expected, same = model.preprocess.whole(photo, 8)
    assert size == same == (40, 60)
    check_close(resized, expected, atol=2 / 255)
    exact, _ = model.preprocess.whole(pixels[:, :40, :56], 8)
    assert torch.equal(exact, pixels[:, :40, :56] / 255.0)


@pytest.mark.parametrize("classes", [2, 8, 9, 21])
@pytest.mark.parametrize("size", [(7, 30), (16, 16), (3, 5)])
def test_class_maps_are_those_of_all_scores_at_once(classes, size):
    logits = torch.randn(2, classes, 16, 16)
    whole = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    assert torch.equal(class_map(logits, size), whole.argmax(dim=1))


def test_a_model_comes_back_with_its_tasks(model, folder, photo):
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "task-shared.safetensors", "task-street.safetensors",
    }  # fmt: skip
    loaded = iwm.load(folder)
    assert loaded.config == model.config == read_config(folder)
    assert loaded.heads == {}
    assert loaded.classify(photo, "pets").labels == model.classify(photo, "pets").labels
    assert list(loaded.heads) == ["shared"]
    agree = (loaded.segment(photo) == model.segment(photo)).float().mean()
    assert agree > 0.98  # Weights went through float16.
    assert list(loaded.heads) == ["shared", "street"]
    for name, adapter in loaded.heads.items():
        assert not adapter.training
        for (key, tensor), other in zip(
            adapter.named_parameters(), model.heads[name].parameters(), strict=True
        ):
            assert torch.equal(tensor, other.half().float()), key


def test_saving_keeps_what_was_not_loaded_and_drops_what_is_another_models(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "task-old.safetensors").write_bytes(b"of another model")
    (other / "notes.txt").write_text("mine")
    model = iwm.load(folder)
    model.save_pretrained(other)
    assert {path.name for path in other.iterdir()} == {path.name for path in folder.iterdir()} | {"notes.txt"}
    for path in folder.iterdir():
        assert (other / path.name).read_bytes() == path.read_bytes()
    model.save_pretrained(folder)  # Over the files it came from.
    assert iwm.load(folder, task="street").heads.keys() == {"street"}


def test_adapters_do_not_count_as_the_models_weights(model, folder, tmp_path):
    bare = WorldModel(model.config.replace(adapters={}))
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("adapters.")})
    bare.save_pretrained(tmp_path / "bare")
    assert (tmp_path / "bare" / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()
    assert bare.space == model.space


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_adapters_follow_their_model(folder, photo, dtype):
    early = iwm.load(folder, task="street", dtype=dtype)
    late = iwm.load(folder).to(dtype)
    late.load_adapter("street")
    for model in (early, late):
        kinds = {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()}
        assert kinds == {dtype}
        assert model.segment(photo).shape == (40, 60)
        assert model.classify(photo, "pets", topk=3).probabilities.dtype == torch.float32
    assert early.to(torch.float32).heads["street"].head("street").classify.weight.dtype == torch.float32


def test_a_task_is_loaded_by_name_and_becomes_the_default(folder, photo):
    model = iwm.load(folder, task="numbers")
    assert list(model.heads) == ["shared"]
    assert model.labels() == NUMBERS.labels
    assert model.classify(photo).task == "numbers"
    assert model.classify(photo, "pets").task == "pets"
    assert model.segment(photo).shape == (40, 60)  # The only one of its kind.
    assert iwm.load(folder).segment(photo).shape == (40, 60)


def test_what_task_is_meant(model, photo, tiny_config):
    bare = WorldModel(tiny_config())
    for call, words in (
        (lambda: model.classify(photo), r'"tiny" has several tasks: pets, numbers. Choose one: task="pets"'),
        (lambda: model.labels(), r'has several tasks: pets, numbers, street. Choose one: task="pets"'),
        (lambda: model.classify(photo, "pest"), r'"tiny" has no task "pest"\. Did you mean "pets"'),
        (lambda: model.segment(photo, "zzz"), r'no task "zzz"\. Choose from: numbers, pets, street'),
        (
            lambda: model.classify(photo, "street"),
            r'of segmentation; write model.segment\(image, task="street"\), or iwm eval segment --task street\.',
        ),
        (
            lambda: model.segment(photo, "pets"),
            r'of classification; write model.classify\(image, task="pets"\), or iwm eval finetune --task pets\.',
        ),
        (lambda: model.labels("nubmers"), 'Did you mean "numbers"'),
        (
            lambda: bare.classify(photo),
            r'"tiny" has no task of classification; train one with `iwm finetune`',
        ),
        (lambda: bare.segment(photo, "x"), "it comes without heads. Leave task out"),
        (lambda: model.load_adapter("sharde"), r'has no adapter "sharde"\. Did you mean "shared"'),
    ):
        with pytest.raises(UnknownTaskError, match=words):
            call()
    only = make_model(tiny_config(), pets={"tasks": {"pets": PETS}})
    with pytest.raises(UnknownTaskError, match=r"no task of segmentation; it has pets \(model\.classify\)"):
        only.segment(photo)


def test_a_task_that_is_not_there_is_said_before_weights_are_read(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnknownTaskError, match='Did you mean "street"'):
        iwm.load(folder, task="stret")
    with pytest.raises(UnknownTaskError, match="Random weights solve no task"):
        iwm.load(folder, task="street", pretrained=False)
    random = iwm.load(folder, pretrained=False)
    assert (random.config.adapters, random.config.tuned) == ({}, "")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"topk": 0}, InvalidConfigError, "topk is 0; it must be at least 1"),
        ({"topk": None}, InvalidConfigError, "topk is None; it must be a whole number"),
        ({"batch_size": 0}, InvalidConfigError, "batch_size is 0; it must be at least 1"),
        ({"images_or_latent": []}, InvalidImageError, "No images were given"),
        ({"images_or_latent": "missing.jpg"}, InvalidImageError, r"No such image file: missing\.jpg"),
    ],
)
def test_what_cannot_be_classified(model, photo, arguments, error, words):
    with pytest.raises(error, match=words):
        model.classify(**({"images_or_latent": photo, "task": "pets"} | arguments))


def test_latents_of_others_are_refused(model, photo):
    latent = model.encode(photo)
    with pytest.raises(IncompatibleLatentError, match="made by another encoder"):
        model.classify(replace(latent, space=SPACE), "pets")
    with pytest.raises(IncompatibleLatentError, match="No latents"):
        model.classify(latent[:0], "pets")


def test_what_cannot_be_segmented(model):
    for image, words in (
        (torch.rand(4, 32, 32), r"4, 32, 32\]; expected"),
        (torch.rand(3, 32, 32) * 300, "expected \\[0, 1\\]"),
        ("missing.png", "No such image file"),
        ([], "No images were given"),
    ):
        with pytest.raises(InvalidImageError, match=words):
            model.segment(image)


def test_an_adapter_of_another_encoder_is_refused(model, folder, config, photo):
    foreign = Adapter(AdapterConfig(tasks={"pets": PETS}, space=SPACE), config)
    words = rf'"mine" was trained on another encoder \(space {SPACE}, this model\'s is {model.space}\)'
    with pytest.raises(IncompatibleWeightsError, match=words):
        model.add_adapter("mine", foreign)
    assert "mine" not in model.config.adapters
    stored = model.config.replace(adapters={"mine": foreign.config})
    save_adapter(folder, stored, "mine", foreign)
    for call in (
        lambda: iwm.load(folder, task="pets"),
        lambda: iwm.load(folder).classify(photo),
        lambda: iwm.load(folder).save_pretrained(folder),
    ):
        with pytest.raises(IncompatibleWeightsError, match=words):
            call()


def test_an_adapter_can_take_anothers_place(model, photo):
    config = replace(model.config.adapters["street"], tasks={"street": segmentation("a", "b")})
    adapter = Adapter(config, model.config)
    shake(adapter)
    model.add_adapter("street", adapter)
    assert model.heads["street"] is adapter
    assert not adapter.training
    assert model.labels("street") == ("a", "b")
    assert model.segment(photo).max() <= 1
    for name, tasks, words in (
        ("more", {"pets": PETS}, 'Adapters "shared" and "more" both have a task "pets"; rename one'),
        ("../x", {"x": PETS}, r"An adapter is called '\.\./x'; use up to 64 small letters"),
    ):
        with pytest.raises(InvalidConfigError, match=words):
            model.add_adapter(name, Adapter(replace(config, tasks=tasks, reads="predictor"), model.config))


@pytest.mark.parametrize("name", ["train", "type", "float", "keys"])
def test_names_that_modules_have_too(config, tmp_path, photo, name):
    model = make_model(
        config, **{name: {"tasks": {name: PETS, "other": PETS}, "predictor": config.predictor}}
    )
    model.save_pretrained(tmp_path)
    assert iwm.load(tmp_path, task=name).classify(photo).labels == model.classify(photo, name).labels


def test_files_that_are_missing_or_anothers(folder, photo, model):
    (folder / task_file("street")).rename(folder / task_file("shared"))
    loaded = iwm.load(folder)
    with pytest.raises(WeightsUnavailableError, match=r"No weights at .*task-street\.safetensors"):
        loaded.segment(photo)
    with pytest.raises(IncompatibleWeightsError, match=r"task-shared\.safetensors does not fit"):
        loaded.classify(photo, "pets")
    before = (folder / "config.json").read_bytes()
    with pytest.raises(IncompatibleWeightsError, match="does not fit"):
        loaded.save_pretrained(folder)
    assert (folder / "config.json").read_bytes() == before
    with pytest.raises(WeightsUnavailableError, match=r"described and not loaded, .* iwm\.load"):
        WorldModel(model.config).load_adapter("street")


@pytest.mark.parametrize("tuned", ["encoder", "all"])
def test_a_model_that_was_tuned_as_a_whole_encodes_and_does_not_act(config, photo, tmp_path, tuned):
    config = config.replace(tuned=tuned)
    make_model(config, pets={"tasks": {"pets": PETS}}).save_pretrained(tmp_path)
    model = iwm.load(tmp_path, task="pets")
    latent = model.encode(photo)
    assert latent.space == model.space
    assert model.classify(latent).labels == model.classify(photo).labels
    for act in (lambda: model.apply_action(latent, Action()), lambda: model.predict("missing.jpg", Action())):
        with pytest.raises(InvalidActionError, match=r'"tiny" was finetuned for pets, .* no longer fits'):
            act()


def test_copies_carry_no_token(folder, photo):
    model = iwm.load(folder, token="hf_secret")
    assert model.source.options == HubOptions(token="hf_secret")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.source.options == HubOptions()
        assert twin.classify(photo, "pets").labels == model.classify(photo, "pets").labels
    assert b"hf_secret" not in pickle.dumps(model)


def test_the_folder_may_be_named_relatively(folder, photo, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = iwm.load("model")
    monkeypatch.chdir("/")
    assert model.segment(photo).shape == (40, 60)
    assert WorldModel.from_pretrained(folder).segment(photo).shape == (40, 60)


def test_a_downloaded_adapter_that_was_changed_is_refused(folder, tmp_path, photo, monkeypatch):
    from iwm.downloads import copy_files, local_files

    copy_files(local_files(folder, "tiny"), tmp_path / "copy")
    model = iwm.load(tmp_path / "copy")
    path = tmp_path / "copy" / task_file("street")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"task-street\.safetensors of tiny is not what was published"):
        model.segment(photo)
    assert model.classify(photo, "pets").task == "pets"
