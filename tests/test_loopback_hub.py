"""The loopback hub against the real client: what it serves, refuses, takes and breaks."""

import http.client
import io
import random
import threading
import time
from contextlib import ExitStack
from hashlib import sha1, sha256
from pathlib import Path
from urllib.parse import quote

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loopback_hub import Corrupt, Cut, Hang, LoopbackHub, Short, Stall, Status

CONFIG = b'{"name": "tiny"}'
WEIGHTS = random.Random(0).randbytes(300_000)
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS}
RESOLVE = "/org/model/resolve/main"
RESUMES_CUTS = pytest.mark.skipif(
    int(huggingface_hub.__version__.split(".")[0]) < 2, reason="this client resumes only after a timeout"
)


@pytest.fixture
def hub(monkeypatch):
    """A hub with one public repository; the client uploads over HTTP and forgets its connections afterwards."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    with LoopbackHub() as hub:
        hub.tokens.add("hf_good")
        hub.add_repo("org/model", FILES)
        yield hub
    huggingface_hub.close_session()


@pytest.fixture
def download(hub, tmp_path):
    """`download(file, repo, **options)`: the bytes that the client brings, anonymously unless told otherwise."""

    def bring(file, repo="org/model", **options):
        options = {"token": False, "cache_dir": tmp_path / "cache", "endpoint": hub.url, **options}
        return Path(hf_hub_download(repo, file, **options)).read_bytes()

    return bring


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url, token="hf_good")


@pytest.fixture
def push(api, monkeypatch):
    """`push(repo, operations, **options)`: commits.

    Clients before 1.5 accept the answer to a commit from the default endpoint only, whatever `endpoint=` says.
    """

    def commit(repo, operations, **options):
        with monkeypatch.context() as patch:
            patch.setattr("huggingface_hub.constants.ENDPOINT", api.endpoint)
            return api.create_commit(repo, operations, commit_message="Push", **options)

    return commit


@pytest.fixture
def get(hub):
    """`get(path, **headers)`: status, headers and body of a plain request."""
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=5)

    def ask(path, method="GET", **headers):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    yield ask
    connection.close()


def test_downloads_have_the_bytes_and_the_commit(hub, download, tmp_path):
    first = hub.repo("org/model").refs["main"]
    second = hub.commit("org/model", {"config.json": b"new"})
    hub.tag("org/model", "v1", first)
    hub.tag("org/model", "refs/pr/1", second)
    assert first != second
    assert download("config.json") == b"new"
    assert download("model.safetensors") == WEIGHTS
    assert download("config.json", revision="v1") == CONFIG
    assert download("config.json", revision="refs/pr/1") == b"new"
    assert download("config.json", revision=first) == CONFIG
    snapshots = tmp_path / "cache" / "models--org--model" / "snapshots"
    assert {path.name for path in snapshots.iterdir()} == {first, second}
    assert hub.files("org/model", "v1") == FILES


def test_requests_are_recorded_in_order(hub, download):
    download("model.safetensors")
    assert hub.requests[0].method == "HEAD"
    assert hub.requests[0].path == f"{RESOLVE}/model.safetensors"
    assert hub.requests[0].status == 302
    assert hub.requests[-1].method == "GET"
    assert hub.requests[-1].path.startswith("/cdn/")
    assert hub.requests[-1].status == 200
    assert {request.subject for request in hub.requests} == {f"{RESOLVE}/model.safetensors"}
    assert not any("authorization" in request.headers for request in hub.requests)
    hub.requests.clear()
    HfApi(endpoint=hub.url, token="hf_good").model_info("org/model")
    assert [request.headers["authorization"] for request in hub.requests] == ["Bearer hf_good"]


def test_model_info_and_tree_name_blobs(hub, api):
    info = api.model_info("org/model", files_metadata=True)
    assert (info.id, info.sha) == ("org/model", hub.repo("org/model").refs["main"])
    assert (info.private, info.gated) == (False, False)
    small, large = info.siblings
    assert (small.rfilename, small.size, small.lfs) == ("config.json", len(CONFIG), None)
    assert small.blob_id == sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest()
    assert (large.rfilename, large.size) == ("model.safetensors", len(WEIGHTS))
    assert (large.lfs.sha256, large.lfs.size) == (sha256(WEIGHTS).hexdigest(), len(WEIGHTS))
    assert [file.size for file in api.model_info("org/model").siblings] == [None, None]
    assert [file.blob_id for file in api.list_repo_tree("org/model")] == [small.blob_id, large.blob_id]


def test_files_that_do_not_exist(hub, download, api):
    with pytest.raises(EntryNotFoundError):
        download("absent.json")
    with pytest.raises(RevisionNotFoundError):
        download("config.json", revision="absent")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/model", revision="absent")


@pytest.mark.parametrize(("token", "status"), [(False, 401), ("hf_good", 404)])
def test_a_repository_that_does_not_exist(hub, download, token, status):
    with pytest.raises(RepositoryNotFoundError) as caught:
        download("config.json", "org/absent", token=token)
    assert caught.value.response.status_code == status
    with pytest.raises(RepositoryNotFoundError) as caught:
        HfApi(endpoint=hub.url, token=token).model_info("org/absent")
    assert caught.value.response.status_code == status


def test_a_private_repository_exists_for_its_tokens_only(hub, download):
    hub.outsiders.add("hf_other")
    hub.add_repo("org/secret", FILES, private=True)
    for token in (False, "hf_other"):
        with pytest.raises(RepositoryNotFoundError):
            download("config.json", "org/secret", token=token)
    assert download("model.safetensors", "org/secret", token="hf_good") == WEIGHTS


@pytest.mark.parametrize(("token", "status"), [(False, 401), ("hf_other", 403)])
def test_a_gated_repository_shows_only_its_description(hub, download, token, status):
    hub.outsiders.add("hf_other")
    hub.add_repo("org/gated", FILES, gated=True)
    with pytest.raises(GatedRepoError) as caught:
        download("config.json", "org/gated", token=token)
    assert caught.value.response.status_code == status
    info = HfApi(endpoint=hub.url, token=token).model_info("org/gated")
    assert (info.gated, len(info.siblings)) == ("auto", 2)
    assert download("config.json", "org/gated", token="hf_good") == CONFIG


def test_an_unknown_token_is_refused_even_for_public_files(hub, download):
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as caught:
        download("config.json", token="hf_bad")
    assert not isinstance(caught.value, RepositoryNotFoundError)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(endpoint=hub.url).whoami(token="hf_bad")
    assert HfApi(endpoint=hub.url).whoami(token="hf_good")["name"] == "loopback"


# The client sends large files with an argument that its HTTP library deprecates.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_push_can_be_downloaded(hub, api, push, download):
    weights, card = random.Random(1).randbytes(2_000_000), b"---\nlicense: apache-2.0\n---\n# Model\n"
    assert api.create_repo("org/new", private=True).repo_id == "org/new"
    api.create_repo("org/new", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo("org/new")
    assert hub.repo("org/new").private
    files = {"README.md": card, "config.json": CONFIG, "model.safetensors": weights}
    additions = [CommitOperationAdd(path, io.BytesIO(content)) for path, content in files.items()]
    pushed = push("org/new", additions)
    assert pushed.oid == hub.repo("org/new").refs["main"]
    assert hub.files("org/new") == {".gitattributes": hub.files("org/new")[".gitattributes"], **files}
    paths = [request.path for request in hub.requests]
    assert "/api/validate-yaml" in paths
    for path, content in files.items():
        assert download(path, "org/new", token="hf_good") == content
    # Content that the hub knows is not uploaded again.
    uploads = [request.method for request in hub.requests].count("PUT")
    renamed = [CommitOperationAdd("copy.safetensors", weights), CommitOperationDelete("model.safetensors")]
    push("org/new", renamed, parent_commit=pushed.oid)
    assert [request.method for request in hub.requests].count("PUT") == uploads == 1
    assert set(hub.files("org/new")) == {".gitattributes", "README.md", "config.json", "copy.safetensors"}
    with pytest.raises(HfHubHTTPError, match="412"):
        push("org/new", renamed[1:], parent_commit=pushed.oid)


def test_only_insiders_may_write(hub):
    hub.outsiders.add("hf_other")
    add = [CommitOperationAdd("a.txt", b"a")]
    for token, status in ((False, 401), ("hf_other", 403), ("hf_bad", 401)):
        api = HfApi(endpoint=hub.url, token=token)
        with pytest.raises(HfHubHTTPError) as caught:
            api.create_repo("org/new")
        assert caught.value.response.status_code == status
        with pytest.raises(HfHubHTTPError) as caught:
            api.create_commit("org/model", add, commit_message="a")
        assert caught.value.response.status_code == status
    assert hub.files("org/model") == FILES


def test_content_that_does_not_match_its_name_is_not_stored(hub, get):
    assert get(f"/cdn/{'0' * 64}", "PUT")[0] == 400
    assert get(f"/cdn/{'0' * 64}")[0] == 404


def test_ranges(hub, get):
    link = get(f"{RESOLVE}/model.safetensors")[1]["Location"].removeprefix(hub.url)
    for path, content in ((f"{RESOLVE}/config.json", CONFIG), (link, WEIGHTS)):
        size = len(content)
        status, headers, body = get(path, Range="bytes=3-")
        assert (status, headers["Content-Range"], body) == (206, f"bytes 3-{size - 1}/{size}", content[3:])
        assert get(path, Range="bytes=3-5")[2] == content[3:6]
        assert get(path, Range="bytes=-4")[2] == content[-4:]
        assert get(path, Range=f"bytes={size}-")[0] == 416


@pytest.mark.parametrize(
    "fault", [pytest.param(Cut(after=100_500), marks=RESUMES_CUTS), Stall(after=100_500)]
)
def test_an_interrupted_download_is_resumed_where_it_stopped(hub, download, monkeypatch, fault):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.inject(fault, times=1)
    assert download("model.safetensors") == WEIGHTS
    assert hub.requests[-1].headers["range"] == "bytes=100000-"
    assert hub.requests[-1].status == 206


def test_a_cut_can_ignore_ranges(hub, get):
    hub.inject(Cut(after=2, ignore_range=True), path="*/config.json")
    with pytest.raises(http.client.IncompleteRead) as caught:
        get(f"{RESOLVE}/config.json", Range="bytes=5-")
    assert (caught.value.partial, caught.value.expected) == (CONFIG[:2], len(CONFIG) - 2)


def test_a_cut_can_reset_the_connection(hub, get):
    hub.inject(Cut(after=2, reset=True), path="*/config.json")
    with pytest.raises(ConnectionResetError):
        get(f"{RESOLVE}/config.json")


def test_a_short_file_is_noticed_by_its_size(hub, download, api):
    hub.inject(Short(size=1000))
    with pytest.raises(OSError, match="Consistency check failed"):
        download("model.safetensors")
    assert api.model_info("org/model", files_metadata=True).siblings[1].size == len(WEIGHTS)


def test_damage_arrives_without_notice(hub, download):
    hub.inject(Corrupt(offset=1))
    hub.inject(Corrupt(), path="*/config.json")
    assert download("model.safetensors") == WEIGHTS[:1] + bytes([WEIGHTS[1] ^ 1]) + WEIGHTS[2:]
    assert download("config.json") == bytes([CONFIG[0] ^ 1]) + CONFIG[1:]


def test_a_status_comes_as_often_as_asked_and_nothing_is_done(hub, get):
    hub.inject(Status(503, message="Busy"), path="*/config.json", times=2)
    hub.inject(Status(429, {"Retry-After": "7"}), path="*/config.json")
    answers = [get(f"{RESOLVE}/config.json") for _ in range(3)]
    assert [status for status, _, _ in answers] == [503, 503, 429]
    assert answers[0][2] == b'{"error": "Busy"}'
    assert answers[2][1]["Retry-After"] == "7"
    assert get(f"{RESOLVE}/config.json", "HEAD")[0] == 200
    hub.heal()
    assert get(f"{RESOLVE}/config.json")[0] == 200
    hub.inject(Status(500), path="/api/models/*/commit/*", method="POST")
    api = HfApi(endpoint=hub.url, token="hf_good")
    with pytest.raises(HfHubHTTPError):
        api.create_commit("org/model", [CommitOperationAdd("a.txt", b"a")], commit_message="a")
    assert hub.files("org/model") == FILES


@pytest.mark.parametrize("fault", [Stall(after=2), Hang()])
@pytest.mark.parametrize("healed", [True, False], ids=["healed", "closed"])
def test_silence_lasts_until_healed_or_closed(fault, healed):
    with ExitStack() as running:
        hub = running.enter_context(LoopbackHub())
        hub.add_repo("org/model", FILES)
        hub.inject(fault, path="*/config.json")
        connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=10)
        connection.request("GET", f"{RESOLVE}/config.json")
        end = threading.Timer(0.2, hub.heal if healed else running.close)
        began = time.monotonic()
        end.start()
        with pytest.raises(http.client.HTTPException) as caught:
            connection.getresponse().read()
        assert 0.15 < time.monotonic() - began < 5
        assert getattr(caught.value, "partial", b"") == (CONFIG[:2] if isinstance(fault, Stall) else b"")
        assert hub.requests[0].status == (200 if isinstance(fault, Stall) else None)
        end.join()
        connection.close()


def test_revisions_with_a_slash_are_one_part_of_the_path(hub, get):
    hub.commit("org/model", {"config.json": b"draft"}, branch="refs/pr/2")
    assert get(f"/org/model/resolve/{quote('refs/pr/2', safe='')}/config.json")[2] == b"draft"
