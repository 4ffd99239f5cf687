"""Whether fetched files are what was published: in transit, in the cache, in a folder; and how often they are read."""

import os
from hashlib import sha1, sha256

import pytest
from hub_files import check_cache, check_model, flip, forget_hashes, pinned_entry
from loopback_hub import Corrupt

import iwm
from iwm.errors import IntegrityError, InvalidConfigError, WeightsUnavailableError
from iwm.finding import download
from iwm.hub_client import HubOptions
from iwm.world_model import WorldModel
from iwm.zoo import ZOO

FILES = ("config.json", "model.safetensors")


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
        forget_hashes()
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
    forget_hashes()
    load("org/tiny")
    load("org/tiny", local_files_only=True)
    assert hashed == list(FILES)
    os.utime(snapshot / "model.safetensors")
    check_model(load("org/tiny"), files)
    assert hashed == [*FILES, "model.safetensors"]
    forget_hashes()
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
