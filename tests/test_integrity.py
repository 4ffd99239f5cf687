"""Whether fetched files are what was published: in transit, in the cache, in a folder; and how often they are read."""

import os
import shutil
from functools import partial
from hashlib import sha1, sha256

import pytest
from hub_files import check_cache, check_model, flip, model_files, pinned_entry
from loopback_hub import Corrupt

import iwm
from iwm import integrity
from iwm.errors import IntegrityError, InvalidConfigError, SaveError, WeightsUnavailableError
from iwm.hub_client import HubOptions
from iwm.integrity import hash_file
from iwm.loading import download
from iwm.world_model import WorldModel
from iwm.zoo import ZOO

FILES = ("config.json", "model.safetensors")


@pytest.fixture
def files(tmp_path, tiny_config):
    return model_files(tmp_path / "saved", tiny_config())


@pytest.fixture
def commit(hub, files):
    """Of `org/tiny` on the Hub."""
    return hub.add_repo("org/tiny", files)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def load(cache):
    return partial(iwm.load, cache_dir=cache)


@pytest.fixture
def snapshot(cache, commit):
    return cache / "models--org--tiny" / "snapshots" / commit


@pytest.fixture
def receipt(cache, commit):
    return cache / "models--org--tiny" / ".iwm" / f"{commit}.json"


