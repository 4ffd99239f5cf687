"""Folders made by `iwm download --to`: whole or not loadable, verified wherever they are."""

import errno
import json
import os
import shlex
import shutil
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_files import check_model, flip, forget_hashes, model_files
from loopback_hub import Corrupt

import iwm
from iwm.errors import IntegrityError, SaveError, WeightsUnavailableError
from iwm.finding import download
from iwm.hub_client import HubOptions
from iwm.integrity import Receipt, is_fetched
from iwm.world_model import WorldModel
from iwm.zoo import ZOO

FILES = ("config.json", "model.safetensors")


def test_a_downloaded_folder_loads_by_itself(hub, commit, files, options, tmp_path):
    assert download("org/tiny", tmp_path / "copy", options) == tmp_path / "copy"
    hub.requests.clear()
    check_model(iwm.load(tmp_path / "copy"), files)
    check_model(iwm.load(f"{tmp_path}/copy", local_files_only=True), files)
    assert hub.requests == []


def test_the_embedded_model_downloads_without_a_network(hub, tmp_path):
    download("iwm-tiny", tmp_path / "copy")
    assert hub.requests == []
    assert iwm.load(tmp_path / "copy").space == iwm.load().space


def test_a_download_never_takes_the_place_of_a_users_own_model(commit, options, tmp_path, tiny_config):
    own = model_files(tmp_path / "own", tiny_config(), seed=5)
    with pytest.raises(SaveError, match=r"own holds a model of its own; name another folder"):
        download("org/tiny", tmp_path / "own", options)
    assert {path.name: path.read_bytes() for path in (tmp_path / "own").iterdir()} == own


@pytest.mark.parametrize("moved", [None, "rename", "copytree"])
def test_a_downloaded_folder_is_verified_wherever_it_is(copy, commit, files, tmp_path, hashed, moved):
    place = copy
    if moved:
        place = tmp_path / "other place" / "model"
        place.parent.mkdir()
        copy.rename(place) if moved == "rename" else shutil.copytree(copy, place)
    check_model(iwm.load(place), files)
    forget_hashes()
    seen = len(hashed)
    check_model(iwm.load(place), files)
    check_model(WorldModel.from_pretrained(str(place)), files)
    assert len(hashed) == seen
    for name in FILES:
        content = (place / name).read_bytes()
        flip(place / name)
        for _ in range(2):
            with pytest.raises(IntegrityError) as caught:
                iwm.load(place)
            assert str(caught.value).endswith(
                f"Download it again: iwm download org/tiny@{commit} --to {shlex.quote(str(place))}"
            )
            assert f"{name} of org/tiny" in str(caught.value)
        assert (place / name).exists()
        (place / name).write_bytes(content)
    check_model(iwm.load(place, verify="always"), files)


def test_a_model_saved_over_a_download_is_the_users_own(copy, tiny_config, options):
    model = WorldModel(tiny_config("append"))
    model.save_pretrained(copy)
    assert not (copy / ".iwm" / "receipt.json").exists()
    check_model(iwm.load(copy), {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()})
    with pytest.raises(SaveError, match="holds a model of its own"):
        download("org/tiny", copy, options)


def test_a_second_download_takes_the_place_of_the_first(hub, options, files, tmp_path, tiny_config):
    big = model_files(tmp_path / "big", tiny_config("append"), seed=3, student=True) | {
        "README.md": b"# Big\n"
    }
    hub.add_repo("org/big", big)
    hub.add_repo("org/tiny", files)
    to = tmp_path / "copy"
    download("org/big", to, options)
    check_model(iwm.load(to, branch="teacher"), big)
    (to / "notes.txt").write_text("mine")
    download("org/tiny", to, options)
    assert {path.name for path in to.iterdir()} == {*files, ".iwm", "notes.txt"}
    check_model(iwm.load(to), files)
    with pytest.raises(WeightsUnavailableError, match="holds no student"):
        iwm.load(to, branch="student")
    flip(to / "model.safetensors")
    download("org/tiny", to, options)
    check_model(iwm.load(to), files)


