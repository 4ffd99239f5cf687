"""Publishing: a model goes to the Hub and comes back, its zoo entry pins it, and failures say what to do."""

import json
import shutil
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from loopback_hub import Blob, Cut, Hang, Repo, Status

import iwm
import iwm.config
import iwm.zoo
from iwm.checkpoint import read_config, save_model
from iwm.encoder import Encoder
from iwm.errors import (
    IncompatibleWeightsError,
    IntegrityError,
    InvalidConfigError,
    UnknownModelError,
    WeightsUnavailableError,
)
from iwm.model_card import write_card
from iwm.publishing import push
from iwm.world_model import WorldModel
from iwm.zoo import ZOO, HubFiles, ZooEntry

# Of the client, about its own call.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = {"token": "hf_good"}
REPO = "org/name"


@pytest.fixture
def make(tiny_config, tmp_path):
    """`make("folder", student=True, **changes of the config)`: a model folder of other weights each time."""

    def save(folder="model", student=False, **changes):
        model = WorldModel(tiny_config().replace(**changes))
        extra = Encoder(model.config.encoder, model.config.preprocess) if student else None
        save_model(tmp_path / folder, model.config, model, extra)
        return tmp_path / folder

    return save


def evaluate(text):
    """What a printed zoo entry is, by the names of the modules it is pasted between."""
    return eval(text, vars(iwm.config) | vars(iwm.zoo))


def check_same(loaded, expected):
    assert loaded.config == expected.config
    assert loaded.space == expected.space
    state = expected.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def check_entry(entry, hub, config, names):
    """The entry pins the newest commit and every file of it."""
    assert isinstance(entry, ZooEntry)
    assert entry.config == config.replace(recipe={}, provenance={}, metrics={})
    assert (entry.name, entry.weights, entry.hub.repo) == (config.name, "hub", REPO)
    assert entry.hub.revision == hub.repo(REPO).refs["main"]
    files = hub.files(REPO, entry.hub.revision)
    assert entry.hub.sha256 == {name: sha256(files[name]).hexdigest() for name in names}


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
    check_entry(entry, hub, config, sent(hub))
    assert entry.hub == published.hub
    assert entry.summary == "48 x 2 encoder, 32 x 2 world model"
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
    pinned = {
        "config.json", "model.safetensors", "student.safetensors", "task-in1k_linear.safetensors", "README.md"
    }  # fmt: skip
    assert sent(hub) == pinned | {"LICENSE"}
    assert hub.files(REPO).items() >= {name: (folder / name).read_bytes() for name in sent(hub)}.items()
    check_entry(evaluate(str(published)), hub, read_config(folder), pinned)
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


def check_one_sentence(error):
    """Every failure is one line for a person, without what a program says of itself."""
    text = str(error)
    assert "\n" not in text
    assert len(text) < 500
    assert "Traceback" not in text


def expect_failure(kind, words, folder, repo=REPO, **options):
    with pytest.raises(kind, match=words) as caught:
        push(folder, repo, **TOKEN | options)
    check_one_sentence(caught.value)


@pytest.mark.parametrize("token", [None, "hf_bad", "hf_outsider"])
@pytest.mark.parametrize("exists", [False, True])
def test_tokens_that_may_not_write(hub, make, monkeypatch, token, exists):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)  # What HF_ENDPOINT is at the start.
    hub.outsiders.add("hf_outsider")
    if exists:
        hub.add_repo(REPO, {"config.json": b"{}"})
    status = 403 if token == "hf_outsider" else 401
    words = rf"refuses org/name \({status}\): the token is wrong or lacks the permission; .*`hf auth login`"
    expect_failure(WeightsUnavailableError, words, make(), token=token)
    assert not exists or hub.files(REPO) == {"config.json": b"{}"}
    assert exists or REPO not in hub.repos


@pytest.mark.parametrize(
    "repo", ["", "noslash", "a/b/c", "org/name@main", "org/na me", "/name", "org/", "../name", "org/-x"]
)
def test_names_that_no_repository_can_have(hub, make, repo):
    words = f'"{repo}" is no name for a repository; write "org/name".'
    expect_failure(InvalidConfigError, words, make(), repo)
    assert not hub.requests


@pytest.mark.parametrize("repo", ["org/a--b", "org/x.git"])
def test_names_that_the_client_refuses(hub, make, repo):
    expect_failure(UnknownModelError, f'"{repo}" is no name of a repository; write "org/name"', make(), repo)
    assert not hub.requests


def test_an_organisation_that_does_not_exist(hub, make):
    hub.inject(Status(404, message="Organization not found"), "/api/repos/create", "POST")
    expect_failure(WeightsUnavailableError, r"cannot give org/name now \(404\)", make())


def _no_config(folder):
    (folder / "config.json").unlink()


def _no_weights(folder):
    (folder / "model.safetensors").unlink()


def _bad_weights(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").write_bytes(content[:-8])


def _other_config(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"adaln"', '"feature"'))


def _bad_config(folder):
    (folder / "config.json").write_text('{"encodr": {}}')


def _bad_student(folder):
    shutil.copy(folder / "model.safetensors", folder / "student.safetensors")


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (shutil.rmtree, UnknownModelError, "No folder or repository"),
        (_no_config, WeightsUnavailableError, r"has no config\.json"),
        (_no_weights, WeightsUnavailableError, r"No weights at .*model\.safetensors"),
        (_bad_weights, IncompatibleWeightsError, r"model\.safetensors is not a readable safetensors file"),
        (_other_config, IncompatibleWeightsError, r"model\.safetensors does not fit"),
        (_bad_config, InvalidConfigError, 'No field "encodr"'),
        (_bad_student, IncompatibleWeightsError, r"student\.safetensors does not fit"),
    ],
)
def test_a_folder_that_cannot_be_loaded_is_not_sent(hub, make, spoil, kind, words):
    folder = make()
    spoil(folder)
    expect_failure(kind, words, folder)
    assert not hub.requests


