"""Publishing: a model goes to the Hub and comes back, its zoo entry pins it, and failures say what to do."""

import json
import shutil
from dataclasses import replace

import pytest
from hub_files import check_entry, check_same, evaluate

import iwm
import iwm.config
import iwm.zoo
from iwm.errors import (
    IntegrityError,
    UnknownModelError,
    WeightsUnavailableError,
)
from iwm.finding import download
from iwm.hub_client import HubOptions
from iwm.model_card import MARK, write_card
from iwm.model_folder import read_config
from iwm.publishing import push
from iwm.world_model import WorldModel
from iwm.zoo import ZOO, HubFiles

# Of the client, about its own call.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = {"token": "hf_good"}
REPO = "org/name"


def sent(hub):
    return hub.files(REPO).keys() - {".gitattributes"}


def test_push_to_hub_and_load(hub, tiny_config, tmp_path, capsys):
    config = tiny_config().replace(
        name="my-model", license="CC-BY-4.0", recipe={"steps": 3}, metrics={"knn": {"accuracy": 0.5}},
        provenance={"machine": "a heap of sand"},
    )  # fmt: skip
    model = WorldModel(config)
    published = model.push_to_hub(REPO, **TOKEN)
    model.save_pretrained(tmp_path / "local")
    loaded = iwm.load(REPO, cache_dir=tmp_path / "cache")
    check_same(loaded, iwm.load(tmp_path / "local"))
    assert loaded.config == config
    assert loaded.space == model.space
    assert sent(hub) == {"config.json", "model.safetensors", "README.md"}
    assert hub.files(REPO)["README.md"].decode() == write_card(config, REPO)
    printed = capsys.readouterr().out
    assert printed == f"{published}\n"
    entry = evaluate(printed)
    check_entry(entry, hub, REPO, config)
    assert entry.hub == published.hub
    assert entry.summary == "2 x 48 encoder, 2 x 32 world model"
    assert published.config == config


def test_the_pasted_entry_loads_by_its_name_and_then_without_a_request(hub, make, monkeypatch, tmp_path):
    entry = evaluate(str(push(make(name="unheard-of"), REPO, **TOKEN)))
    monkeypatch.setitem(ZOO, entry.name, entry)
    hub.commit(REPO, {"config.json": b"{}"})
    cache = {"cache_dir": tmp_path / "cache"}
    first = iwm.load("unheard-of", **cache)
    check_same(first, iwm.load(tmp_path / "model"))
    hub.requests.clear()
    check_same(iwm.load("unheard-of", **cache), first)
    assert iwm.load("unheard-of", pretrained=False).config == entry.config
    assert not hub.requests


def test_an_entry_pins_what_was_pushed_not_what_came_later(hub, make, tmp_path, monkeypatch):
    entry = evaluate(str(push(make(), REPO, **TOKEN)))
    wrong = dict.fromkeys(entry.hub.sha256, "0" * 64)
    monkeypatch.setitem(ZOO, "tiny", replace(entry, hub=replace(entry.hub, sha256=wrong)))
    with pytest.raises(IntegrityError, match="is not what was published"):
        iwm.load("tiny", cache_dir=tmp_path / "cache")


def test_a_saved_folder_has_a_card_and_what_is_pushed_one_of_the_repository(hub, tiny_config, tmp_path):
    config = tiny_config().replace(name="my-model", metrics={"knn": {"accuracy": 0.5}})
    WorldModel(config).save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    assert card.read_text(encoding="utf-8") == write_card(config)
    assert "# my-model\n" in write_card(config)
    assert 'iwm.load("FOLDER")' in write_card(config)
    push(tmp_path, REPO, **TOKEN)
    assert hub.files(REPO)["README.md"].decode() == write_card(config, REPO)
    changed = card.read_text(encoding="utf-8").replace(MARK, "") + "Mine.\n"
    card.write_text(changed, encoding="utf-8")
    iwm.load(tmp_path).save_pretrained(tmp_path)
    push(tmp_path, REPO, **TOKEN)
    assert card.read_text(encoding="utf-8") == hub.files(REPO)["README.md"].decode() == changed


def test_all_files_of_a_model_go_along_and_no_others(hub, make, tmp_path):
    folder = make(student=True)
    shutil.copy(folder / "student.safetensors", folder / "task-in1k_linear.safetensors")
    (folder / "LICENSE").write_text("As you like it.")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine, ünd mine\r\n", encoding="utf-8")
    for name in (
        "state.pt", "metrics.jsonl", "pytorch_model.bin", "run.json", ".hidden", ".env", "task-.safetensors",
        "other.safetensors", "model.safetensors.tmp", ".model.safetensors.x.tmp", "config.json.bak", "LICENSE.txt",
    ):  # fmt: skip
        (folder / name).write_text("private")
    (folder / ".iwm").mkdir()
    (folder / ".iwm" / "config.json").write_text("private")
    published = push(folder, REPO, **TOKEN)
    assert sent(hub) == {
        "config.json", "model.safetensors", "student.safetensors", "task-in1k_linear.safetensors", "README.md",
        "LICENSE",
    }  # fmt: skip
    assert hub.files(REPO).items() >= {name: (folder / name).read_bytes() for name in sent(hub)}.items()
    check_entry(evaluate(str(published)), hub, REPO, read_config(folder))
    student = iwm.load(REPO, branch="student", cache_dir=tmp_path / "cache")
    check_same(student, iwm.load(folder, branch="student"))
    assert student.space != iwm.load(folder).space


