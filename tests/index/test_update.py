"""Keeping a library up to date: what is encoded, what is left, what is removed, what is reported."""

import _thread
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import iwm
from iwm.errors import InvalidConfigError, InvalidDataError, LibraryError, SaveError
from iwm.index import encoding as encoding_module
from iwm.index import store as store_module
from iwm.index import update as update_module
from iwm.index.report import Remark


def counts(report):
    return report.added, report.updated, report.unchanged, report.removed


@pytest.fixture
def encoded(model, monkeypatch):
    """How many photographs the model has encoded, call by call."""
    seen = []
    plain = model.encode

    def encode(images, *rest):
        if isinstance(images, list):
            seen.append(len(images))
        return plain(images, *rest)

    monkeypatch.setattr(model, "encode", encode)
    return seen


def paths(index):
    return sorted(index.search(empty_query(index), 10_000).ids[0])


def empty_query(index):
    about = index._store.about
    return iwm.Latent(torch.zeros(1, 16, about.width), about.grid, about.space)


def test_only_new_and_changed_photographs_are_encoded(index, model, folder, encoded):
    files = sorted(folder.rglob("*.jpg"))
    with pytest.raises(InvalidConfigError, match="batch_size is 0; it must be at least 1"):
        index.update(model, folder, batch_size=0)
    first = index.update(model, folder, batch_size=5)
    assert (counts(first), first.photos, encoded) == ((12, 0, 0, 0), 12, [5, 5, 2])
    assert counts(index.update(model, folder)) == (0, 0, 12, 0)
    shutil.copy(files[0], folder / "new.jpg")
    Image.new("RGB", (60, 50), "red").save(files[1])
    assert counts(index.update(model, folder)) == (1, 1, 11, 0)
    assert encoded == [5, 5, 2, 2]
    assert paths(index) == sorted(str(path) for path in folder.rglob("*.jpg"))
    hits = index.search(model.encode(files[1]), 1)
    assert hits.ids == [[str(files[1])]]
    assert hits.distances.item() == pytest.approx(0.0, abs=0.1)


def test_a_touched_file_of_the_same_bytes_is_hashed_and_not_encoded(index, model, folder, encoded):
    index.update(model, folder)
    file = next(folder.rglob("*.jpg"))
    before = index._store.rows([str(file)]).to_pylist()[0]
    os.utime(file, ns=(1, 1_234_567_890_123_456_789))
    assert counts(index.update(model, folder)) == (0, 0, 12, 0)
    after = index._store.rows([str(file)]).to_pylist()[0]
    assert encoded == [12]
    assert after == before | {"mtime_ns": 1_234_567_890_123_456_789}
    version = index._store._table.version
    assert counts(index.update(model, folder)) == (0, 0, 12, 0)
    assert index._store._table.version == version  # The new time is known: nothing is read or written.


def test_touched_files_are_committed_in_pieces_and_their_latents_are_not_read(
    index, model, folder, monkeypatch
):
    index.update(model, folder)
    before = index._store._table.search().limit(100).to_arrow().sort_by("path").drop_columns(["mtime_ns"])
    for file in folder.rglob("*.jpg"):
        os.utime(file, ns=(1, 1_234_567_890_123_456_789))
    monkeypatch.setattr(update_module, "COMMIT_ROWS", 4)
    pieces, change = [], index._store.change
    monkeypatch.setattr(
        index._store, "change", lambda rows: (pieces.append((rows.column_names, rows.num_rows)), change(rows))
    )
    assert counts(index.update(model, folder, batch_size=2)) == (0, 0, 12, 0)
    assert pieces == [(["path", "bytes", "mtime_ns"], 4)] * 3
    after = index._store._table.search().limit(100).to_arrow().sort_by("path")
    assert set(after["mtime_ns"].to_pylist()) == {1_234_567_890_123_456_789}
    assert after.drop_columns(["mtime_ns"]) == before


def on_the_disk(library):
    return sum(file.stat().st_size for file in library.rglob("*") if file.is_file())


def test_indexing_again_takes_no_more_room(index, model, folder, library):
    index.update(model, folder)
    once = on_the_disk(library)
    for turn in range(1, 4):
        for file in folder.rglob("*.jpg"):
            Image.new("RGB", (60, 50), (60 * turn, 90, 90)).save(file)
        assert counts(index.update(model, folder)) == (0, 12, 0, 0)
    assert on_the_disk(library) < 1.2 * once


