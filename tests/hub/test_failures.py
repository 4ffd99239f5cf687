"""What goes wrong between here and a Hub: the error, its words, and a cache that is as sound as before."""

import socket
import threading
import time
from contextlib import contextmanager

import huggingface_hub
import pytest
from hub_files import check_cache, check_failure, check_healed, check_model, model_files
from loopback_hub import Cut, Hang, Short, Stall, Status
from loopback_server import Answer

import iwm
from iwm.errors import UnknownModelError, WeightsUnavailableError
from iwm.finding import download
from iwm.hub_client import HubOptions

INFO = "/api/models/*"
CONFIG = "*/resolve/*/config.json"
WEIGHTS = "*/resolve/*/model.safetensors"
SIZE = 168_288  # Of the weights; a test says so.


@pytest.fixture(autouse=True)
def _nothing_left_running(hub):
    """Calls that were given up end with their test: they would meet the next one's connections."""
    yield
    hub.heal()
    for thread in threading.enumerate():
        if thread.name == "iwm-hub":
            thread.join(10)
            assert not thread.is_alive()


@contextmanager
def short_limits(monkeypatch, seconds=8):
    """Seconds, not minutes, until a call is given up; what the block does has to end in time."""
    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr("iwm.hub_client.REQUEST_SECONDS", 0.4)
        patch.setattr("iwm.hub_client.GRACE_SECONDS", 0.5)
        patch.setattr("iwm.hub_client.SLOWEST_BYTES_PER_SECOND", 1 << 40)
        yield
    assert time.monotonic() - began < seconds


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("iwm")]


def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


ANSWERS = [
    (Status(500), INFO, "GET", r"cannot serve org/tiny now \(500\)\. Try again later\."),
    (Status(503), INFO, "GET", r"cannot serve org/tiny now \(503\)\. Try again later\."),
    (Status(500), CONFIG, "GET", r"cannot serve config\.json of org/tiny now \(500\)"),
    (Status(503), WEIGHTS, "GET", r"cannot serve model\.safetensors of org/tiny now \(503\)"),
    (
        Status(429),
        INFO,
        "GET",
        r"is being asked too much \(429\)\. Try again in some minutes; being logged in",
    ),
    (Status(429, {"Retry-After": "37"}), INFO, "GET", r"too much \(429\)\. Try again in 37 seconds"),
    (Status(403), INFO, "GET", r"refuses org/tiny \(403\): the token is wrong or lacks the permission"),
    (Status(403), CONFIG, "HEAD", r"refuses config\.json of org/tiny \(403\).*log in with `hf auth login`"),
    (Status(403), WEIGHTS, "GET", r"refuses model\.safetensors of org/tiny \(403\)"),
    (Status(401), WEIGHTS, "HEAD", r"refuses model\.safetensors of org/tiny \(401\)"),
    (
        Status(404, {"X-Error-Code": "EntryNotFound"}),
        WEIGHTS,
        "HEAD",
        r"^org/tiny has no model.safetensors at ",
    ),
    (Status(404), WEIGHTS, "GET", r"refuses model\.safetensors of org/tiny \(404\)\.$"),
    (Status(200), INFO, "GET", r"Cannot get org/tiny from http.*Check the network"),
    (Status(200), WEIGHTS, "HEAD", r"Cannot get model\.safetensors of org/tiny from http"),
    (
        Short(0),
        CONFIG,
        "GET",
        r"config\.json of org/tiny arrived incomplete\. Nothing of it was kept; try again",
    ),
    (Short(0), WEIGHTS, "GET", r"model\.safetensors of org/tiny arrived incomplete"),
    (Short(SIZE - 1), WEIGHTS, "GET", r"model\.safetensors of org/tiny arrived incomplete"),
    (Cut(0), INFO, "GET", r"Cannot get org/tiny from http.*peer closed connection.*Check the network"),
    (Cut(50), INFO, "GET", r"Cannot get org/tiny from http.*peer closed connection.*Check the network"),
    (
        Cut(50, reset=True),
        INFO,
        "GET",
        r"Cannot get org/tiny from http.*[Cc]onnection reset.*Check the network",
    ),
]


@pytest.mark.parametrize(("fault", "path", "method", "words"), ANSWERS)
def test_failures_at_once(hub, load, cache, commit, files, fault, path, method, words):
    hub.inject(fault, path, method)
    check_failure(load, "org/tiny", WeightsUnavailableError, words)
    check_failure(load, "hf-hub:org/tiny", WeightsUnavailableError, r"^((?!no folder here).)*$")
    check_healed(hub, load, cache, files)