@pytest.fixture
def copy(commit, cache, tmp_path):
    """A folder made by `iwm download`."""
    return download("org/tiny", tmp_path / "copy", HubOptions(cache_dir=cache))


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that are read through for their hash, as it happens; `fresh()` ends what is known."""
    names = []

    def counting(path, algorithm):
        names.append(path.name)
        return hash_file(path, algorithm)

    monkeypatch.setattr(integrity, "hash_file", counting)
    integrity._HASHED.clear()
    return names


def fresh():
    """As in a new process."""
    integrity._HASHED.clear()


def digests(content, name):
    """How the Hub names a file: by its sha256, or by its id in git."""
    if name.endswith(".safetensors"):
        return f"sha256 {sha256(content).hexdigest()}"
    return f"git {sha1(b'blob %d' % len(content) + bytes(1) + content).hexdigest()}"


def flipped(content, offset):
    damaged = bytearray(content)
    damaged[offset] ^= 1
    return bytes(damaged)


def check_refusal(error, name, expected, found, commit, place):
    """The message says which file, what it should be, what it is and what was done."""
    text = str(error)
    assert text.startswith(f"{name} of org/tiny@{commit} is not what was published: expected {expected}, ")
    assert f"found {found}, in {place / name}" in text
    assert text.endswith("It was removed from the cache; the next call fetches it anew.")


@pytest.mark.parametrize("offset", [0, -1])
@pytest.mark.parametrize("name", FILES)
def test_damage_in_transit(hub, load, cache, commit, files, snapshot, name, offset):
    hub.inject(Corrupt(offset), path=f"*/{name}")
    for _ in range(2):
        with pytest.raises(IntegrityError) as caught:
            load("org/tiny")
        found = digests(flipped(files[name], offset), name).split()[1]
        check_refusal(caught.value, name, digests(files[name], name), found, commit, snapshot)
        check_cache(cache)
        assert not (snapshot / name).exists()
    hub.heal()
    check_model(load("org/tiny"), files)
    check_cache(cache)


@pytest.mark.parametrize("options", [{}, {"local_files_only": True}], ids=["online", "offline"])
@pytest.mark.parametrize("receipts", [True, False], ids=["receipt", "no receipt"])
@pytest.mark.parametrize("name", FILES)
def test_damage_at_rest(hub, load, cache, commit, files, snapshot, receipt, name, receipts, options):
    load("org/tiny")
    stat = (snapshot / name).stat()
    flip(snapshot / name)
    os.utime(snapshot / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (snapshot / name).stat().st_mtime_ns == stat.st_mtime_ns
    if not receipts:
        receipt.unlink()
        fresh()
    with pytest.raises(IntegrityError) as caught:
        load("org/tiny", **options)
    found = digests(flipped(files[name], -1), name).split()[1]
    check_refusal(caught.value, name, digests(files[name], name), found, commit, snapshot)
    check_cache(cache)
    assert not (snapshot / name).exists()
    hub.requests.clear()
    check_model(load("org/tiny"), files)
    got = {request.subject for request in hub.requests if "/resolve/" in request.subject}
    assert got == {f"/org/tiny/resolve/{commit}/{name}"} | {f"/org/tiny/resolve/main/{name}"} & got
    check_model(load("org/tiny", local_files_only=True), files)
    check_cache(cache)


def test_a_file_of_another_size_or_none_is_damage_too(load, commit, files, snapshot):
    load("org/tiny")
    for content in (b"", files["model.safetensors"] + b"\0", files["model.safetensors"][:-1]):
        (snapshot / "model.safetensors").write_bytes(content)
        with pytest.raises(IntegrityError, match=r"^model\.safetensors of org/tiny@"):
            load("org/tiny")
        check_model(load("org/tiny"), files)


def test_damage_to_a_file_that_two_revisions_share_heals_in_both(hub, load, cache, files, commit, snapshot):
    load("org/tiny")
    second = hub.commit("org/tiny", {"README.md": b"# New\n"})
    load("org/tiny")
    flip(snapshot / "model.safetensors")
    with pytest.raises(IntegrityError, match=second):
        load("org/tiny")
    with pytest.raises(
        WeightsUnavailableError, match=r"model\.safetensors of org/tiny@.* is not in the cache"
    ):
        load("org/tiny", revision=commit, local_files_only=True)
    check_model(load("org/tiny", revision=commit), files)
    check_model(load("org/tiny"), files)
    check_cache(cache)


@pytest.mark.parametrize("name", FILES)
def test_damage_without_symbolic_links(hub, load, cache, commit, files, snapshot, name):
    load("org/tiny")
    for path in snapshot.iterdir():  # As the client leaves them where links cannot be made.
        path.resolve().replace(path)
    check_model(load("org/tiny"), files)
    flip(snapshot / name)
    with pytest.raises(IntegrityError, match="was removed from the cache"):
        load("org/tiny")
    assert not (snapshot / name).exists()
    check_model(load("org/tiny"), files)


def test_a_link_out_of_the_cache_is_cut_and_its_target_stays(load, commit, files, snapshot, tmp_path):
    load("org/tiny")
    outside = tmp_path / "precious.txt"
    outside.write_bytes(b"mine")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(outside)
    with pytest.raises(IntegrityError, match="was removed from the cache"):
        load("org/tiny")
    assert outside.read_bytes() == b"mine"
    check_model(load("org/tiny"), files)


@pytest.mark.parametrize(("name", "words"), [
    ("model.safetensors", "the Hub offers sha256 {found}. Nothing was downloaded."),
    ("config.json", "found {found}, in {place}. It was removed from the cache"),
])  # fmt: skip
def test_a_pinned_entry_takes_nothing_else(
    hub, load, cache, commit, files, snapshot, tiny_config, monkeypatch, name, words
):
    meant = files | {name: flipped(files[name], 0)}
    monkeypatch.setitem(ZOO, "pinned", pinned_entry(tiny_config(), commit, meant))
    expected, found = (sha256(content).hexdigest() for content in (meant[name], files[name]))
    with pytest.raises(IntegrityError) as caught:
        load("pinned")
    text = str(caught.value)
    assert text.startswith(
        f"{name} of org/tiny@{commit} is not what was published: expected sha256 {expected}, "
    )
    assert words.format(found=found, place=snapshot / name) in text
    assert not any("model.safetensors" in request.subject for request in hub.requests)
    assert not (snapshot / name).exists()
    check_cache(cache)
    check_model(load("org/tiny"), files)
    with pytest.raises(IntegrityError, match=f"expected sha256 {expected}, found {found}"):
        load("pinned")  # What the Hub vouches for in the cache is not what the zoo does.
    monkeypatch.setitem(ZOO, "pinned", pinned_entry(tiny_config(), commit, files))
    check_model(load("pinned"), files)


@pytest.mark.parametrize("offset", [0, -1])
def test_damage_to_a_pinned_entry(
    hub, load, cache, commit, files, snapshot, tiny_config, monkeypatch, offset
):
    monkeypatch.setitem(ZOO, "pinned", pinned_entry(tiny_config(), commit, files))
    hub.inject(Corrupt(offset))
    with pytest.raises(IntegrityError, match=r"^model.safetensors of .* expected sha256"):
        load("pinned")
    check_cache(cache)
    hub.heal()
    check_model(load("pinned"), files)
    for name in FILES:
        flip(snapshot / name, offset)
        with pytest.raises(IntegrityError, match=f"^{name} of .* expected sha256"):
            load("pinned", local_files_only=True)
        check_cache(cache)
        check_model(load("pinned"), files)


def test_a_file_is_hashed_once_until_something_touches_it(load, files, hashed, commit, snapshot):
    load("org/tiny")
    assert hashed == list(FILES)
    load("org/tiny")
    fresh()
    load("org/tiny")
    load("org/tiny", local_files_only=True)
    assert hashed == list(FILES)
    os.utime(snapshot / "model.safetensors")
    check_model(load("org/tiny"), files)
    assert hashed == [*FILES, "model.safetensors"]
    fresh()
    load("org/tiny")
    assert len(hashed) == 3
    for _ in range(2):
        load("org/tiny", verify="always")
    assert hashed[3:] == [*FILES, *FILES]


def test_a_file_that_took_the_place_of_another_is_hashed(load, hashed, commit, snapshot, files):
    load("org/tiny")
    blob = (snapshot / "model.safetensors").resolve()
    stat = blob.stat()
    other = blob.with_name("other")
    other.write_bytes(flipped(files["model.safetensors"], -1))
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(blob)
    with pytest.raises(IntegrityError, match=r"^model\.safetensors of org/tiny"):
        load("org/tiny")


@pytest.mark.parametrize("call", [iwm.load, WorldModel.from_pretrained])
def test_other_words_for_verify(hub, commit, copy, call):
    hub.requests.clear()
    for name in ("org/tiny", "hf-hub:org/tiny", copy):
        with pytest.raises(
            InvalidConfigError, match=r'^verify is "sometimes"\. Choose from: always, once\.$'
        ):
            call(name, verify="sometimes")
    with pytest.raises(InvalidConfigError, match=r'^verify is "allways"'):
        download("org/tiny", options=HubOptions(verify="allways"))
    assert hub.requests == []


@pytest.mark.parametrize("moved", [None, "rename", "copytree"])
def test_a_downloaded_folder_is_verified_wherever_it_is(copy, commit, files, tmp_path, hashed, moved):
    place = copy
    if moved:
        place = tmp_path / "other place" / "model"
        place.parent.mkdir()
        copy.rename(place) if moved == "rename" else shutil.copytree(copy, place)
    check_model(iwm.load(place), files)
    fresh()
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
                f"Download it again: iwm download org/tiny@{commit} --to {place}"
            )
            assert f"{name} of org/tiny" in str(caught.value)
        assert (place / name).exists()
        (place / name).write_bytes(content)
    check_model(iwm.load(place, verify="always"), files)


def test_a_model_saved_over_a_download_is_the_users_own(copy, tmp_path, tiny_config, cache):
    model = WorldModel(tiny_config("append"))
    model.save_pretrained(copy)
    assert not (copy / ".iwm" / "receipt.json").exists()
    check_model(iwm.load(copy), {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()})
    with pytest.raises(SaveError, match="holds a model of its own"):
        download("org/tiny", copy, HubOptions(cache_dir=cache))


def test_a_second_download_takes_the_place_of_the_first(hub, cache, files, tmp_path, tiny_config):
    big = model_files(tmp_path / "big", tiny_config("append"), seed=3, student=True) | {
        "README.md": b"# Big\n"
    }
    hub.add_repo("org/big", big)
    hub.add_repo("org/tiny", files)
    to, options = tmp_path / "copy", HubOptions(cache_dir=cache)
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