@pytest.mark.parametrize("way", ["delete", "prune"])
def test_what_is_deleted_leaves_the_disk(index, model, folder, library, way):
    index.update(model, folder)
    once = on_the_disk(library)
    gone = sorted(folder.rglob("*.jpg"))[:10]
    if way == "delete":
        index.delete(gone)
    else:
        for file in gone:
            file.unlink()
        index.update(model, folder, prune=True)
    assert len(paths(index)) == 2
    assert on_the_disk(library) < 0.4 * once


def test_what_a_killed_process_left_is_cleared_away(index, model, folder, library):
    index.update(model, folder)
    (library / "photos.lance" / "data" / f"{'0' * 24}.lance").write_bytes(bytes(1 << 20))
    index.update(model, folder)
    assert on_the_disk(library) < 1 << 20
    assert len(paths(index)) == 12


def test_a_change_of_the_same_size_and_time_of_day_is_seen(index, model, tmp_path):
    image = tmp_path / "p" / "a.bmp"
    image.parent.mkdir()
    Image.new("RGB", (40, 40), "red").save(image)
    index.update(model, image)
    size = image.stat().st_size
    Image.new("RGB", (40, 40), "blue").save(image)
    os.utime(image, ns=(1, image.stat().st_mtime_ns + 1))
    assert image.stat().st_size == size
    assert counts(index.update(model, image)) == (0, 1, 0, 0)


