"""Adapters on a Hub: fetched when they are needed, verified, limited in size, pushed and named."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from adapter_parts import SPACE, classification, make_model, segmentation
from hub_files import check_cache, check_entry, evaluate, flip, pinned_entry

import iwm
from iwm.adapter import Adapter
from iwm.checkpoint import save_adapter
from iwm.errors import (
    IncompatibleWeightsError,
    IntegrityError,
    InvalidConfigError,
    UnknownTaskError,
    WeightsUnavailableError,
)
from iwm.finding import download
from iwm.model_folder import MAX_CONFIG_BYTES, read_config, task_file
from iwm.publishing import push
from iwm.world_model import WorldModel
from iwm.zoo import ZOO

# The Hub's client, of itself.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "org/tiny"
PETS, STREET = task_file("pets"), task_file("street")


@pytest.fixture
def saved(tmp_path, tiny_config):
    """A folder of a model with two adapters."""
    config = tiny_config()
    model = make_model(
        config,
        pets={
            "tasks": {"pets": classification(head="attentive"), "cars": classification("a", "b")},
            "predictor": config.predictor,
            "license": "CC-BY-NC-4.0",
            "provenance": {"data": [{"folder": "/home/me/oxford-pets/train", "images": 9}]},
            "metrics": {"pets": {"accuracy": 0.8125, "command": "iwm eval probe --val oxford-pets/val"}},
        },
        street={
            "tasks": {"street": segmentation()},
            "reads": "encoder",
            "metrics": {"street": {"miou": 0.5}},
        },
    )
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def files(saved):
    return {path.name: path.read_bytes() for path in saved.iterdir()}


@pytest.fixture
def image():
    return torch.rand(3, 40, 24)


def requested(hub):
    """The files that were asked for so far; the list of requests starts anew."""
    names = {r.subject.rpartition("/")[2] for r in hub.requests if "/resolve/" in r.subject}
    hub.requests.clear()
    return names


def test_adapters_are_fetched_when_they_are_used(hub, load, cache, commit, saved, image):
    model = load(REPO)
    assert requested(hub) == {"config.json", "model.safetensors"}
    expected = iwm.load(saved)
    assert torch.equal(model.segment(image), expected.segment(image))
    assert requested(hub) == {STREET}
    assert model.classify(image, "pets").labels == expected.classify(image, "pets").labels
    assert model.classify(image, "cars").labels == expected.classify(image, "cars").labels
    assert requested(hub) == {PETS}
    hub.requests.clear()
    again = load(REPO, revision=commit, task="street")
    assert torch.equal(again.segment(image), expected.segment(image))
    assert not hub.requests
    check_cache(cache)


def test_a_task_that_is_named_comes_with_the_model(hub, load, commit, saved, image):
    model = load(REPO, task="cars")
    assert requested(hub) == {"config.json", "model.safetensors", PETS}
    hub.requests.clear()
    assert model.classify(image).labels == iwm.load(saved, task="cars").classify(image).labels
    assert not hub.requests
    offline = load(REPO, task="cars", local_files_only=True)
    assert offline.classify(image).labels == model.classify(image).labels
    assert not hub.requests


def test_a_task_that_is_not_there_is_said_before_weights_are_fetched(hub, load, commit):
    with pytest.raises(UnknownTaskError, match=r'"tiny" has no task "car"\. Did you mean "cars"'):
        load(REPO, task="car")
    assert requested(hub) == {"config.json"}


def test_later_files_are_of_the_commit_that_was_loaded(hub, load, commit, saved, image, files):
    model = load(REPO)
    hub.commit(REPO, {STREET: b"of the next version", "config.json": files["config.json"] + b"\n"})
    assert torch.equal(model.segment(image), iwm.load(saved).segment(image))


def test_from_pretrained_knows_the_tasks_as_well(hub, cache, commit, saved, image):
    model = WorldModel.from_pretrained(f"hf-hub:{REPO}@main", cache_dir=cache)
    assert torch.equal(model.segment(image), iwm.load(saved).segment(image))


def test_without_a_network(hub, load, commit, image):
    load(REPO)
    model = load(REPO, local_files_only=True)
    hub.requests.clear()
    words = r"task-street\.safetensors of org/tiny.* is not in the cache .*`iwm download org/tiny"
    with pytest.raises(WeightsUnavailableError, match=words):
        model.segment(image)
    with pytest.raises(WeightsUnavailableError, match=words):
        load(REPO, task="street", local_files_only=True)
    assert not hub.requests


def test_a_download_has_all_tasks(hub, commit, options, tmp_path, saved, image, files):
    folder = download(REPO, tmp_path / "copy", options)
    assert {name: (folder / name).read_bytes() for name in files} == files
    model = iwm.load(folder)
    assert torch.equal(model.segment(image), iwm.load(saved).segment(image))
    flip(folder / PETS)
    with pytest.raises(IntegrityError, match=r"task-pets\.safetensors of org/tiny.*iwm download"):
        model.classify(image, "pets")
    with pytest.raises(IntegrityError, match=r"task-pets\.safetensors"):
        iwm.load(folder, task="pets")
    iwm.load(folder, task="street")


def test_a_changed_file_in_the_cache_heals(hub, load, cache, commit, snapshot, saved, image):
    model = load(REPO, task="street")
    flip((snapshot / STREET).resolve())
    with pytest.raises(IntegrityError, match=r"task-street\.safetensors"):
        load(REPO, task="street")
    check_cache(cache)
    assert torch.equal(load(REPO, task="street").segment(image), model.segment(image))


def test_a_pinned_model_pins_its_tasks(hub, load, commit, files, monkeypatch, tiny_config, image, saved):
    entry = pinned_entry(tiny_config(), commit, files)
    monkeypatch.setitem(ZOO, "tiny", entry)
    model = load("tiny")
    hub.requests.clear()
    assert torch.equal(model.segment(image), iwm.load(saved).segment(image))
    assert requested(hub) == {STREET}
    wrong = dict(entry.hub.sha256) | {PETS: "0" * 64}
    monkeypatch.setitem(ZOO, "tiny", replace(entry, hub=replace(entry.hub, sha256=wrong)))
    with pytest.raises(IntegrityError, match=r"task-pets\.safetensors .* is not what was published"):
        load("tiny").classify(image, "pets")
    assert PETS not in requested(hub)


def test_a_file_larger_than_its_config_allows_is_not_asked_for(hub, load, cache, files):
    hub.add_repo(REPO, files | {STREET: bytes(30_000_000)})
    model = load(REPO)
    requested(hub)
    with pytest.raises(
        IncompatibleWeightsError, match=r"task-street\.safetensors of org/tiny has 30,000,000"
    ):
        model.segment(torch.rand(3, 32, 32))
    assert requested(hub) == set()
    check_cache(cache)


def test_a_file_the_config_names_and_the_repository_lacks(hub, load, files, image):
    del files[STREET]
    hub.add_repo(REPO, files)
    with pytest.raises(WeightsUnavailableError, match=r"org/tiny has no task-street\.safetensors; it has"):
        load(REPO).segment(image)


def test_configs_of_impossible_adapters(hub, load, files):
    config = json.loads(files["config.json"])
    config["adapters"]["pets"]["tasks"]["../../x"] = config["adapters"]["pets"]["tasks"].pop("pets")
    hub.add_repo(REPO, files | {"config.json": json.dumps(config).encode()})
    with pytest.raises(InvalidConfigError, match=r"A task is called '\.\./\.\./x'"):
        load(REPO)
    assert requested(hub) == {"config.json"}


def test_many_labels_fit_into_a_config(tiny_config):
    """20,000 names of species, 40 letters each; the limit leaves room for several such tasks."""
    labels = tuple(f"{'Genus species ' * 2}subspecies {i:05}" for i in range(20_000))
    model = make_model(tiny_config(), many={"tasks": {"many": classification(*labels)}, "reads": "encoder"})
    assert len(model.config.to_json().encode()) < MAX_CONFIG_BYTES / 2


def test_pushed_models_bring_their_tasks(hub, load, saved, files, image):
    published = push(saved, REPO, token="hf_good")
    kept = {
        name: content for name, content in files.items() if name != "README.md"
    }  # It names its repository.
    assert hub.files(REPO).items() >= kept.items()
    check_entry(evaluate(str(published)), hub, REPO, read_config(saved))
    assert torch.equal(load(REPO, task="street").segment(image), iwm.load(saved).segment(image))
    iwm.load(saved).push_to_hub("org/other", token="hf_good")
    assert hub.files("org/other").items() >= kept.items()


def test_the_card_names_the_tasks(hub, saved):
    push(saved, REPO, token="hf_good")
    card = hub.files(REPO)["README.md"].decode()
    assert (
        "| pets | 3 | attentive (classification) | accuracy 0.812 | pets, 0.04 M parameters | oxford-pets | "
        "CC-BY-NC-4.0 |" in card
    )
    assert "| cars | 2 | linear (classification) | not measured | pets, " in card
    assert "| street | 4 | upernet (segmentation) | miou 0.500 | street, " in card
    assert 'print(model.classify(latent, task="pets", topk=3))' in card
    (index,) = yaml.safe_load(card.split("---\n")[1])["model-index"]
    found = {
        (result["task"]["type"], result["dataset"]["name"], m["type"], m["value"])
        for result in index["results"]
        for m in result["metrics"]
    }
    assert found == {
        ("image-classification", "oxford-pets", "accuracy", 0.8125),
        ("image-segmentation", "street", "miou", 0.5),
    }


def test_the_card_of_a_tuned_model_does_not_show_actions(tiny_config, tmp_path):
    from iwm.model_card import write_card

    config = tiny_config().replace(tuned="all")
    model = make_model(config, street={"tasks": {"street": segmentation()}})
    card = write_card(model.config, REPO)
    assert "apply_action" not in card
    assert 'model.segment("photo.jpg", task="street")' in card
    assert "its world model no longer applies actions" in card


def test_an_adapter_that_does_not_fit_is_not_pushed(hub, saved):
    config = read_config(saved)
    foreign = replace(config.adapters["street"], space=SPACE)
    config = config.replace(adapters=config.adapters | {"street": foreign})
    save_adapter(saved, config, "street", Adapter(foreign, config))
    with pytest.raises(IncompatibleWeightsError, match='"street" was trained on another encoder'):
        push(saved, REPO, token="hf_good")
    (saved / STREET).unlink()
    config = config.replace(adapters={"street": replace(foreign, space=iwm.load(saved).space)})
    (saved / "config.json").write_text(config.to_json())
    with pytest.raises(WeightsUnavailableError, match=r"No weights at .*task-street\.safetensors"):
        push(saved, REPO, token="hf_good")
    assert not hub.requests
