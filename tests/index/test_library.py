"""`iwm.Index` against `iwm.Bank`: the same search, from the disk."""

import copy
import dataclasses
import pickle
import sys
from datetime import datetime

import pytest
import torch
from PIL import ExifTags, Image

import iwm
from iwm.errors import IncompatibleLatentError, InvalidConfigError, InvalidDataError, LibraryError
from iwm.index import Filter, PhotoRecord
from iwm.index import library as library_module
from iwm.index import store as store_module
from iwm.index.encoding import Encoded, to_rows
from iwm.index.photo import Photo, content_hash
from iwm.index.sketch import sketch
from iwm.index.store import schema
from iwm.index.walk import Found
from iwm.latent import Latent
from iwm.undoing import EditReader

ACTION = iwm.Action(brightness=0.6, grayscale=True)


def fill(index, tokens, first=0):
    """Rows of given latents, as an engine would make them; ids are their numbers."""
    photos = [
        Photo(Found(f"/{i}.jpg", 1, 1), "", 8, 8, None, "", None) for i in range(first, first + len(tokens))
    ]
    encoded = Encoded(
        photos=photos, known=[False] * len(tokens), tokens=tokens.flatten(1).half().numpy(),
        sketches=sketch(tokens).half().numpy(), same=[], skipped=[],
    )  # fmt: skip
    index._store.append(to_rows([(encoded, list(range(len(tokens))))], schema(index._store.about)))


@pytest.fixture
def filled(index, model, folder):
    index.update(model, folder)
    return index


@pytest.fixture
def bank(model, folder):
    files = sorted(folder.rglob("*.jpg"))
    return iwm.Bank.from_images(model, files, dtype=torch.float16)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("k", [1, 5, 12, 40])
def test_searches_are_those_of_a_bank(filled, bank, model, folder, two_stages, k, exact):
    queries = model.predict(sorted(folder.rglob("*.jpg"))[:3], ACTION)
    ours, reference = filled.search(queries, k, exact=exact), bank.search(queries, k)
    assert ours.ids == reference.ids
    torch.testing.assert_close(ours.distances, reference.distances, rtol=1e-5, atol=1e-4)


def test_a_small_library_is_compared_whole(filled, bank, model, folder, monkeypatch):
    monkeypatch.setattr(store_module.Store, "nearest", None)
    query = model.encode(next(folder.rglob("*.jpg")))
    assert filled.search(query).ids == bank.search(query).ids


def test_every_candidate_counts_where_there_are_more_rows_than_candidates(index, two_stages, monkeypatch):
    """With fewer candidates than rows, what the sketches rank first is ranked exactly."""
    monkeypatch.setattr(library_module, "CANDIDATES", 100)
    tokens = torch.randn(600, 16, 48)
    fill(index, tokens)
    near = tokens[:4] + 0.7 * torch.randn(4, 16, 48)
    found = index.search(Latent(near, index.grid, index.space), k=5)
    exact = index.search(Latent(near, index.grid, index.space), k=5, exact=True)
    assert [row[0] for row in found.ids] == [f"/{i}.jpg" for i in range(4)]
    for ours, distances, theirs, true in zip(
        found.ids, found.distances, exact.ids, exact.distances, strict=True
    ):
        for name, distance in zip(ours, distances.tolist(), strict=True):
            if name in theirs:
                assert distance == pytest.approx(true[theirs.index(name)].item(), rel=1e-5)


