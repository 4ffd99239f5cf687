"""Streams of which something cannot be read, and names that are none."""

import pytest
import torch
from numbered_streams import (
    CPU,
    SIZE,
    assert_same_batches,
    image_folder,
    jpeg,
    numbers_of,
    parquet_files,
    run_stream,
    stream_config,
    write_tar,
)

from iwm.errors import InvalidDataError, InvalidImageError
from iwm.training import streams
from iwm.training.config import DataConfig
from iwm.training.distributed import World
from iwm.training.streams import StreamSource

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(streams, "BLOCK", 4)
    # After arrow files, `datasets` waits for its threads, for five seconds.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


def test_unreadable_images_are_named_and_replaced_by_the_next_of_their_batch(tmp_path, caplog):
    files = {f"{n:04}.jpg": jpeg(n) for n in range(8)}
    write_tar(tmp_path / "good.tar", files)
    good, _ = run_stream(f"{tmp_path}/good.tar", steps=4)
    files |= {"0002.jpg": b"no image", "0005.jpg": jpeg(5)[:300], "0006.jpg": b""}
    write_tar(tmp_path / "bad.tar", files)
    source = StreamSource(f"{tmp_path}/bad.tar", SIZE, stream_config(steps=4))
    bad = list(source.batches(0, World(CPU), None))
    said = sorted(record.getMessage() for record in caplog.records)
    why = ["no format that Pillow knows", "Truncated File Read", "no format that Pillow knows"]
    assert said == [
        f"skipped: Cannot read {n}.jpg of {tmp_path}/bad.tar as an image: {words}"
        for n, words in zip(("0002", "0005", "0006"), why, strict=True)
    ]
    assert source.unreadable == 6  # Two epochs.
    for (crops, *keys), (expected, *same_keys) in zip(bad, good, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(keys, same_keys, strict=True))
        numbers = numbers_of([(expected, torch.zeros(4), None)])[0]
        for row, number in enumerate(numbers):
            following = next(
                r
                for r in (*range(row, 4), *range(row))
                if numbers[r] not in (2, 5, 6) or number not in (2, 5, 6)
            )
            assert torch.equal(crops[row], expected[following])


def test_a_row_without_an_image_counts_as_unreadable(tmp_path, caplog):
    files = {f"{n:04}.jpg": jpeg(n) for n in range(7)}
    write_tar(tmp_path / "0.tar", files | {"0007.txt": b"words", "0008.png": b"of another kind"})
    batches, _ = run_stream(f"{tmp_path}/0.tar", steps=9)
    assert set(numbers_of(batches)[0]) == set(range(7))
    said = sorted(record.getMessage() for record in caplog.records)
    assert [words.split(" as an ")[0] for words in said] == [
        f"skipped: Cannot read row {n} of {tmp_path}/0.tar" for n in (7, 8)
    ]


def test_an_image_of_a_shard_is_named_with_its_shard(tmp_path, caplog):
    for shard in range(3):
        content = b"no image" if shard == 1 else jpeg(shard)
        write_tar(tmp_path / f"{shard}.tar", {"0000.jpg": jpeg(5), "0001.jpg": content})
    run_stream(f"{tmp_path}/*.tar", steps=9)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"skipped: Cannot read 0001.jpg of {tmp_path}/1.tar as an image: ")


@pytest.mark.parametrize("first", [0, 2])
def test_rows_are_named_by_their_place_in_their_shard(tmp_path, caplog, first):
    """Whatever the order of the shards, and where a run goes on in the middle of one."""
    cells = [[{"bytes": b"no image" if n in (1, 6, 8) else jpeg(n), "path": None} for n in range(9)]] * 2
    datasets.disable_progress_bars()
    for shard, inside in enumerate(cells):
        table = datasets.Dataset.from_dict({"picture": inside}).cast_column("picture", datasets.Image())
        table.to_parquet(tmp_path / f"train-{shard:05}-of-00002.parquet")
    name = f"hf:{tmp_path}"
    _, states = run_stream(name, steps=9)
    caplog.clear()
    run_stream(name, first, states[first - 1] if first else None, steps=9)
    said = sorted(record.getMessage() for record in caplog.records)
    assert [words.split(" as an ")[0] for words in said] == [
        f"skipped: Cannot read row {row} of shard {shard} of the stream {name}"
        for row in (1, 6, 8)
        for shard in (0, 1)
    ]