def test_files_that_are_gone_are_removed_on_request_alone(index, model, folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(next(folder.rglob("*.jpg")), outside / "o.jpg")
    index.update(model, [folder, outside])
    gone = sorted(folder.rglob("*.jpg"))[:3]
    for path in (*gone, outside / "o.jpg"):
        path.unlink()
    assert counts(index.update(model, folder)) == (0, 0, 9, 0)
    assert len(index) == 13
    assert counts(index.update(model, folder, prune=True)) == (0, 0, 9, 3)
    assert paths(index) == sorted([*map(str, folder.rglob("*.jpg")), str(outside / "o.jpg")])


def test_a_folder_that_is_not_mounted_removes_nothing(index, model, folder, tmp_path):
    index.update(model, folder)
    folder.rename(tmp_path / "unmounted")
    with pytest.raises(InvalidDataError, match="No such file or folder"):
        index.update(model, folder, prune=True)
    assert len(index) == 12


def test_single_files_and_a_photograph_twice(index, model, folder):
    file = next(folder.rglob("*.jpg"))
    assert counts(index.update(model, [file, str(file), file.parent, folder])) == (12, 0, 0, 0)
    assert len(paths(index)) == 12


def test_relative_paths_are_those_of_any_working_directory(index, model, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    index.update(model, Path(folder.name))
    monkeypatch.chdir("/")
    assert counts(index.update(model, folder)) == (0, 0, 12, 0)


def test_every_commit_is_announced_and_is_there(index, model, folder, library, monkeypatch):
    monkeypatch.setattr(update_module, "COMMIT_ROWS", 4)
    said = []

    def check(paths):
        there = iwm.Index.open(library)._store.rows(paths, ["path"])["path"].to_pylist()
        assert sorted(there) == sorted(paths)
        said.append(paths)

    index.update(model, folder, batch_size=2, on_commit=check)
    assert [len(paths) for paths in said] == [4, 4, 4]
    assert sorted(path for paths in said for path in paths) == sorted(map(str, folder.rglob("*.jpg")))


def test_time_commits_too(index, model, folder, monkeypatch):
    monkeypatch.setattr(update_module, "COMMIT_SECONDS", 0.0)
    said = []
    index.update(model, folder, batch_size=5, on_commit=said.append)
    assert [len(paths) for paths in said] == [5, 5, 2]


def test_an_interrupt_keeps_what_was_encoded(index, model, folder, monkeypatch):
    plain, calls = model.encode, []

    def encode(*words):
        calls.append(words)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*words)

    monkeypatch.setattr(model, "encode", encode)
    with pytest.raises(KeyboardInterrupt):
        index.update(model, folder, batch_size=4)
    assert len(index) == 8
    assert counts(index.update(model, folder)) == (4, 0, 8, 0)


@pytest.fixture
def _interruptible():
    """As in a terminal: processes in the background ignore the interrupt key."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("moment", ["before", "after", "told"])
def test_what_fails_around_a_commit_is_not_written_twice(index, model, folder, monkeypatch, moment):
    append, told = index._store.append, []

    def broken(rows):
        if moment == "before":
            _thread.interrupt_main()  # As Ctrl-C does, while another thread writes.
            time.sleep(0.2)
        append(rows)
        if moment == "after":
            raise SaveError("full")

    def on_commit(paths):
        told.append(paths)
        if moment == "told":
            raise OSError("no listener")

    with monkeypatch.context() as patch:
        patch.setattr(index._store, "append", broken)
        with pytest.raises((KeyboardInterrupt, OSError)):
            index.update(model, folder, batch_size=4, on_commit=on_commit)
    assert paths(index) == sorted(map(str, folder.rglob("*.jpg")))
    assert counts(index.update(model, folder)) == (0, 0, 12, 0)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_waits_for_the_commit(index, model, folder, monkeypatch):
    append, done = index._store.append, []

    def slow(rows):
        _thread.interrupt_main()
        time.sleep(0.3)
        append(rows)
        done.append(len(index))

    monkeypatch.setattr(index._store, "append", slow)
    with pytest.raises(KeyboardInterrupt):
        index.update(model, folder)
    assert done == [12]


def test_a_file_that_grew_while_it_was_read_is_known_the_next_time(index, model, folder, monkeypatch):
    file = next(folder.rglob("*.jpg"))
    index.update(model, file)
    row = index._store.rows([str(file)], ("path", "bytes", "mtime_ns"))
    smaller = row.set_column(1, row.schema.field(1), [[row["bytes"][0].as_py() - 8]])
    index._store.change(smaller)
    read = []
    plain = encoding_module.read_bytes
    monkeypatch.setattr(encoding_module, "read_bytes", lambda found: (read.append(found), plain(found))[1])
    for _ in range(2):
        assert counts(index.update(model, file)) == (0, 0, 1, 0)
    assert len(read) == 1
    assert index.photos(file)[0].bytes == file.stat().st_size


def test_a_library_that_lost_a_file_is_not_brought_up_to_date(index, model, folder, library):
    index.update(model, folder)
    for file in (library / "photos.lance" / "data").iterdir():
        file.unlink()
    with pytest.raises(LibraryError, match=r"Cannot read .*\.lance: "):
        index.update(model, folder)


def test_many_small_commits_are_merged_and_nothing_is_lost(index, model, folder, monkeypatch):
    monkeypatch.setattr(store_module, "FRAGMENTS", 4)
    monkeypatch.setattr(update_module, "COMMIT_ROWS", 1)
    index.update(model, folder, batch_size=1)
    assert index._store._table.stats()["fragment_stats"]["num_fragments"] < 4
    assert paths(index) == sorted(map(str, folder.rglob("*.jpg")))


def test_a_second_writer_is_refused_and_readers_are_not(index, model, folder, library):
    index.update(model, folder)
    other = iwm.Index.open(library)
    with index._store.writing():
        with pytest.raises(LibraryError, match="is being written by another process"):
            other.update(model, folder)
        assert len(paths(other)) == 12
    assert counts(other.update(model, folder)) == (0, 0, 12, 0)


def test_a_full_disk_is_said_and_leaves_the_library(index, model, folder, monkeypatch):
    index.update(model, sorted(folder.rglob("*.jpg"))[:5])

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(index._store._table, "add", full)
        with pytest.raises(SaveError, match=r"No space left on device.*committed before is untouched"):
            index.update(model, folder)
    assert len(index) == 5
    assert counts(index.update(model, folder)) == (7, 0, 5, 0)


def test_bad_files_are_listed_and_the_rest_is_indexed(index, model, folder):
    good = sorted(map(str, folder.rglob("*.jpg")))
    data = Path(good[0]).read_bytes()
    Path(folder / "zero.jpg").touch()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "text.png").write_text("not an image")
    (folder / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64)
    (folder / "loop").symlink_to(folder)
    (folder / "self.jpg").symlink_to(folder / "self.jpg")
    with open(os.fsencode(folder) + b"/\xff.jpg", "wb") as file:
        file.write(data)
    Image.new("RGB", (40, 40)).save(
        folder / "moving.gif", save_all=True, append_images=[Image.new("RGB", (40, 40), "red")]
    )
    Image.new("CMYK", (40, 40)).save(folder / "print.jpg")
    Image.new("I;16", (40, 40)).save(folder / "scan.png")
    (folder / "夜 'x' \"y\"; DROP.jpg").write_bytes(data)
    report = index.update(model, folder, batch_size=3)
    assert {Path(r.path).name for r in report.skipped} == {
        "zero.jpg", "cut.jpg", "text.png", "phone.HEIC", "loop", "self.jpg", "\\xff.jpg",
    }  # fmt: skip
    assert all(r.words for r in report.skipped)
    assert sorted(report.remarks, key=lambda r: r.path) == [
        Remark(str(folder / "moving.gif"), "animated; its first frame is indexed"),
        Remark(str(folder / "print.jpg"), "CMYK; converted to RGB without a colour profile"),
        Remark(str(folder / "scan.png"), "more than 8 bits a pixel; reduced to 8"),
    ]
    kept = ["moving.gif", "print.jpg", "scan.png", "夜 'x' \"y\"; DROP.jpg"]
    assert paths(index) == sorted([*good, *(str(folder / name) for name in kept)])
    again = index.update(model, folder, prune=True)
    assert (again.unchanged, again.added, again.removed, len(again.skipped)) == (16, 0, 0, 7)


def test_a_file_that_may_not_be_read(index, model, folder, monkeypatch):
    closed = sorted(folder.rglob("*.jpg"))[4]
    plain = open

    def refuse(path, *rest, **settings):
        if path == str(closed):
            raise PermissionError(13, "Permission denied")
        return plain(path, *rest, **settings)

    monkeypatch.setattr("builtins.open", refuse)
    report = index.update(model, folder)
    assert (report.added, report.skipped) == (
        11, [Remark(str(closed), f"Cannot read {closed}: Permission denied")]
    )  # fmt: skip


def test_a_photograph_that_breaks_keeps_its_last_row(index, model, folder):
    index.update(model, folder)
    broken = sorted(folder.rglob("*.jpg"))[0]
    broken.write_bytes(b"broken")
    report = index.update(model, folder, prune=True)
    assert (report.unchanged, report.removed, [r.path for r in report.skipped]) == (11, 0, [str(broken)])
    assert len(index) == 12


def test_photographs_of_an_object_store(index, model, folder):
    """The addresses of any store that Arrow reads; here the one that is a disk."""
    root = f"file://{folder}"
    assert counts(index.update(model, root)) == (12, 0, 0, 0)
    assert all(path.startswith("file:///") for path in paths(index))
    sorted(folder.rglob("*.jpg"))[0].unlink()
    assert counts(index.update(model, root)) == (0, 0, 11, 0)
    assert counts(index.update(model, root, prune=True)) == (0, 0, 11, 1)


def test_a_library_at_an_address_of_a_disk_is_like_one_at_a_path(model, folder, library):
    index = iwm.Index.create(f"file://{library}", model)
    assert counts(index.update(model, folder)) == (12, 0, 0, 0)
    with pytest.raises(LibraryError, match="is a library already"):
        iwm.Index.create(f"file://{library}", model)
    with pytest.raises(LibraryError, match="No library at file:///"):
        iwm.Index.open(f"file://{library.parent}/none.lance")
    other = iwm.Index.open(f"file://{library}")
    with (
        index._store.writing(),
        pytest.raises(LibraryError, match="is being written by another process"),
    ):
        iwm.Index.open(library).update(model, folder)
    assert paths(other) == sorted(map(str, folder.rglob("*.jpg")))
    assert counts(other.update(model, folder)) == (0, 0, 12, 0)


def test_two_writers_without_a_lock_double_no_row(index, model, folder, library, monkeypatch):
    """As in an object store: what one writes after the other has looked is replaced."""
    other = iwm.Index.open(library)
    index._store._folder = other._store._folder = None
    plain, meanwhile = model.encode, []

    def encode(*words):
        if not meanwhile:
            meanwhile.append("begun")
            meanwhile.append(counts(other.update(model, folder)))
        return plain(*words)

    monkeypatch.setattr(model, "encode", encode)
    index.update(model, folder)
    assert meanwhile == ["begun", (12, 0, 0, 0)]
    assert len(index) == 12
    assert paths(index) == sorted(map(str, folder.rglob("*.jpg")))