def test_pushing_again(hub, make, tmp_path):
    first = push(make("one"), REPO, **TOKEN)
    again = push(tmp_path / "one", REPO, **TOKEN)
    assert again.hub.sha256 == first.hub.sha256
    assert again.hub.revision in hub.repo(REPO).trees
    other = push(make("two"), REPO, **TOKEN)
    assert other.hub.revision not in (first.hub.revision, again.hub.revision)
    cache = {"cache_dir": tmp_path / "cache"}
    check_same(iwm.load(REPO, **cache), iwm.load(tmp_path / "two"))
    for published in (first, again):
        check_same(iwm.load(f"{REPO}@{published.hub.revision}", **cache), iwm.load(tmp_path / "one"))


def test_weights_of_another_model_do_not_stay_behind(hub, make, tmp_path):
    first = push(make("first", student=True), REPO, **TOKEN)
    push(make("second"), REPO, **TOKEN)
    assert sent(hub) == {"config.json", "model.safetensors", "README.md"}
    with pytest.raises(WeightsUnavailableError, match=r"has no student\.safetensors"):
        iwm.load(REPO, branch="student", cache_dir=tmp_path / "cache")
    iwm.load(REPO, branch="student", revision=first.hub.revision, cache_dir=tmp_path / "cache")


def test_repositories_are_private_where_asked_and_reused(hub, make, tmp_path):
    folder = make()
    push(folder, "org/open", **TOKEN)
    push(folder, "org/closed", private=True, **TOKEN)
    assert (hub.repo("org/open").private, hub.repo("org/closed").private) == (False, True)
    push(make("other"), "org/closed", **TOKEN)
    assert hub.repo("org/closed").private
    cache = {"cache_dir": tmp_path / "cache"}
    with pytest.raises(UnknownModelError, match="it is private"):
        iwm.load("org/closed", **cache)
    check_same(iwm.load("org/closed", **TOKEN, **cache), iwm.load(tmp_path / "other"))


@pytest.mark.parametrize("message", [None, "Longer training"])
def test_the_commit_has_a_message(hub, make, monkeypatch, message):
    bodies, real = [], hub.answer

    def answer(request, body):
        bodies.extend([body] if "/commit/" in request.path else [])
        return real(request, body)

    monkeypatch.setattr(hub, "answer", answer)
    push(make(name="my-model"), REPO, message=message, **TOKEN)
    header = json.loads(bodies[0].splitlines()[0])["value"]
    assert header["summary"] == (message or "my-model, sent by iwm push")


def test_the_token_may_come_from_the_environment(hub, make, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    push(make(), REPO)
    assert sent(hub)


def test_a_failed_push_to_hub_prints_no_entry(hub, tiny_config, capsys):
    with pytest.raises(WeightsUnavailableError):
        WorldModel(tiny_config()).push_to_hub(REPO, token="hf_bad")
    assert capsys.readouterr().out == ""


def test_the_entry_of_a_quoted_licence(hub, make):
    published = push(make(license='it\'s "mine" {x} \\ ü'), REPO, **TOKEN)
    entry = evaluate(str(published))
    assert entry.config.license == 'it\'s "mine" {x} \\ ü'
    assert entry.hub == HubFiles(**vars(published.hub))


def test_a_licence_goes_with_its_model(hub, make, tmp_path):
    folder = make("first")
    (folder / "LICENSE").write_text("As you like it.")
    first = push(folder, REPO, **TOKEN)
    options = HubOptions(cache_dir=tmp_path / "cache")
    download(REPO, tmp_path / "copy", options)
    assert (tmp_path / "copy" / "LICENSE").read_text() == "As you like it."
    again = push(tmp_path / "copy", "org/again", **TOKEN)
    cards = {"README.md": again.hub.sha256["README.md"]}  # Each names its own repository.
    assert again.hub.sha256 == first.hub.sha256 | cards
    second = push(make("second"), REPO, **TOKEN)
    assert "LICENSE" in first.hub.sha256
    assert "LICENSE" not in {*second.hub.sha256, *sent(hub)}
    download(REPO, tmp_path / "copy", options)
    assert not (tmp_path / "copy" / "LICENSE").exists()
