"""What the Hub's client is asked and how its answers are understood; tokens; limits in time."""

import json
import threading
import time

import pytest
from hub_files import check_cache, check_failure, check_healed, check_model
from loopback_server import Answer

import iwm
from iwm.errors import UnknownModelError, WeightsUnavailableError
from iwm.hub_client import HubOptions, answered, ask, cached, endpoint, get, within
from iwm.world_model import WorldModel


def test_within_gives_what_the_call_gives():
    assert within(5, lambda: 7) == 7
    assert within(5, lambda: None) is None
    assert threading.current_thread().name not in (
        within(5, lambda: threading.current_thread().name),
        "iwm-hub",
    )


@pytest.mark.parametrize(
    "error", [KeyError("x"), OSError(28, "full"), SystemExit(3), KeyboardInterrupt()], ids=repr
)
def test_within_raises_what_the_call_raises(error):
    def fail():
        raise error

    with pytest.raises(type(error)) as caught:
        within(5, fail)
    assert caught.value is error


def test_within_leaves_a_late_call_behind():
    late, ended = threading.Event(), threading.Event()

    def wait():
        late.wait(10)
        ended.set()

    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^nothing complete after 0 seconds$"):
        within(0.05, wait)
    assert time.monotonic() - began < 8  # It waits for 10.
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "iwm-hub")
    assert not ended.is_set()
    late.set()
    assert ended.wait(5)


def test_questions_and_files(hub, files, commit, cache):
    options = HubOptions(cache_dir=cache)
    assert cached("org/tiny", "config.json", "main", options) is None
    report = ask("org/tiny", "main", options)
    assert report == ask("org/tiny", commit, options)
    assert report.commit == commit
    assert {name: digest.size for name, digest in report.files.items()} == {
        k: len(v) for k, v in files.items()
    }
    assert [report.files[name].algorithm for name in files] == ["git", "sha256"]
    path = get("org/tiny", "config.json", "main", None, options)
    assert path.read_bytes() == files["config.json"]
    for revision in ("main", commit):
        assert cached("org/tiny", "config.json", revision, options) == path
    assert cached("org/tiny", "model.safetensors", "main", options) is None
    agents = {request.headers["user-agent"].split(";")[0] for request in hub.requests}
    assert all(f"iwm/{iwm.__version__}" in agent for agent in agents)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("1", True),
        ("on", True),
        ("YES", True),
        ("true", True),
        ("0", False),
        ("", False),
        ("no", False),
        (None, False),
    ],
)
def test_the_words_for_offline(monkeypatch, said, meant):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if said is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", said)
    assert HubOptions().offline is meant
    assert HubOptions(local_files_only=True).offline is True


def test_the_address_of_the_hub(monkeypatch):
    for said, meant in (("http://x/", "http://x"), ("http://x", "http://x"), ("", None)):
        monkeypatch.setenv("HF_ENDPOINT", said)
        assert endpoint() == meant
    monkeypatch.delenv("HF_ENDPOINT")
    assert endpoint() is None


def test_errors_without_an_answer():
    assert not answered(None)
    assert not answered(TimeoutError())


