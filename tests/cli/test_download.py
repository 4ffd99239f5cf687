"""`iwm download`: verified files in the cache or in a folder, to be used without a network."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from hub_files import model_files, pinned_entry

import iwm
from iwm.errors import IntegrityError
from iwm.model_folder import read_config
from iwm.zoo import ZOO


@pytest.fixture
def files(tiny_config, tmp_path):
    """The files of a model of its own licence, and a card."""
    config = tiny_config().replace(license="mit", recipe={"command": "iwm pretrain --data a"})
    return model_files(tmp_path / "made", config) | {"README.md": b"# A card"}


@pytest.fixture
def repo(hub, files, monkeypatch, tmp_path):
    """The commit of `org/tiny` on the Hub; the cache is empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return hub.add_repo("org/tiny", files)


def names(folder):
    return {path.name for path in folder.iterdir()} - {".iwm"}


def said(shown):
    """What each line says: the name, the folder, and what to type to load it."""
    assert shown.code == 0, shown.err
    line = r'(\S+): verified, in (.+)\. Load it: iwm\.load\("([^"]+)"(?:, cache_dir=".+")?\)'
    return [re.fullmatch(line, printed).groups() for printed in shown.out.splitlines()]


def test_into_the_cache(hub, repo, command, tmp_path, files):
    ((name, folder, place),) = said(command("download", "org/tiny"))
    assert (name, place) == ("org/tiny", "org/tiny")
    assert folder == str(tmp_path / "cache" / "models--org--tiny" / "snapshots" / repo)
    hub.requests.clear()
    assert iwm.load(place, local_files_only=True).space == iwm.load(tmp_path / "made").space
    assert iwm.load(f"org/tiny@{repo}").config.license == "mit"
    assert not hub.requests


def test_into_another_cache(repo, command, tmp_path):
    ((_, folder, _),) = said(command("download", "org/tiny", "--cache-dir", tmp_path / "other"))
    assert folder.startswith(str(tmp_path / "other" / "models--org--tiny"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["org/tiny", "hf-hub:org/tiny", "org/tiny@main", "org/tiny@feature/x"])
def test_one_model_into_a_folder(hub, repo, command, tmp_path, monkeypatch, files, name):
    hub.tag("org/tiny", "feature/x", repo)
    monkeypatch.chdir(tmp_path)
    assert said(command("download", name, "--to", "models/mine")) == [(name, "models/mine", "models/mine")]
    assert names(tmp_path / "models" / "mine") == files.keys()
    hub.requests.clear()
    loaded = iwm.load("models/mine")
    assert loaded.space == iwm.load(tmp_path / "made").space
    assert loaded.config == read_config(tmp_path / "made")
    assert not hub.requests


def test_a_downloaded_folder_is_verified(repo, command, tmp_path):
    command("download", "org/tiny", "--to", tmp_path / "mine")
    (tmp_path / "mine" / "config.json").write_text((tmp_path / "mine" / "config.json").read_text() + " ")
    words = f"iwm download org/tiny@{repo} --to {tmp_path / 'mine'}"
    with pytest.raises(IntegrityError, match=re.escape(words)):
        iwm.load(tmp_path / "mine")
    assert command(*shlex.split(words)[1:]).code == 0
    assert iwm.load(tmp_path / "mine").config.license == "mit"


def test_several_models_have_a_folder_each(hub, repo, command, tmp_path, files):
    hub.add_repo("other/small", files)
    wanted = ["org/tiny", "hf-hub:other/small@main", "iwm-tiny", "org/tiny"]
    shown = said(command("download", *wanted, "--to", tmp_path / "models"))
    folders = [str(tmp_path / "models" / name) for name in ("tiny", "small", "iwm-tiny")]
    assert shown == list(zip(wanted, folders, folders, strict=False))
    assert names(tmp_path / "models") == {"tiny", "small", "iwm-tiny"}
    again = command("download", *wanted, "--to", tmp_path / "models", "--json").json
    assert again == [{"name": n, "folder": f} for n, f in zip(wanted, folders, strict=False)]
    for folder in folders[:2]:
        assert iwm.load(folder).space == iwm.load(tmp_path / "made").space


def test_models_whose_folders_would_be_one(hub, repo, command, tmp_path, files):
    hub.add_repo("other/tiny", files)
    for wanted in (["org/tiny", "other/tiny"], ["org/tiny", "org/tiny@main"]):
        shown = command("download", *wanted, "--to", tmp_path / "models")
        assert "Two of the models would be in one folder" in shown.error
        assert len(said(command("download", *wanted))) == 2
    assert not (tmp_path / "models").exists()


def test_the_embedded_model(command, tmp_path, hub):
    embedded = ZOO["iwm-tiny"].folder
    ((_, folder, place),) = said(command("download", "iwm-tiny"))
    assert (folder, place) == (str(embedded), "iwm-tiny")
    said(command("download", "iwm-tiny", "--to", tmp_path / "mine"))
    assert names(tmp_path / "mine") >= {"config.json", "model.safetensors"}
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "mine" / name).read_bytes() == (embedded / name).read_bytes()
    assert iwm.load(tmp_path / "mine").config == iwm.load().config
    assert not hub.requests