def test_a_share_without_one_readable_image_takes_the_next_of_the_stream(tmp_path):
    """One image a process: the crop is that of the row that comes next, and nothing else changes."""
    files = {f"{n:04}.jpg": jpeg(n) for n in range(8)}
    write_tar(tmp_path / "good.tar", files)
    write_tar(tmp_path / "bad.tar", files | {f"{n:04}.jpg": b"no image" for n in (0, 2, 3, 5)})
    good, states = run_stream(f"{tmp_path}/good.tar", steps=16, batch_size=1)
    bad, bad_states = run_stream(f"{tmp_path}/bad.tar", steps=16, batch_size=1)
    epochs = numbers_of(good)
    order = [n for epoch in epochs for n in epoch]
    for step, (crops, *keys) in enumerate(bad):
        assert all(torch.equal(a, b) for a, b in zip(keys, good[step][1:], strict=True))
        following = next((s for s in range(step, 16) if order[s] not in (0, 2, 3, 5)), None)
        if following is not None:
            assert torch.equal(crops, good[following][0])
    places = [{k: state[k] for k in ("epoch", "block", "offset")} for state in states]
    assert places == [{k: state[k] for k in ("epoch", "block", "offset")} for state in bad_states]


@pytest.mark.parametrize("processes", [2, 4])
def test_the_same_crops_take_their_places_on_any_number_of_processes(tmp_path, processes):
    """Shares without one readable image, some that end with an unreadable one, and whole batches."""
    files = {f"{n:04}.jpg": b"no image" if n % 3 or n < 9 else jpeg(n) for n in range(22)}
    write_tar(tmp_path / "0.tar", files)
    whole, states = run_stream(f"{tmp_path}/0.tar")
    sources, parts = [], []
    for rank in range(processes):
        sources.append(StreamSource(f"{tmp_path}/0.tar", SIZE, stream_config()))
        parts.append(list(sources[-1].batches(0, World(CPU, rank, processes), None)))
    joined = [
        tuple(torch.cat(pieces) for pieces in zip(*batch, strict=True)) for batch in zip(*parts, strict=True)
    ]
    assert_same_batches(joined, whole)
    assert all(source.state() == states[-1] for source in sources)
    alone = StreamSource(f"{tmp_path}/0.tar", SIZE, stream_config())
    assert len(list(alone.batches(0, World(CPU), None))) == len(whole)
    assert sum(source.unreadable for source in sources) == alone.unreadable > 30


def test_a_stream_without_one_readable_image_is_an_error(tmp_path, caplog):
    write_tar(tmp_path / "0.tar", {f"{n}.jpg": b"no image" for n in range(6)})
    with pytest.raises(
        InvalidDataError,
        match=r"^None of 40 successive images of the stream .*0\.tar \(files \w{12}\) can be read",
    ):
        run_stream(f"{tmp_path}/0.tar")
    assert len(caplog.records) == 6


def test_a_run_may_ask_to_end_at_an_unreadable_image(tmp_path):
    write_tar(tmp_path / "0.tar", {f"{n:04}.jpg": b"no image" if n == 5 else jpeg(n) for n in range(8)})
    fail = DataConfig(workers=2, on_unreadable="fail")
    with pytest.raises(
        InvalidImageError,
        match=r"^Cannot read 0005\.jpg of .*0\.tar as an image: .*--data\.on_unreadable skip$",
    ):
        run_stream(f"{tmp_path}/0.tar", data=fail)