def fail_at(monkeypatch, name, failure):
    """Copying of this file fails after its first bytes."""

    def copy(source, target):
        if Path(source).name == name:
            Path(target).write_bytes(Path(source).read_bytes()[:100])
            failure()
        shutil.copyfile(source, target)

    monkeypatch.setattr("iwm.downloads.shutil", SimpleNamespace(copyfile=copy))


def out_of_space():
    raise OSError(errno.ENOSPC, "No space left on device")


def download_and_die(name, to, cache, endpoint):
    """What a process does that is killed while it copies this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", endpoint)
        fail_at(patch, name, lambda: os.kill(os.getpid(), signal.SIGKILL))
        download("org/tiny", to, HubOptions(cache_dir=cache))


@pytest.fixture(params=["empty", "another model"])
def target(request, hub, tmp_path, tiny_config, options):
    """A folder to download to, which may hold an earlier download of a model of the same shape."""
    if request.param == "another model":
        hub.add_repo("org/first", model_files(tmp_path / "first", tiny_config(), seed=4, student=True))
        download("org/first", tmp_path / "target", options)
    (tmp_path / "target").mkdir(exist_ok=True)
    (tmp_path / "target" / "notes.txt").write_text("mine")
    (tmp_path / "target" / ".notes.txt.x.tmp").write_text("mine too")
    return tmp_path / "target"


def check_unfinished(target, commit):
    """A folder whose download broke off does not load, in words that say how to go on."""
    words = f"download broke off. Download it again: iwm download org/tiny@{commit} --to {target}"
    for branch in ("teacher", "student"):
        with pytest.raises(WeightsUnavailableError, match=rf"has no config\.json: its {words}$"):
            iwm.load(target, branch=branch)
    assert not (target / "student.safetensors").exists()


def check_repeated(target, files, options):
    """The download can be done again; nothing of the broken one is left, and nothing of the user's is gone."""
    download("org/tiny", target, options)
    check_model(iwm.load(target, verify="always"), files)
    assert {path.name for path in target.iterdir()} == {*files, ".iwm", "notes.txt", ".notes.txt.x.tmp"}


@pytest.mark.parametrize("name", FILES)
def test_a_disk_that_is_full_within_a_download(commit, files, target, options, monkeypatch, name):
    with monkeypatch.context() as patch:
        fail_at(patch, name, out_of_space)
        with pytest.raises(SaveError, match=rf"^Cannot write {target / name}: .*No space left on device"):
            download("org/tiny", target, options)
    check_unfinished(target, commit)
    assert not list(target.glob(".[cm]*.tmp"))
    check_repeated(target, files, options)


@pytest.mark.parametrize("name", FILES)
def test_a_process_that_is_killed_within_a_download(
    hub, commit, files, target, options, cache, name, processes
):
    process = processes.Process(target=download_and_die, args=(name, target, cache, hub.url))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (left,) = target.glob(f".{name}.*.tmp")
    assert left.stat().st_size == 100
    check_unfinished(target, commit)
    check_repeated(target, files, options)


def test_a_receipt_that_cannot_be_written_ends_the_download(commit, options, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / ".iwm").write_text("in the way")
    with pytest.raises(SaveError, match=r"^Cannot write .*receipt\.json\. Name another folder"):
        download("org/tiny", tmp_path / "target", options)
    assert [path.name for path in (tmp_path / "target").iterdir()] == [".iwm"]


def test_a_copy_that_is_not_what_was_fetched(commit, options, tmp_path, monkeypatch):
    def careless(source, target):
        shutil.copyfile(source, target)
        flip(Path(target))

    monkeypatch.setattr("iwm.downloads.shutil", SimpleNamespace(copyfile=careless))
    with pytest.raises(IntegrityError, match="is not what was published"):
        download("org/tiny", tmp_path / "target", options)
    with pytest.raises(IntegrityError, match="Download it again: iwm download org/tiny@"):
        iwm.load(tmp_path / "target")


