"""`iwm push`: a folder goes to the Hub, its zoo entry comes out, and what fails is told in one line."""

import hashlib
import os
import re
import subprocess
import sys

import pytest
import torch
from hub_files import check_entry, evaluate
from loopback_hub import Cut, Hang, Repo, Status

import iwm
from iwm.model_folder import read_config
from iwm.zoo import ZOO

# Of the client, about its own call.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = ("--token", "hf_good")
BROKE_OFF = (
    r"Publishing org/name broke off \(.*\)\. It may or may not have arrived: see http\S+/commits/main, or"
)


def check_published(printed, hub, folder, repo="org/name"):
    """The output names the commit and pins every file; the Hub holds the folder's."""
    entry = evaluate(printed[printed.index("ZooEntry(") :])
    assert printed.startswith(f"Published {repo}@{hub.repo(repo).refs['main']}. Its zoo entry:\n\nZooEntry(")
    check_entry(entry, hub, repo, read_config(folder))
    for name in ("config.json", "model.safetensors"):
        assert hub.files(repo)[name] == (folder / name).read_bytes()
    return entry


@pytest.mark.parametrize("private", [False, True])
def test_a_pushed_folder_loads_by_repository_and_by_the_printed_entry(
    hub, command, model_folder, monkeypatch, tmp_path, private
):
    shown = command("push", model_folder, "org/name", *TOKEN, *(["--private"] if private else []))
    assert (shown.code, shown.err) == (0, "")
    entry = check_published(shown.out, hub, model_folder)
    assert hub.repo("org/name").private == private
    options = {"cache_dir": tmp_path / "cache", "token": "hf_good"}
    local, loaded = iwm.load(model_folder), iwm.load("org/name", **options)
    assert (loaded.config, loaded.space) == (local.config, local.space)
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in local.state_dict().items())
    monkeypatch.setitem(ZOO, "tiny", entry)
    hub.requests.clear()
    assert iwm.load("tiny", **options).space == local.space
    assert not hub.requests


def test_json_is_what_a_zoo_entry_pins(hub, command, model_folder):
    entry = command("push", model_folder, "org/name", *TOKEN, "--json").json
    assert (entry["repo"], entry["revision"]) == ("org/name", hub.repo("org/name").resolve("main"))
    assert {"config.json", "model.safetensors"} <= entry["sha256"].keys()
    weights = (model_folder / "model.safetensors").read_bytes()
    assert entry["sha256"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()


def test_the_message_is_the_commits(hub, command, model_folder, monkeypatch):
    bodies, real = [], hub.answer
    monkeypatch.setattr(hub, "answer", lambda request, body: bodies.append(body) or real(request, body))
    command("push", model_folder, "org/name", *TOKEN, "--message", "Longer training")
    assert any(b'"summary": "Longer training"' in body for body in bodies)


def test_a_push_from_a_fresh_process(hub, model_folder, environment):
    """With the token of the environment and the client's progress bars, which stay out of the output."""
    place = {"HF_TOKEN": "hf_good", "HF_ENDPOINT": hub.url}
    bars = {"HF_HUB_DISABLE_PROGRESS_BARS": "0", "TQDM_POSITION": "-1"}  # Even where there is no terminal.
    done = subprocess.run(
        [sys.executable, "-m", "iwm", "push", str(model_folder), "org/name"],
        env=environment | place | bars, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_published(done.stdout, hub, model_folder)
    assert "100%" in done.stderr
    assert "Warning" not in done.stderr


def _refused(hub, monkeypatch, folder):
    hub.outsiders.add("hf_outsider")
    return "push", folder, "org/name", "--token", "hf_outsider"


def _down(hub, monkeypatch, folder):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return "push", folder, "org/name", *TOKEN


def _broken(hub, monkeypatch, folder):
    hub.inject(Status(500), "*/commit/*", "POST")
    return "push", folder, "org/name", *TOKEN


def _lost(hub, monkeypatch, folder):
    hub.inject(Cut(9), "*/commit/*", "POST")
    return "push", folder, "org/name", *TOKEN


def _hanging(hub, monkeypatch, folder):
    monkeypatch.setattr("iwm.publishing.GRACE_SECONDS", 0.3)
    hub.inject(Hang(), "/api/repos/create", "POST")
    return "push", folder, "org/name", *TOKEN


def _altered(hub, monkeypatch, folder):
    real = Repo.commit

    def losing_the_card(self, changes, *branch):
        return real(self, {path: blob for path, blob in changes.items() if path != "README.md"}, *branch)

    monkeypatch.setattr(Repo, "commit", losing_the_card)
    return "push", folder, "org/name", *TOKEN


def _offline(hub, monkeypatch, folder):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return "push", folder, "org/name", *TOKEN


def _no_model(hub, monkeypatch, folder):
    return "push", folder.parent, "org/name", *TOKEN


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda hub, monkeypatch, folder: ("push", folder, "org/name"), r"\(401\).*`hf auth login`"),
        (_refused, r"\(403\).*`hf auth login`"),
        (lambda hub, monkeypatch, folder: ("push", folder, "name", *TOKEN), 'write "org/name"'),
        (_no_model, r"is not a model folder: it has no config\.json"),
        (_down, r"cannot be reached .*org/name was not published; check the network"),
        (_broken, r"\(500\)\. Try again later"),
        (_lost, BROKE_OFF),
        (_hanging, BROKE_OFF),
        (_altered, r"README\.md of org/name@[0-9a-f]{40} is not what was sent"),
        (_offline, "HF_HUB_OFFLINE is set"),
    ],
    ids=["anonymous", "refused", "name", "folder", "down", "500", "lost", "hang", "altered", "offline"],
)
def test_what_fails_is_one_line_and_status_1(hub, command, model_folder, monkeypatch, prepare, words):
    assert re.search(words, command(*prepare(hub, monkeypatch, model_folder)).error)
    assert os.path.exists(model_folder / "config.json")