@pytest.mark.parametrize("k", [3, 30])
def test_the_index_of_sketches(index, two_stages, monkeypatch, k):
    """Above `ANN_ROWS` the first stage reads the compressed sketches; new rows are found at once."""
    monkeypatch.setattr(store_module, "ANN_ROWS", 1000)
    monkeypatch.setattr(store_module, "PARTITION_ROWS", 300)
    tokens = torch.randn(1500, 16, 48)
    fill(index, tokens)
    assert not index._store._has_ann()
    index._store.maintain()
    assert index._store._has_ann()
    assert index._store._indexed_rows() == 1500
    late = torch.randn(40, 16, 48)
    fill(index, late, first=1500)
    index._store.maintain()
    assert index._store._indexed_rows() == 1500  # Too few to be worth another.
    near = torch.cat([tokens[:20], late[:20]]) + 0.7 * torch.randn(40, 16, 48)
    queries = Latent(near, index.grid, index.space)
    found, exact = index.search(queries, k), index.search(queries, k, exact=True)
    assert [row[0] for row in found.ids] == [f"/{i}.jpg" for i in (*range(20), *range(1500, 1520))]
    shared = [len(set(a) & set(b)) for a, b in zip(found.ids, exact.ids, strict=True)]
    assert sum(shared) / (40 * k) > 0.85  # Pure noise, the hardest case: all are equally far.
    fill(index, torch.randn(1100, 16, 48), first=1540)
    index._store.maintain()
    assert index._store._indexed_rows() == 2640


def test_filters(index, model, tmp_path, two_stages):
    folder = tmp_path / "dated"
    for i, (place, day, size) in enumerate(
        [
            ("it's/a", 1, (60, 40)),
            ("it's/b", 2, (60, 90)),
            ("other", 3, (200, 120)),
            ("100%", None, (41, 300)),
        ]
    ):
        exif = Image.Exif()
        if day:
            exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = f"2024:05:{day:02} 12:00:00"
        (folder / place).mkdir(parents=True)
        Image.new("RGB", size, (60 * i, 50, 90)).save(folder / place / "p.jpg", exif=exif)
    index.update(model, folder)
    query = model.encode(folder / "other/p.jpg")

    def found(**conditions):
        ids = index.search(query, 9, where=Filter(**conditions)).ids[0]
        assert ids == index.search(query, 9, where=Filter(**conditions), exact=True).ids[0]
        return sorted(path.removeprefix(f"{folder}/").removesuffix("/p.jpg") for path in ids)

    everything = ["100%", "it's/a", "it's/b", "other"]
    assert found() == everything
    assert found(under=folder) == everything
    assert found(under=folder / "it's") == ["it's/a", "it's/b"]
    assert found(under=folder / "100%") == ["100%"]
    assert found(under=folder / "oth") == []
    assert found(taken_from=datetime(2024, 5, 2)) == ["it's/b", "other"]
    assert found(taken_from=datetime(2024, 5, 2), taken_before=datetime(2024, 5, 3)) == ["it's/b"]
    assert found(min_side=60) == ["it's/b", "other"]
    assert found(under=folder / "it's", min_side=41) == ["it's/b"]
    sizes = {path: path.stat().st_size for path in folder.rglob("*.jpg")}
    large = [path for path, size in sizes.items() if size >= sorted(sizes.values())[2]]
    assert found(min_bytes=sorted(sizes.values())[2]) == sorted(
        str(p.parent.relative_to(folder)) for p in large
    )
    assert len(found(max_bytes=min(sizes.values()))) == list(sizes.values()).count(min(sizes.values()))


def test_an_empty_library_finds_nothing(index, model):
    hits = index.search(Latent(torch.zeros(2, 16, 48), (4, 4), model.space))
    assert (hits.ids, hits.distances.shape, len(index)) == ([[], []], (2, 0), 0)


def test_a_sample_is_spread_over_the_sorted_paths(filled, model, folder):
    files = sorted(folder.rglob("*.jpg"))
    some = filled.sample(5)
    expected = model.encode([files[i] for i in (0, 2, 4, 7, 9)]).tokens.half().float()
    assert torch.allclose(some.tokens, expected, atol=2e-3)
    assert (some.space, some.grid) == (model.space, filled.grid)
    assert len(filled.sample(100)) == 12
    with pytest.raises(InvalidConfigError, match="count is 0"):
        filled.sample(0)


def test_a_library_without_photographs_has_no_sample_and_teaches_nothing(model, library):
    index = iwm.Index.create(library, model)
    assert len(index.sample(5)) == 0
    with pytest.raises(InvalidDataError, match=r"^0 references; undoing needs at least 16"):
        EditReader.fit(model, index)