@pytest.mark.parametrize(
    "source",
    [
        "",
        "x\x1b[2J",
        "org/tiny; rm -rf ~",
        "org/tiny\n",
        "$(reboot)",
        "a b",
        "org/tiny@a b",
        "a/b/c",
        "`x`",
        7,
        None,
    ],
)
def test_a_receipt_of_a_strange_source_is_not_shown(copy, source):
    path = copy / ".iwm" / "receipt.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"source": source}))
    flip(copy / "model.safetensors")
    with pytest.raises(IntegrityError) as caught:
        iwm.load(copy)
    assert str(caught.value) == (
        f"{path} is damaged, and nothing else says what the files of {copy} must be. Download the model "
        "again, to another folder; or delete it, if you trust them."
    )


def test_a_damaged_receipt_of_a_folder_is_an_error_until_it_is_deleted(copy, files):
    path = copy / ".iwm" / "receipt.json"
    path.write_bytes(path.read_bytes()[:-20])
    for call in (iwm.load, WorldModel.from_pretrained, partial(iwm.load, pretrained=False)):
        with pytest.raises(
            IntegrityError, match=r"receipt\.json is damaged, .* delete it, if you trust them\.$"
        ):
            call(copy)
    path.unlink()
    check_model(iwm.load(copy), files)


def test_a_folder_is_hashed_once_a_load_where_it_always_is(copy, files, hashed):
    for count in (1, 2):
        check_model(iwm.load(copy, verify="always"), files)
        assert hashed == [*FILES] * count


@pytest.mark.parametrize("receipts", [True, False], ids=["receipt", "no receipt"])
def test_a_snapshot_that_is_loaded_by_its_path_is_verified(
    load, commit, files, snapshot, receipt, receipts, monkeypatch
):
    load("org/tiny")
    if not receipts:
        receipt.unlink()
        forget_hashes()
    check_model(iwm.load(snapshot), files)
    monkeypatch.chdir(snapshot)
    check_model(iwm.load("."), files)
    for name in FILES:
        flip(snapshot / name)
        with pytest.raises(IntegrityError, match=rf"^{name} of .*{commit} .* was removed from the cache"):
            iwm.load(snapshot)
        check_model(load("org/tiny"), files)


def test_only_fetched_folders_must_stay_as_they_are(load, copy, snapshot, receipt, tmp_path):
    load("org/tiny")
    own = tmp_path / "snapshots" / "step-100"
    own.mkdir(parents=True)
    assert is_fetched(copy)
    assert is_fetched(snapshot)
    receipt.unlink()  # As when another program fetched it.
    assert is_fetched(snapshot)
    assert not is_fetched(tmp_path / "saved")
    assert not is_fetched(own)


def test_the_embedded_model_takes_its_licence_along(hub, tmp_path, options):
    terms = ZOO["iwm-tiny"].folder / "LICENSE"
    download("iwm-tiny", tmp_path / "copy")
    assert (tmp_path / "copy" / "LICENSE").read_bytes() == terms.read_bytes()
    assert "LICENSE" in Receipt.read(tmp_path / "copy" / ".iwm" / "receipt.json").files


def test_a_licence_comes_with_the_weights_and_goes_with_them(hub, files, tmp_path, options):
    first = hub.add_repo("org/tiny", files | {"LICENSE": b"As you like it.", "LICENSE.txt": b"no"})
    hub.commit("org/tiny", {"LICENSE": None})
    to = tmp_path / "copy"
    download(f"org/tiny@{first}", to, options)
    assert (to / "LICENSE").read_bytes() == b"As you like it."
    assert not (to / "LICENSE.txt").exists()
    download("org/tiny", to, options)
    assert not (to / "LICENSE").exists()
    hub.inject(Corrupt(), f"*/resolve/{first}/LICENSE")
    shutil.rmtree(options.folder)
    with pytest.raises(IntegrityError, match=r"^LICENSE of org/tiny@.* is not what was published"):
        download(f"org/tiny@{first}", to, options)