def test_a_listed_image_that_is_gone_is_unreadable(tmp_path, caplog):
    name = image_folder(tmp_path)
    source = StreamSource(name, SIZE, stream_config(steps=11))
    gone = tmp_path / "train" / "class1" / "05.jpg"
    gone.unlink()
    epochs = numbers_of(source.batches(0, World(CPU), None))
    assert [5 in epoch for epoch in epochs] == [False, False]
    assert [record.getMessage() for record in caplog.records] == [f"skipped: No such image file: {gone}"]
    assert source.unreadable == 2


def test_more_processes_than_shards_and_more_places_than_images(tmp_path):
    write_tar(tmp_path / "0.tar", {f"{n:04}.jpg": jpeg(n) for n in range(3)})
    whole, _ = run_stream(f"{tmp_path}/0.tar", steps=3, batch_size=8)
    assert [sorted(epoch) for epoch in numbers_of(whole)] == [[0, 1, 2]] * 8
    parts = [
        run_stream(f"{tmp_path}/0.tar", world=World(CPU, rank, 4), steps=3, batch_size=8)[0]
        for rank in range(4)
    ]
    joined = [
        tuple(torch.cat(pieces) for pieces in zip(*batch, strict=True)) for batch in zip(*parts, strict=True)
    ]
    assert_same_batches(joined, whole)


def _no_tar(folder):
    (folder / "a.tar").write_text("words" * 200)
    return f"{folder}/*.tar", r"Cannot stream .*\.tar: ReadError"


def _later_no_tar(folder):
    write_tar(folder / "a.tar", {"1.jpg": jpeg(1)})
    (folder / "b.tar").write_text("words" * 200)
    return (
        f"{folder}/*.tar",
        r"the stream .*\.tar \(files \w{12}\) breaks off: ReadError.* the same command goes on",
    )


def _only_words(folder):
    write_tar(folder / "a.tar", {"1.txt": b"words", "1.cls": b"1"})
    return (
        f"{folder}/a.tar",
        r"has no column of images; its columns are \['__key__', '__url__', 'cls', 'txt'\]",
    )


def _other_column(folder):
    return (
        f"{parquet_files(folder)}:train:photo",
        r'no column of images called "photo"; it has \[\'picture\'\]',
    )


def _column_of_labels(folder):
    return (
        f"{parquet_files(folder)}:train:label",
        r'no column of images called "label"; it has \[\'picture\'\]',
    )


def _other_split(folder):
    return f"{parquet_files(folder)}:test", r"Cannot stream hf:.*:test: ValueError: Bad split: test"


def _no_rows(folder):
    table = datasets.Dataset.from_dict({"picture": []}, features=datasets.Features(picture=datasets.Image()))
    datasets.disable_progress_bars()
    table.to_parquet(folder / "train.parquet")
    return f"hf:{folder}", "is empty"


def _no_name(folder):
    return "hf:", r"^hf: names no dataset of the Hub; write hf:org/name, hf:org/name:split or hf:.*:column\.$"


def _split_of_no_name(folder):
    return "hf::train", r"^hf::train names no dataset"


def _four_parts(folder):
    return "hf:a:b:c:d", r"^hf:a:b:c:d names no dataset"


STREAMS = [_no_tar, _later_no_tar, _only_words, _other_column, _column_of_labels, _other_split, _no_rows]
STREAMS += [_no_name, _split_of_no_name, _four_parts]


@pytest.mark.parametrize("make", STREAMS, ids=lambda make: make.__name__[1:])
def test_what_cannot_be_streamed_is_said(tmp_path, make):
    name, message = make(tmp_path)
    with pytest.raises(InvalidDataError, match=message):
        run_stream(name)


@pytest.mark.parametrize("files", [{}, {"sub/inner.jpg": b""}], ids=["empty", "empty file"])
def test_shards_of_nothing(tmp_path, files):
    write_tar(tmp_path / "a.tar", files)
    with pytest.raises(InvalidDataError, match=r"Cannot stream|None of 40 successive images"):
        run_stream(f"{tmp_path}/a.tar")
    with pytest.raises(InvalidDataError, match=r"No tar shards match .*/b\*\.tar"):
        run_stream(f"{tmp_path}/b*.tar")