def test_a_pinned_name(hub, repo, command, tmp_path, monkeypatch, files):
    entry = pinned_entry(read_config(tmp_path / "made"), repo, files)
    monkeypatch.setitem(ZOO, "tiny", entry)
    hub.commit("org/tiny", {"config.json": b"{}"})
    ((_, folder, place),) = said(command("download", "tiny"))
    assert (folder.rpartition("/")[2], place) == (repo, "tiny")
    ((_, folder, _),) = said(command("download", "tiny", "--to", tmp_path / "mine"))
    hub.requests.clear()
    for name in ("tiny", folder):
        assert iwm.load(name, local_files_only=True).config == entry.config
    assert not hub.requests


OFFLINE = """
import json, sys
import iwm
found = {}
for place in sys.argv[1:]:
    model = iwm.load(place)
    found[place] = [model.space, model.config.license]
json.dump(found, sys.stdout)
"""


def test_downloaded_models_load_in_a_fresh_process_without_a_network(
    hub, repo, command, tmp_path, environment
):
    home = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    said(command("download", "org/tiny"))
    said(command("download", "org/tiny", "--to", tmp_path / "mine"))
    hub.__exit__(None, None, None)
    places = ["org/tiny", f"org/tiny@{repo}", str(tmp_path / "mine")]
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *places],
        env=environment | home | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    expected = [iwm.load(tmp_path / "made").space, "mit"]
    assert json.loads(done.stdout) == dict.fromkeys(places, expected)


def test_progress_is_no_part_of_the_result(hub, repo, tmp_path, environment):
    shown = {"HF_HUB_DISABLE_PROGRESS_BARS": "0", "TQDM_POSITION": "-1"}  # Even where there is no terminal.
    done = subprocess.run(
        [sys.executable, "-m", "iwm", "download", "org/tiny", "--cache-dir", str(tmp_path / "cache")],
        env=environment | shown | {"HF_ENDPOINT": hub.url}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    folder = tmp_path / "cache" / "models--org--tiny" / "snapshots" / repo
    assert (
        done.stdout
        == f'org/tiny: verified, in {folder}. Load it: iwm.load("org/tiny", cache_dir="{tmp_path}/cache")\n'
    )
    assert "100%" in done.stderr


@pytest.mark.parametrize("to", [[], ["--to", "DIR"]])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["iwm-equi-18-384"], "`iwm pretrain --recipe iwm-equi-18-384 --data FOLDER --out DIR`"),
        (["iwm-tyni"], 'No model or repository is called "iwm-tyni". Did you mean "iwm-tiny"'),
        (["a/b/c"], 'No model or repository is called "a/b/c".'),
        (["org/tiny", "--verify", "sometimes"], 'verify is "sometimes". Choose from: always, once.'),
        (["iwm-tiny", "--verify", "alway"], 'verify is "alway". Did you mean "always"?'),
        (["org/none"], "There is no org/none"),
        (["org/tiny@none"], 'org/tiny has no revision "none"'),
    ],
)
def test_what_cannot_be_downloaded(hub, repo, command, tmp_path, words, message, to):
    target = tmp_path / "new"
    assert (
        message in command("download", *words, *[str(target) if word == "DIR" else word for word in to]).error
    )
    assert not target.exists()
    assert not (tmp_path / "cache").exists()


def test_the_second_of_two_fails(repo, command):
    shown = command("download", "org/tiny", "iwm-tyni")
    assert shown.code == 1
    assert shown.out.startswith("org/tiny: verified, in ")
    assert re.fullmatch("Error: .+\n", shown.err)


def test_an_unreachable_hub(repo, command, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "Check the network" in command("download", "org/tiny").error


def test_offline(repo, command, monkeypatch, hub):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "no request may be made" in command("download", "org/tiny").error
    assert not hub.requests


def test_a_private_repository_needs_its_token(hub, repo, command, files):
    hub.add_repo("org/closed", files, private=True)
    assert "or it is private" in command("download", "org/closed").error
    said(command("download", "org/closed", "--token", "hf_good"))


def test_folders_that_cannot_take_it(repo, command, tmp_path):
    (tmp_path / "file").write_text("")
    assert (
        f"Cannot write {tmp_path / 'file'}"
        in command("download", "org/tiny", "--to", tmp_path / "file").error
    )
    assert (tmp_path / "file").read_text() == ""
    shown = command("download", "org/tiny", "--to", tmp_path / "made")
    assert f"{tmp_path / 'made'} holds a model of its own" in shown.error


@pytest.mark.parametrize("name", ["org/tiny", "org/tiny@main", "hf-hub:org/tiny", "tiny", "FOLDER"])
@pytest.mark.parametrize("evaluation", ["mrr", "knn"])
def test_nothing_is_recorded_into_published_models(
    hub, repo, command, tmp_path, monkeypatch, files, name, evaluation
):
    """Their config has a hash that was published; the refusal comes before the work."""
    monkeypatch.setattr("iwm.cli.evaluate.load_model", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.setitem(ZOO, "tiny", pinned_entry(read_config(tmp_path / "made"), repo, files))
    said(command("download", "org/tiny", "--to", tmp_path / "mine"))
    hub.requests.clear()
    name = str(tmp_path / "mine") if name == "FOLDER" else name
    data = {"mrr": ["--data", tmp_path], "knn": ["--train", tmp_path, "--val", tmp_path]}[evaluation]
    error = command("eval", evaluation, *data, "--model", name, "--record").error
    if name == str(tmp_path / "mine"):
        assert f"{name} holds downloaded files, which must stay as they are; copy them first." in error
    else:
        assert f"{name} is published; --record writes to a model folder of your own." in error
    assert not hub.requests
