"""Caches of several layouts: linked files, plain ones, and a store that repositories share."""

import os
from hashlib import sha256

import pytest
from hub_files import check_cache, check_model, flip

from iwm.errors import IntegrityError
from iwm.hub_cache import discard
from iwm.integrity import Digest, file_state, hash_file

FILES = ("config.json", "model.safetensors")


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
    with pytest.raises(
        IntegrityError, match=rf"\. It was taken out of the cache, whose link led to {outside}; load again\.$"
    ):
        load("org/tiny")
    assert outside.read_bytes() == b"mine"
    check_model(load("org/tiny"), files)


def share(cache, repository, name, place=None):
    """Move a file into the store that repositories share, as newer clients lay it out; its path there.

    The store is `blobs/ab/<64 hexadecimal digits>` in the cache, under a hash of the client's own.
    """
    (link,) = (cache / repository / "snapshots").glob(f"*/{name}")
    blob = link.parent / link.readlink()
    key = sha256(b"another hash of " + blob.read_bytes()).hexdigest()
    store = place or cache / "blobs" / key[:2] / key
    store.parent.mkdir(parents=True, exist_ok=True)
    blob.replace(store)
    blob.symlink_to(os.path.relpath(store, blob.resolve().parent) if place is None else store)
    assert link.resolve() == store
    return store


@pytest.mark.parametrize("name", FILES)
def test_damage_in_the_store_that_repositories_share_heals_in_all(hub, load, cache, commit, files, name):
    hub.add_repo("other/tiny", files)
    load("org/tiny")
    load("other/tiny")
    stores = {share(cache, f"models--{org}--tiny", name) for org in ("org", "other")}
    (store,) = stores
    assert store.relative_to(cache).parts[:2] == ("blobs", store.name[:2])
    check_model(load("org/tiny", local_files_only=True), files)
    flip(store)
    with pytest.raises(
        IntegrityError, match=rf"^{name} of org/tiny@.* It was removed from the cache; the next"
    ):
        load("org/tiny")
    assert not store.exists()
    assert not list(cache.glob(f"models--org--tiny/snapshots/*/{name}"))
    for repo in ("org/tiny", "other/tiny"):
        check_model(load(repo), files)
        check_model(load(repo, local_files_only=True), files)


def test_a_neighbour_of_a_bad_file_in_the_shared_store_stays(load, cache, commit, files):
    load("org/tiny")
    config, weights = (share(cache, "models--org--tiny", name) for name in FILES)
    flip(weights)
    with pytest.raises(IntegrityError, match="It was removed from the cache"):
        load("org/tiny")
    assert config.read_bytes() == files["config.json"]
    assert not weights.exists()


@pytest.mark.parametrize(
    "place",
    ["blobs/precious", "blobs/ab/precious", "blobs/ab/c/" + "0" * 64, "blobs/" + "0" * 64, "../precious"],
)
def test_a_file_elsewhere_is_never_removed(load, cache, commit, files, place):
    load("org/tiny")
    mine = (cache / place).resolve()
    share(cache, "models--org--tiny", "model.safetensors", mine)
    flip(mine)
    content = mine.read_bytes()
    with pytest.raises(
        IntegrityError, match=rf"\. It was taken out of the cache, whose link led to {mine}; load again\.$"
    ):
        load("org/tiny")
    assert mine.read_bytes() == content
    check_model(load("org/tiny"), files)
    assert mine.read_bytes() == content


def test_links_that_go_round_in_a_circle(load, commit, files, snapshot):
    load("org/tiny")
    blob = (snapshot / "model.safetensors").resolve()
    blob.unlink()
    blob.symlink_to(blob.name)
    check_model(load("org/tiny"), files)


@pytest.mark.parametrize("links", [[True, False], [False, True]], ids=["then without", "then with"])
def test_a_cache_that_is_used_with_and_without_links(hub, load, cache, commit, files, monkeypatch, links):
    commits = {}
    for linked in links:
        monkeypatch.setattr(
            "huggingface_hub.file_download.are_symlinks_supported", lambda *_, can=linked: can
        )
        commits[linked] = hub.commit("org/tiny", {"README.md": str(linked).encode()})
        check_model(load("org/tiny"), files)
    for name in FILES:
        paths = {kind: cache / "models--org--tiny" / "snapshots" / c / name for kind, c in commits.items()}
        assert {kind: path.is_symlink() for kind, path in paths.items()} == {True: True, False: False}
        for linked, path in paths.items():
            flip(path)
            with pytest.raises(IntegrityError, match="It was removed from the cache"):
                load("org/tiny", revision=commits[linked])
            assert not path.exists()
            check_model(load("org/tiny", revision=commits[linked]), files)
            for revision in commits.values():
                check_model(load("org/tiny", revision=revision), files)
    check_cache(cache)


def test_a_bad_file_that_was_copied_within_the_cache_heals(
    hub, load, cache, commit, files, snapshot, monkeypatch
):
    load("org/tiny")
    second = hub.commit("org/tiny", {"README.md": b"# New\n"})
    flip(snapshot / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: False)
    with pytest.raises(IntegrityError, match=f"{second}.* It was removed from the cache"):
        load("org/tiny")  # The client copied what lay under the name of the right file.
    check_model(load("org/tiny"), files)
    check_model(load("org/tiny", revision=commit), files)
    check_cache(cache)


def test_a_file_that_another_process_has_healed_is_left_alone(
    hub, load, cache, commit, files, snapshot, monkeypatch
):
    load("org/tiny")
    path = snapshot / "model.safetensors"
    flip(path)

    def hash_and_heal(found, algorithm):
        digest = hash_file(found, algorithm)
        if found == path:
            path.resolve().with_name("new").write_bytes(files[path.name])
            path.resolve().with_name("new").replace(path.resolve())
        return digest

    with monkeypatch.context() as patch:
        patch.setattr("iwm.integrity.hash_file", hash_and_heal)
        words = r"is not what was published.* Another process has replaced it meanwhile; load again\.$"
        with pytest.raises(IntegrityError, match=words):
            load("org/tiny")
    assert path.read_bytes() == files[path.name]
    check_cache(cache)
    hub.requests.clear()
    check_model(load("org/tiny", revision=commit), files)
    assert hub.requests == []


def test_a_file_that_another_process_has_removed_is_no_trouble(load, commit, files, snapshot):
    load("org/tiny")
    path = snapshot / "model.safetensors"
    flip(path)
    state = file_state(path)
    path.unlink()
    digest = Digest("sha256", sha256(files[path.name]).hexdigest())
    assert discard(path, digest, state) == "It was removed from the cache; the next call fetches it anew."
    check_model(load("org/tiny"), files)
