"""Publishing that fails: in which words, with what left on the Hub, and that it can be done again."""

import shutil

import pytest
from hub_files import check_entry, check_same, evaluate
from loopback_hub import Blob, Cut, Hang, Repo, Status

import iwm
import iwm.config
import iwm.zoo
from iwm.errors import (
    IncompatibleWeightsError,
    IntegrityError,
    InvalidConfigError,
    UnknownModelError,
    WeightsUnavailableError,
)
from iwm.model_folder import read_config
from iwm.publishing import push

# Of the client, about its own call.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = {"token": "hf_good"}
REPO = "org/name"
BROKE_OFF = (
    r"^Publishing org/name broke off \(.+\)\. It may or may not have arrived: "
    r"see http://127\.0\.0\.1:\d+/org/name/commits/main, or push again\.$"
)


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
    expect_failure(WeightsUnavailableError, r"refuses org/name \(404: Organization not found\)\.$", make())


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
    expect_failure(
        WeightsUnavailableError, r"127\.0\.0\.1:9 cannot be reached .*org/name was not published", make()
    )


def test_offline_means_no_request(hub, make, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    expect_failure(WeightsUnavailableError, "HF_HUB_OFFLINE is set, and org/name cannot be pub", make())
    assert not hub.requests


@pytest.mark.parametrize(
    ("fault", "path", "method", "words"),
    [
        (Status(500), "/api/repos/create", "POST", r"cannot serve org/name now \(500\)\. Try again later"),
        (Status(500), "*/commit/*", "POST", r"cannot serve org/name now \(500\)\. Try again later"),
        (Status(429, {"Retry-After": "7"}), "*/commit/*", "POST", r"\(429\)\. Try again in 7 seconds"),
        (Status(403), "/cdn/*", "PUT", r"org/name .*(uploading 'model\.safetensors'|\(403\))"),
        (Status(400), "/cdn/*", "PUT", r"org/name .*(uploading 'model\.safetensors'|\(400\))"),
        (Cut(5), "*/commit/*", "POST", BROKE_OFF),
        (Status(500), "*/revision/*", "GET", r"cannot serve org/name now \(500\)\. Try again later"),
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
    check_entry(evaluate(str(push(folder, REPO, **TOKEN))), hub, REPO, read_config(folder))
    check_same(iwm.load(REPO, cache_dir=tmp_path / "cache"), iwm.load(folder))


@pytest.mark.parametrize("path", ["/api/repos/create", "*/commit/*"])
def test_a_hub_that_never_answers_is_given_up(hub, make, monkeypatch, path):
    monkeypatch.setattr("iwm.publishing.GRACE_SECONDS", 0.5)
    monkeypatch.setattr("iwm.publishing.SLOWEST_BYTES_PER_SECOND", 10**9)
    folder = make()
    hub.inject(Hang(), path, "POST")
    expect_failure(WeightsUnavailableError, BROKE_OFF, folder)
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
