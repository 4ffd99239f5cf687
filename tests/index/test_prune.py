"""Which rows `prune` removes: those of files that are surely gone."""

import os
import shutil

import pytest

from iwm.errors import InvalidDataError
from iwm.index import walk


def remaining(index):
    return {path for batch in index._store.scan(("path",), 100) for path in batch["path"].to_pylist()}


def test_a_folder_that_may_not_be_entered_keeps_its_rows(index, model, folder, monkeypatch):
    """Root may enter everything, so the system's answers are made."""
    index.update(model, folder)
    sorted((folder / "class0").iterdir())[0].unlink()

    def closed(ask):
        def answer(path, *rest, **settings):
            if str(path).startswith(str(folder / "class1")):
                raise PermissionError(13, "Permission denied")
            return ask(path, *rest, **settings)

        return answer

    with monkeypatch.context() as patch:
        for name in ("stat", "lstat", "scandir"):
            patch.setattr(os, name, closed(getattr(os, name)))
        assert index.update(model, folder, prune=True).removed == 1
    assert remaining(index) == set(map(str, folder.rglob("*.jpg")))


def test_nothing_goes_below_a_folder_that_could_not_be_listed(index, model, folder, monkeypatch):
    """Even where every file in it is said not to exist."""
    index.update(model, folder)
    real, hidden = os.scandir, folder / "class1"

    def refuse(path):
        if str(path) == str(hidden):
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for path in sorted(hidden.iterdir())[:3]:
        path.unlink()
    sorted((folder / "class0").iterdir())[0].unlink()
    assert index.update(model, folder, prune=True).removed == 1
    monkeypatch.undo()
    assert index.update(model, folder, prune=True).removed == 3


def test_links_whose_targets_are_gone(index, model, folder, tmp_path):
    target = tmp_path / "target.jpg"
    shutil.copy(next(folder.rglob("*.jpg")), target)
    (folder / "link.jpg").symlink_to(target)
    (folder / "loop.jpg").symlink_to(target)
    assert index.update(model, folder).added == 14
    target.unlink()
    (folder / "loop.jpg").unlink()
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    assert index.update(model, folder, prune=True).removed == 1
    assert str(folder / "loop.jpg") in remaining(index)  # A loop says nothing of what was there.


def test_a_folder_that_became_a_file(index, model, folder):
    index.update(model, folder)
    shutil.rmtree(folder / "class0")
    (folder / "class0").touch()
    assert index.update(model, folder, prune=True).removed == 6


@pytest.fixture
def two_stores(tmp_path, photos, monkeypatch):
    """`one://photos` and `two://photos`, stores of two kinds."""
    from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

    real = walk._store

    def store(address):
        name = address.partition("://")[0]
        if name == "file":
            return real(address)
        return SubTreeFileSystem(str(tmp_path / name), LocalFileSystem()), "photos"

    monkeypatch.setattr(walk, "_store", store)
    for name, kind in (("one", "class0"), ("two", "class1")):
        shutil.copytree(photos / kind, tmp_path / name / "photos")
    return tmp_path


def test_every_address_is_looked_up_in_its_own_store(index, model, two_stores):
    roots = ["one://photos", "two://photos"]
    assert index.update(model, roots).added == 12
    assert index.update(model, roots, prune=True).removed == 0
    sorted((two_stores / "two/photos").iterdir())[0].unlink()
    assert index.update(model, roots, prune=True).removed == 1
    assert len(remaining(index)) == 11


def test_a_store_that_does_not_answer_removes_nothing(index, model, folder, monkeypatch):
    root = f"file://{folder}"
    index.update(model, root)

    class Silent:
        def get_file_info(self, paths):
            raise OSError("no answer")

    monkeypatch.setattr("iwm.index.prune.file_system", lambda address: (Silent(), address))
    with pytest.raises(InvalidDataError, match="Cannot ask file:/// what is gone: no answer"):
        index.update(model, root, prune=True)
    assert len(index) == 12