def test_the_hub_is_down(hub, make, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    expect_failure(WeightsUnavailableError, r"127\.0\.0\.1:9 .*Check the network", make())


def test_offline_means_no_request(hub, make, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    expect_failure(WeightsUnavailableError, "HF_HUB_OFFLINE is set, and org/name cannot be pub", make())
    assert not hub.requests


@pytest.mark.parametrize(
    ("fault", "path", "method", "words"),
    [
        (Status(500), "/api/repos/create", "POST", r"cannot give org/name now \(500\)\. Try again later"),
        (Status(500), "*/commit/*", "POST", r"cannot give org/name now \(500\)\. Try again later"),
        (Status(429, {"Retry-After": "7"}), "*/commit/*", "POST", r"\(429\)\. Try again in 7 seconds"),
        (Status(403), "/cdn/*", "PUT", r"org/name .*(uploading 'model\.safetensors'|\(403\))"),
        (Status(400), "/cdn/*", "PUT", r"org/name .*(uploading 'model\.safetensors'|\(400\))"),
        (Cut(5), "*/commit/*", "POST", "Check the network"),
        (Status(500), "*/revision/*", "GET", r"cannot give org/name now \(500\)\. Try again later"),
    ],
    ids=["create", "commit", "limit", "refused", "failed", "lost", "asked"],
)
def test_a_push_that_breaks_off_can_be_done_again(hub, make, tmp_path, fault, path, method, words):
    old = push(make("old"), REPO, **TOKEN)
    folder = make("new")
    hub.inject(fault, path, method)
    expect_failure(WeightsUnavailableError, words, folder)
    hub.heal()
    earlier = iwm.load(f"{REPO}@{old.hub.revision}", cache_dir=tmp_path / "cache")
    check_same(earlier, iwm.load(tmp_path / "old"))
    check_entry(
        evaluate(str(push(folder, REPO, **TOKEN))), hub, read_config(folder),
        {"config.json", "model.safetensors", "README.md"},
    )  # fmt: skip
    check_same(iwm.load(REPO, cache_dir=tmp_path / "cache"), iwm.load(folder))


@pytest.mark.parametrize("path", ["/api/repos/create", "*/commit/*"])
def test_a_hub_that_never_answers_is_given_up(hub, make, monkeypatch, path):
    monkeypatch.setattr("iwm.publishing.GRACE_SECONDS", 0.5)
    monkeypatch.setattr("iwm.publishing.SLOWEST_BYTES_PER_SECOND", 10**9)
    folder = make()
    hub.inject(Hang(), path, "POST")
    expect_failure(WeightsUnavailableError, "stalls over org/name .*try again later", folder)
    assert path.strip("*") in hub.requests[-1].path
    assert hub.requests[-1].status is None


def _ending_lines_otherwise(changes):
    config = changes["config.json"]
    return {**changes, "config.json": Blob(config.content.replace(b"\n", b"\r\n"), config.lfs)}


def _losing(name):
    return lambda changes: {path: blob for path, blob in changes.items() if path != name}


def _flipping_a_bit(changes):
    content = bytearray(changes["model.safetensors"].content)
    content[-1] ^= 1
    return {**changes, "model.safetensors": Blob(bytes(content), lfs=True)}


@pytest.mark.parametrize(
    ("careless", "words"),
    [
        (_ending_lines_otherwise, r"config\.json of .* expected git [0-9a-f]{40}, found git [0-9a-f]{40}"),
        (
            _flipping_a_bit,
            r"model\.safetensors of .* expected sha256 [0-9a-f]{64}, found sha256 [0-9a-f]{64}",
        ),
        (_losing("README.md"), r"README\.md of .* found no such file"),
        (_losing("model.safetensors"), r"model\.safetensors of .* found no such file"),
    ],
)
def test_what_the_hub_made_of_it_is_compared(hub, make, monkeypatch, careless, words):
    real = Repo.commit
    folder = make()
    hub.add_repo(REPO, {".gitattributes": b""})
    with monkeypatch.context() as patch:
        patch.setattr(Repo, "commit", lambda self, changes, *branch: real(self, careless(changes), *branch))
        expect_failure(IntegrityError, rf"^{words}\. Push again\.$", folder)
    assert len(hub.repo(REPO).trees) == 2
    push(folder, REPO, **TOKEN)


def test_somebody_else_pushes_in_the_same_moment(hub, make, monkeypatch, tmp_path):
    real = Repo.commit

    def commit_twice(self, changes, *branch):
        ours = real(self, changes, *branch)
        real(self, {"config.json": Blob(b"{}", lfs=False)})
        return ours

    folder = make()
    hub.add_repo(REPO, {".gitattributes": b""})
    monkeypatch.setattr(Repo, "commit", commit_twice)
    published = push(folder, REPO, **TOKEN)
    assert hub.files(REPO)["config.json"] == b"{}"
    check_same(iwm.load(f"{REPO}@{published.hub.revision}", cache_dir=tmp_path), iwm.load(folder))


def test_a_failed_push_to_hub_prints_no_entry(hub, tiny_config, capsys):
    with pytest.raises(WeightsUnavailableError):
        WorldModel(tiny_config()).push_to_hub(REPO, token="hf_bad")
    assert capsys.readouterr().out == ""


def test_the_entry_of_a_quoted_licence(hub, make):
    published = push(make(license='it\'s "mine" {x} \\ ü'), REPO, **TOKEN)
    entry = evaluate(str(published))
    assert entry.config.license == 'it\'s "mine" {x} \\ ü'
    assert entry.hub == HubFiles(**vars(published.hub))