GARBAGE = {
    "html": b"<!DOCTYPE html><html>Please log in to this wifi</html>",
    "nothing": b"",
    "bytes": b"\xff\xfe\x00",
    "list": b"[]",
    "null": b"null",
    "commit": {"sha": "../../x"},
    "no commit": {"sha": None},
    "number": {"sha": 7},
    "no digest": {"siblings": [{"rfilename": "config.json"}]},
    "digest": {"siblings": [{"rfilename": "config.json", "blobId": "../../x", "size": 3}]},
    "lfs": {"siblings": [{"rfilename": "config.json", "lfs": {"sha256": "x", "size": 1, "pointerSize": 1}}]},
    "name": {"siblings": [{"rfilename": 7}]},
    "siblings": {"siblings": "config.json"},
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_answers_that_make_no_sense(hub, load, cache, commit, files, monkeypatch, garbage):
    healthy = hub.answer

    def answer(request, body):
        if not request.path.startswith("/api/models/"):
            return healthy(request, body)
        content = garbage if isinstance(garbage, bytes) else json.dumps(
            {"id": "org/tiny", "sha": commit, "siblings": []} | garbage
        ).encode()  # fmt: skip
        return Answer(200, {"Content-Type": "application/json"}, content)

    with monkeypatch.context() as patch:
        patch.setattr(hub, "answer", answer)
        check_failure(load, "org/tiny", WeightsUnavailableError, "^Cannot get org/tiny from ")
    check_healed(hub, load, cache, files)
    monkeypatch.setattr(hub, "answer", answer)
    check_model(load("org/tiny"), files)


@pytest.mark.parametrize("missing", ["ETag", "X-Repo-Commit"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_about_which_the_hub_says_too_little(
    hub, load, cache, commit, files, monkeypatch, missing, name
):
    healthy = hub.answer

    def answer(request, body):
        full = healthy(request, body)
        if request.method != "HEAD" or not request.subject.endswith(name):
            return full
        return Answer(
            full.status, {k: v for k, v in full.headers.items() if not k.endswith(missing)}, full.body
        )

    with monkeypatch.context() as patch:
        patch.setattr(hub, "answer", answer)
        words = f"Cannot get {name} of org/tiny from http"
        check_failure(load, "org/tiny", WeightsUnavailableError, words)
    check_healed(hub, load, cache, files)


NO_SUCH = r"There is no org/{} at http://\S+, or it is private\. Check the spelling; .*log in .*\({}\)"


@pytest.mark.parametrize(
    ("repo", "token", "error", "words"),
    [
        ("absent", None, UnknownModelError, NO_SUCH.format("absent", 401)),
        ("absent", "hf_good", UnknownModelError, NO_SUCH.format("absent", 404)),
        ("secret", None, UnknownModelError, NO_SUCH.format("secret", 401)),
        ("secret", "hf_other", UnknownModelError, NO_SUCH.format("secret", 404)),
        ("tiny", "hf_bad", WeightsUnavailableError, r"refuses org/tiny \(401\): the token is wrong or lacks"),
        ("gated", None, WeightsUnavailableError, r"org/gated is gated: accept its terms at http\S+/org/gated, then log in.*\(401\)"),
        ("gated", "hf_other", WeightsUnavailableError, r"org/gated is gated: accept its terms at http.*\(403\)"),
        ("tiny@v9", None, UnknownModelError, r'org/tiny has no revision "v9"\. Leave it out for the newest, or see http\S+/org/tiny/commits/main'),
        (f"tiny@{'a' * 40}", None, UnknownModelError, f'org/tiny has no revision "{"a" * 40}"'),
        ("x--y", None, UnknownModelError, r'"org/x--y" is no name of a repository; write "org/name"'),
    ],
)  # fmt: skip
def test_repositories_that_are_not_for_you(hub, load, cache, commit, files, repo, token, error, words):
    hub.outsiders.add("hf_other")
    hub.add_repo("org/secret", files, private=True)
    hub.add_repo("org/gated", files, gated=True)
    check_failure(load, f"org/{repo}", error, words, token=token)
    assert list(cache.glob("models--*/snapshots/*/*")) == []
    allowed = repo if repo in ("secret", "gated") else "tiny"
    check_model(load(f"org/{allowed}", token="hf_good"), files)
    check_model(WorldModel.from_pretrained(f"org/{allowed}", token="hf_good", cache_dir=cache), files)
    check_model(load(f"org/{allowed}", local_files_only=True), files)
    check_cache(cache)


def test_the_token_of_the_environment_is_used(hub, load, files, monkeypatch):
    hub.add_repo("org/secret", files, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    check_model(load("org/secret"), files)
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    check_failure(load, "org/secret", WeightsUnavailableError, "the token is wrong", revision="main")