def test_an_exported_model_is_not_sent_to_other_processes(monkeypatch, model, library, folder):
    monkeypatch.setattr(type(model), "differentiable", False)
    with pytest.raises(InvalidConfigError, match='or the engine "local"'):
        iwm.Index.create(library, model).update(model, folder, engine="ray")


def test_another_models_library_is_refused_with_both_names(filled, library, model, other_model, folder):
    message = rf'made by "tiny" \(space {model.space}\), not by "another" \(space {other_model.space}\)'
    with pytest.raises(IncompatibleLatentError, match=message):
        iwm.Index.open(library, other_model)
    with pytest.raises(IncompatibleLatentError, match=message):
        filled.update(other_model, folder)
    query = other_model.encode(next(folder.rglob("*.jpg")))
    message = rf'made by "tiny" \(space {model.space}\), not by an encoder of space {other_model.space}'
    with pytest.raises(IncompatibleLatentError, match=message):
        filled.search(query)
    assert len(filled) == 12


def test_queries_that_cannot_be_compared(filled, model):
    with pytest.raises(IncompatibleLatentError, match=r"Expected iwm\.Latent, got Tensor"):
        filled.search(torch.zeros(1, 16, 48))
    latent = Latent(torch.zeros(1, 4, 48), (2, 2), model.space)
    with pytest.raises(IncompatibleLatentError, match=r"grid \(4, 4\), the query's is \(2, 2\)"):
        filled.search(latent)
    nothing = Latent(torch.zeros(0, 16, 48), (4, 4), model.space)
    assert [filled.search(nothing, exact=exact).ids for exact in (False, True)] == [[], []]
    with pytest.raises(InvalidConfigError, match="k is 0"):
        filled.search(dataclasses.replace(latent, tokens=torch.zeros(1, 16, 48), grid=(4, 4)), 0)


def test_a_library_goes_to_other_processes(filled, model, folder):
    query = model.encode(sorted(folder.rglob("*.jpg"))[0])
    for again in (pickle.loads(pickle.dumps(filled)), copy.deepcopy(filled)):
        assert again.search(query, 3).ids == filled.search(query, 3).ids
        assert (again.path, again.space, len(again)) == (filled.path, filled.space, len(filled))


def test_what_a_library_says_of_itself(filled, library, model):
    again = iwm.Index.open(library, model)
    assert (again.path, again.model_name, again.space, again.grid) == (
        str(library),
        "tiny",
        model.space,
        (4, 4),
    )
    assert repr(again) == f"Index('{library}', 12 photographs, model='tiny', space='{model.space}')"


def test_what_is_known_of_photographs(filled, model, folder):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2024:05:17 18:30:05"
    first, second, *_ = sorted(folder.rglob("*.jpg"))
    Image.new("RGB", (70, 50)).save(first, exif=exif)
    filled.update(model, folder)
    about = first.stat()
    other, record = filled.photos([second, "/no/such.jpg", str(first)])
    assert record == PhotoRecord(
        path=str(first), bytes=about.st_size, mtime_ns=about.st_mtime_ns, hash=content_hash(first.read_bytes()),
        width=70, height=50, taken=datetime(2024, 5, 17, 18, 30, 5),
    )  # fmt: skip
    assert (other.path, other.taken) == (str(second), None)
    assert filled.photos([]) == []
    assert filled.photos(first) == filled.photos(str(first)) == filled.photos([first]) != []


def test_counting_what_a_search_may_find(filled, folder):
    assert filled.count() == len(filled) == 12
    assert filled.count(Filter(under=folder / "class0")) == 6
    assert filled.count(Filter(min_side=99_999)) == 0


def test_words_are_no_filter(filled, model):
    query = Latent(torch.zeros(1, 16, 48), (4, 4), model.space)
    for ask in (filled.count, lambda where: filled.search(query, where=where)):
        with pytest.raises(
            InvalidConfigError, match=r"where is 'x'; pass a filter, such as iwm\.index\.Filter"
        ):
            ask("x")