@pytest.mark.parametrize(
    ("path", "method"),
    [(INFO, "GET"), (CONFIG, "HEAD"), (CONFIG, "GET"), (WEIGHTS, "HEAD"), (WEIGHTS, "GET")],
)
def test_a_refusal_is_not_taken_for_a_mistyped_folder(hub, load, commit, path, method):
    hub.inject(Status(403), path, method)
    check_failure(load, "org/tiny", WeightsUnavailableError, r"refuses ((?!no folder here).)*$")


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
@pytest.mark.parametrize(("path", "after"), [(CONFIG, 0), (CONFIG, 100), (WEIGHTS, 0), (WEIGHTS, SIZE - 1)])
def test_connections_that_break_for_ever(hub, load, cache, commit, files, monkeypatch, path, after, reset):
    assert len(files["model.safetensors"]) == SIZE
    hub.inject(Cut(after, reset=reset), path)
    name = path.rpartition("/")[2]
    words = f"(stalls over|Cannot get) {name} of org/tiny"
    with short_limits(monkeypatch):
        check_failure(load, "org/tiny", WeightsUnavailableError, words)
    assert list(cache.glob("models--*/snapshots/*/model.safetensors")) == []
    check_healed(hub, load, cache, files)


def test_a_server_that_starts_over_for_ever(hub, load, cache, commit, files, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.inject(Cut(SIZE // 2, ignore_range=True), WEIGHTS)
    with short_limits(monkeypatch):
        check_failure(
            load, "org/tiny", WeightsUnavailableError, "(stalls over|Cannot get) model.safetensors of"
        )
    check_healed(hub, load, cache, files)


SILENCE = [
    (Hang(), INFO, "GET"),
    (Stall(0), INFO, "GET"),
    (Stall(100), INFO, "GET"),
    (Hang(), CONFIG, "HEAD"),
    (Hang(), CONFIG, "GET"),
    (Stall(0), CONFIG, "GET"),
    (Hang(), WEIGHTS, "HEAD"),
    (Stall(SIZE - 1), WEIGHTS, "GET"),
    (Status(503), WEIGHTS, "HEAD"),
]


@pytest.mark.parametrize(("fault", "path", "method"), SILENCE)
def test_silence_is_not_waited_out(hub, load, cache, commit, files, monkeypatch, fault, path, method):
    hub.inject(fault, path, method)
    what = "org/tiny" if path == INFO else f"{path.rpartition('/')[2]} of org/tiny"
    with short_limits(monkeypatch):
        check_failure(
            load, "org/tiny", WeightsUnavailableError, rf"http://\S+ stalls over {what} \(.*try again later"
        )
    check_healed(hub, load, cache, files)


def test_a_hub_that_is_slow_for_ever(hub, load, cache, commit, files, monkeypatch):
    healthy = hub.answer

    def answer(request, body):
        if not request.path.startswith("/api/models/"):
            return healthy(request, body)
        time.sleep(0.2)
        return Answer(302, {"Location": request.path + "x"})

    with monkeypatch.context() as patch:
        patch.setattr(hub, "answer", answer)
        with short_limits(monkeypatch, seconds=2.5):
            check_failure(load, "org/tiny", WeightsUnavailableError, "stalls over org/tiny")
    check_healed(hub, load, cache, files)


@pytest.mark.skipif(huggingface_hub.__version__ < "2", reason="this client does not resume after a cut")
def test_one_cut_is_survived(hub, load, cache, commit, files, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.inject(Cut(SIZE // 2), WEIGHTS, times=1)
    check_model(load("org/tiny"), files)
    check_cache(cache)


UNANSWERED = [Status(500), Status(502), Status(503), Status(504), Status(429), Cut(0), Cut(50), Cut(50, reset=True),
              Hang(), Stall(10), Status(200)]  # fmt: skip


@pytest.mark.parametrize("fault", UNANSWERED, ids=str)
def test_a_hub_without_an_answer_leaves_the_cached_copy(
    hub, load, cache, commit, files, monkeypatch, caplog, fault
):
    hub.tag("org/tiny", "v1.0", commit)
    load("org/tiny")
    hub.inject(fault, INFO)
    with short_limits(monkeypatch):
        check_model(load("org/tiny"), files)
    (warning,) = warnings_of(caplog)
    assert warning.endswith(f" Going on with the copy in the cache ({commit[:12]}).")
    with short_limits(monkeypatch):
        check_failure(load, "org/tiny@v1.0", WeightsUnavailableError, "org/tiny")
    check_healed(hub, load, cache, files)


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (Status(401), WeightsUnavailableError, r"refuses org/tiny \(401\)"),
        (Status(403), WeightsUnavailableError, r"refuses org/tiny \(403\)"),
        (Status(404, {"X-Error-Code": "RepoNotFound"}), UnknownModelError, r"There is no org/tiny at http"),
        (Status(404, {"X-Error-Code": "RevisionNotFound"}), UnknownModelError, r'has no revision "main"'),
    ],
)
def test_a_hub_that_says_no_is_believed(hub, load, cache, commit, files, caplog, fault, error, words):
    load("org/tiny")
    hub.inject(fault, INFO)
    check_failure(load, "org/tiny", error, words)
    check_model(load("org/tiny", local_files_only=True), files)
    check_model(load("org/tiny", revision=commit), files)
    assert warnings_of(caplog) == []
    check_healed(hub, load, cache, files)


@pytest.mark.parametrize(
    ("fault", "path"),
    [(Status(503), CONFIG), (Status(503), WEIGHTS), (Cut(10, reset=True), WEIGHTS), (Short(10), CONFIG),
     (Short(10), WEIGHTS), (Stall(10), WEIGHTS)],
)  # fmt: skip
def test_a_new_version_that_cannot_be_had_spares_the_old_one(
    hub, load, cache, files, commit, tmp_path, tiny_config, monkeypatch, path, fault
):
    load("org/tiny")
    new = model_files(tmp_path / "new", tiny_config(encoding="difference"), seed=1)
    hub.commit("org/tiny", new)
    hub.inject(fault, path)
    with short_limits(monkeypatch):
        check_failure(load, "org/tiny", WeightsUnavailableError, path.rpartition("/")[2])
    check_cache(cache)
    check_model(load("org/tiny", local_files_only=True), files)
    check_model(load("org/tiny", revision=commit), files)
    check_healed(hub, load, cache, new)


def test_nothing_listens(hub, load, cache, commit, files, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
        words = (
            r"Cannot get org/tiny from http.*[Cc]onnection refused.*`iwm download` has brought works without"
        )
        check_failure(load, "org/tiny", WeightsUnavailableError, words)
        check_failure(load, "org/tiny", WeightsUnavailableError, words, revision=commit)
    check_healed(hub, load, cache, files)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    check_model(load("org/tiny"), files)
    assert "refused" in warnings_of(caplog)[0]
    caplog.clear()
    check_model(load("org/tiny", revision=commit), files)
    assert warnings_of(caplog) == []


def test_a_host_without_an_address(hub, load, cache, commit, files, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setenv("HF_ENDPOINT", "http://no-such-host.invalid")
        words = r"Cannot get org/tiny from http://no-such-host.invalid .*Check the network"
        check_failure(load, "org/tiny", WeightsUnavailableError, words)
    check_healed(hub, load, cache, files)
    monkeypatch.setenv("HF_ENDPOINT", "http://no-such-host.invalid")
    check_model(load("org/tiny"), files)
    assert "no-such-host.invalid" in warnings_of(caplog)[0]


@pytest.mark.parametrize("endpoint", ["ftp://127.0.0.1", "127.0.0.1:1", "http://", "http://[", "nonsense"])
def test_an_address_that_is_none(load, monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    check_failure(load, "org/tiny", WeightsUnavailableError, "Cannot get org/tiny from ")


def test_a_copy_without_the_student_is_no_help(hub, load, commit, files, caplog):
    load("org/tiny")
    hub.inject(Status(503), INFO)
    words = r"student\.safetensors of org/tiny is not in the cache .*, and the Hub cannot be reached\."
    check_failure(load, "org/tiny", WeightsUnavailableError, words, branch="student")
    assert warnings_of(caplog)[0].endswith(f"Going on with the copy in the cache ({commit[:12]}).")


def test_a_download_that_fails_leaves_no_folder_that_loads(hub, cache, commit, files, tmp_path):
    hub.inject(Status(503), WEIGHTS)
    with pytest.raises(WeightsUnavailableError, match="503"):
        download("org/tiny", tmp_path / "copy", HubOptions(cache_dir=cache))
    assert not (tmp_path / "copy").exists()
    hub.heal()
    check_model(iwm.load(download("org/tiny", tmp_path / "copy", HubOptions(cache_dir=cache))), files)
