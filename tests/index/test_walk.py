"""Walking: every photograph once, in order, and a word about what cannot be walked."""

import os

import pytest
from pyarrow import fs

from iwm.errors import InvalidDataError
from iwm.index import walk as walk_module
from iwm.index.report import Remark
from iwm.index.walk import Found, walk


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))


def paths(root, *roots):
    return [os.path.relpath(item.path, root) for item in walk(list(roots) or [root])]


def test_files_in_the_order_of_their_names(tmp_path):
    make(tmp_path, "b.JPG", "a/2.png", "a/1.webp", "a/c/0.tif", "c.heic", "d.txt", ".e.jpg", ".f/g.jpg", "h")
    assert paths(tmp_path) == ["b.JPG", "c.heic", "a/1.webp", "a/2.png", "a/c/0.tif"]


def test_what_is_known_of_a_file(tmp_path):
    make(tmp_path, "a.jpg")
    os.utime(tmp_path / "a.jpg", ns=(5, 1_700_000_000_123_456_789))
    assert list(walk([tmp_path])) == [Found(str(tmp_path / "a.jpg"), 5, 1_700_000_000_123_456_789)]


def test_names_in_any_script(tmp_path):
    names = ["Ночь.jpg", "夜景.jpg", "صورة.jpg", "日 本/été 'quoted'.jpg", "🌅.jpg", "100%_sure.jpg"]
    make(tmp_path, *names)
    assert sorted(paths(tmp_path)) == sorted(names)


def test_a_name_that_is_no_utf8_is_reported(tmp_path):
    make(tmp_path, "a.jpg")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb"):
        pass
    first, second = walk([tmp_path])
    assert first.path.endswith("a.jpg")
    assert second == Remark(f"{tmp_path}/caf\\xe9.jpg", "its name is not valid UTF-8; rename it")


def test_links_to_folders_are_followed_once_and_loops_are_reported(tmp_path):
    make(tmp_path / "outside", "o.jpg")
    make(tmp_path / "root", "a/1.jpg")
    (tmp_path / "root/a/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/b").symlink_to(tmp_path / "outside")
    (tmp_path / "root/c").symlink_to(tmp_path / "outside")
    (tmp_path / "root/d.jpg").symlink_to(tmp_path / "root/d.jpg")
    (tmp_path / "root/e").symlink_to(tmp_path / "root/e")
    (tmp_path / "root/f.jpg").symlink_to(tmp_path / "gone.jpg")
    found = {os.path.relpath(i.path, tmp_path / "root"): i for i in walk([tmp_path / "root"])}
    assert [name for name, item in found.items() if isinstance(item, Found)] == ["a/1.jpg", "b/o.jpg"]
    reasons = {name: item.words for name, item in found.items() if isinstance(item, Remark)}
    assert reasons == {
        "a/up": f"a link to {tmp_path / 'root'}, which is indexed already",
        "c": f"a link to {tmp_path / 'root/b'}, which is indexed already",
        "d.jpg": "a link that leads back to itself",
        "f.jpg": "No such file or directory",
    }


def test_overlapping_roots_give_every_file_once(tmp_path):
    make(tmp_path, "a.jpg", "sub/b.jpg", "other/c.jpg")
    roots = [tmp_path / "sub", tmp_path / "sub/b.jpg", tmp_path, tmp_path, tmp_path / "a.jpg"]
    assert sorted(paths(tmp_path, *roots)) == ["a.jpg", "other/c.jpg", "sub/b.jpg"]


def test_what_is_named_comes_though_its_folder_does_not_show_it(tmp_path):
    make(tmp_path, "a.jpg", ".hid/h.jpg", ".b.jpg", "scan.jp2")
    named = [tmp_path / ".hid/h.jpg", tmp_path / ".b.jpg", tmp_path / "scan.jp2", tmp_path / "a.jpg"]
    assert sorted(paths(tmp_path, tmp_path, *named)) == [".b.jpg", ".hid/h.jpg", "a.jpg", "scan.jp2"]


def test_addresses_of_files(tmp_path):
    make(tmp_path, "a.jpg", "b/c.jpg")
    root = f"file://{tmp_path}"
    (found,) = walk([f"{root}/a.jpg"])
    assert found == Found(f"{root}/a.jpg", 5, (tmp_path / "a.jpg").stat().st_mtime_ns)
    both = [item.path for item in walk([f"{root}/a.jpg", f"{root}/b", f"{root}/b/c.jpg"])]
    assert both == [f"{root}/b/c.jpg", f"{root}/a.jpg"]


def test_overlapping_addresses_give_every_file_once(tmp_path):
    make(tmp_path, "a.jpg", "sub/b.jpg")
    root = f"file://{tmp_path}"
    found = [item.path for item in walk([f"{root}/sub", root, f"{root}/", f"{root}/a.jpg"])]
    assert found == [f"{root}/a.jpg", f"{root}/sub/b.jpg"]


def test_what_an_address_says_of_its_store_stays(monkeypatch):
    """Of some kinds the path that the store gives lacks the account: `container/photos/a.jpg` here."""

    class Store:
        def get_file_info(self, asked):
            if isinstance(asked, str):
                return fs.FileInfo(asked, fs.FileType.Directory)
            return [fs.FileInfo(f"{asked.base_dir}/a.jpg", fs.FileType.File, size=5)]

    place = "abfs://container@account.dfs.core.windows.net"
    monkeypatch.setattr(walk_module, "_store", {place: (Store(), "container")}.__getitem__)
    (found,) = walk([f"{place}/photos"])
    assert found.path == f"{place}/photos/a.jpg"
    assert walk_module.file_system(found.path)[1] == "container/photos/a.jpg"


def test_addresses_that_do_not_exist_are_refused_at_once(tmp_path):
    with pytest.raises(InvalidDataError, match=r"No such file or folder: file:///.*missing"):
        walk([f"file://{tmp_path}/missing"])


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    assert list(walk([tmp_path])) == [Remark(str(tmp_path / "a.jpg"), "not a regular file")]


def test_a_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    make(tmp_path, "a/1.jpg", "b/2.jpg")
    real = os.scandir

    def refuse(path):
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    remark, found = walk([tmp_path])
    assert remark == Remark(str(tmp_path / "a"), "cannot be listed: Permission denied")
    assert found.path == str(tmp_path / "b/2.jpg")


def test_roots_that_do_not_exist_are_refused_at_once(tmp_path):
    with pytest.raises(InvalidDataError, match=r"No such file or folder: .*missing"):
        walk([tmp_path, tmp_path / "missing"])
    with pytest.raises(InvalidDataError, match="No folder of photographs was given"):
        walk([])


def test_an_address_is_listed_like_a_folder(tmp_path):
    make(tmp_path, "b.jpg", "a/1.png", "a/.x/2.png", "c.txt")
    root = f"file://{tmp_path}"
    found = list(walk([root]))
    assert [item.path for item in found] == [f"{root}/a/1.png", f"{root}/b.jpg"]
    assert found[0] == Found(f"{root}/a/1.png", 7, (tmp_path / "a/1.png").stat().st_mtime_ns)