def test_pictures_in_memory_are_not_indexed(filled, model):
    for photos in ([Image.new("RGB", (40, 40))], None):
        with pytest.raises(InvalidDataError, match="is no path; libraries hold files"):
            filled.update(model, photos)


def test_other_weights_of_the_same_name_are_refused_with_what_to_type(filled, library, retrained_model):
    other = retrained_model
    message = rf'by other weights of the name "tiny" \(space {filled.space}, not {other.space}\)'
    with pytest.raises(IncompatibleLatentError, match=message) as caught:
        iwm.Index.open(library, other)
    assert "iwm index PHOTOS --out NEW.lance" in str(caught.value)


def test_reads_start_again_where_files_were_cleared_away_and_end_in_words(filled, model, folder, library):
    query = model.encode(next(folder.rglob("*.jpg")))
    reader = iwm.Index.open(library)
    assert len(reader) == 12
    filled.delete(sorted(folder.rglob("*.jpg"))[:8])
    assert len(reader.search(query, 12).ids[0]) == 4
    for file in (library / "photos.lance" / "data").iterdir():
        file.unlink()
    for read in (lambda: reader.search(query), lambda: reader.sample(2), lambda: reader.photos([folder])):
        with pytest.raises(LibraryError, match=r"Cannot read .*библиотека\.lance: "):
            read()


def test_deleting_rows(filled, model, folder):
    first, second, third, *_ = sorted(folder.rglob("*.jpg"))
    assert filled.delete([first, str(second), "/no/such.jpg"]) == 2
    assert len(filled) == 10
    assert str(first) not in filled.search(model.encode(first), 12).ids[0]
    assert first.exists()
    assert filled.delete([]) == 0
    before = len(filled)
    assert filled.delete(str(third)) == 1
    assert len(filled) == before - 1


def test_places_where_no_library_is(tmp_path, model, monkeypatch):
    with pytest.raises(LibraryError, match=r"No library at .*x\.lance; make it: iwm index PHOTOS --out"):
        iwm.Index.open(tmp_path / "x.lance")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").touch()
    with pytest.raises(LibraryError, match="folder exists already and is no library"):
        iwm.Index.create(tmp_path / "folder", model)
    (tmp_path / "file").touch()
    with pytest.raises(LibraryError, match="file exists already"):
        iwm.Index.create(tmp_path / "file", model)
    with pytest.raises(LibraryError, match=r"A library needs a name, such as library\.lance"):
        iwm.Index.create("", model)


def test_a_library_in_the_home_folder(tmp_path, model, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    iwm.Index.create("~/mine.lance", model).update(model, folder)
    again = iwm.Index.open("~/mine.lance", model)
    assert (again.path, len(again)) == (str(tmp_path / "mine.lance"), 12)
    assert not (folder / "~").exists()


def test_what_a_kill_before_the_first_commit_leaves_is_no_library(library, model, folder):
    (library / "photos.lance" / "data").mkdir(parents=True)
    (library / "photos.lance" / "data" / "half.lance").write_bytes(b"half")
    with pytest.raises(LibraryError, match="No library at"):
        iwm.Index.open(library)
    index = iwm.Index.create(library, model)
    assert index.update(model, folder).photos == 12
    with pytest.raises(LibraryError, match=r"is a library already; open it with iwm\.Index\.open"):
        iwm.Index.create(library, model)


def test_a_table_that_is_no_library(tmp_path):
    import lancedb

    lancedb.connect(tmp_path / "x").create_table("photos", [{"a": 1}])
    with pytest.raises(LibraryError, match=r"x is not a library that can be read"):
        iwm.Index.open(tmp_path / "x")


def test_a_damaged_library_says_so(filled, library):
    for manifest in (library / "photos.lance" / "_versions").iterdir():
        manifest.write_bytes(b"\0" * 64)
    with pytest.raises(LibraryError, match="is not a library that can be read"):
        iwm.Index.open(library)


def test_without_lancedb_the_extra_is_named(tmp_path, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(InvalidConfigError, match=r'pip install "iwm\[retrieval\]"'):
        iwm.Index.create(tmp_path / "x.lance", model)
