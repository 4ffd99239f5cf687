"""Banks: exact search against a plain loop, storage, and files."""

import math
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import iwm.bank
from iwm.actions import Action
from iwm.bank import Bank, SearchResult, distances
from iwm.errors import (
    IncompatibleLatentError,
    IncompatibleWeightsError,
    InvalidActionError,
    InvalidConfigError,
    InvalidImageError,
    WeightsUnavailableError,
)
from iwm.latent import Latent
from iwm.world_model import WorldModel

GRID = (2, 2)
ABOUT = {"format": "iwm-bank-1", "space": "abc", "grid": "[2, 2]", "ids": "[0, 1]"}


@pytest.fixture
def model(tiny_config):
    return WorldModel(tiny_config())


def latents(count, grid=GRID, space="abc"):
    return Latent(torch.randn(count, grid[0] * grid[1], 3), grid, space)


def plain_search(queries, entries, ids, k):
    """Every query against every entry, number by number."""
    found = []
    for q in queries.tokens.tolist():
        rows = []
        for name, e in zip(ids, entries.tokens.tolist(), strict=True):
            pairs = [(a, b) for s, t in zip(q, e, strict=True) for a, b in zip(s, t, strict=True)]
            rows.append((math.sqrt(sum((a - b) ** 2 for a, b in pairs)), name))
        found.append(sorted(rows)[:k])
    return found


@pytest.mark.parametrize("k", [1, 3, 7, 12])
@pytest.mark.parametrize("chunk", [1, 3, 4096])
def test_search_against_a_plain_loop(monkeypatch, k, chunk):
    monkeypatch.setattr(iwm.bank, "_CHUNK", chunk)
    entries, queries = latents(7), latents(4)
    names = [f"photo {i}" for i in range(7)]
    found = Bank.from_latents(entries, names).search(queries, k)
    expected = plain_search(queries, entries, names, k)
    assert found.ids == [[name for _, name in row] for row in expected]
    assert found.distances.shape == (4, min(k, 7))
    np.testing.assert_allclose(found.distances, [[d for d, _ in row] for row in expected], rtol=1e-5)


def test_search_gives_five_by_default_and_zero_distance_to_itself():
    entries = latents(7)
    found = Bank.from_latents(entries).search(entries[3])
    assert len(found.ids[0]) == 5
    assert found.ids[0][0] == 3
    assert found.distances[0, 0] == 0
    assert (found.distances[0, 1:] > 0.1).all()


def test_equal_entries_are_all_found_at_one_distance():
    twin, far = latents(1), latents(1)
    far.tokens.add_(10)
    found = Bank.from_latents(Latent.cat([twin, far, twin]), ["a", "far", "b"]).search(twin, 3)
    assert sorted(found.ids[0][:2]) == ["a", "b"]
    assert found.ids[0][2] == "far"
    assert found.distances[0, :2].tolist() == [0, 0]


def test_distances_are_taken_in_float32_and_of_nothing_are_empty():
    queries, entries = latents(2).to(torch.float16), latents(3).to(torch.float16)
    measured = distances(queries.tokens, entries.tokens)
    assert measured.dtype == torch.float32
    difference = queries.tokens.double()[:, None] - entries.tokens.double()[None]
    np.testing.assert_allclose(measured, difference.square().sum((2, 3)).sqrt(), rtol=1e-5)
    assert distances(queries.tokens, entries.tokens[:0]).shape == (2, 0)


def test_latents_are_not_stored_as_whole_numbers():
    with pytest.raises(InvalidConfigError, match=r"dtype is torch\.int8; use torch\.float32"):
        Bank.from_latents(latents(3), dtype=torch.int8)


def test_float16_storage_rounds_and_nothing_else():
    entries, queries = latents(20), latents(3)
    full, half = Bank.from_latents(entries), Bank.from_latents(entries, dtype=torch.float16)
    assert full.latents.tokens.dtype == torch.float32
    assert torch.equal(half.latents.tokens, entries.tokens.half())
    rounded = Bank.from_latents(Latent(entries.tokens.half().float(), GRID, "abc"))
    assert half.search(queries, 20).ids == rounded.search(queries, 20).ids
    near = half.search(queries, 20).distances
    torch.testing.assert_close(near, full.search(queries, 20).distances, atol=5e-3, rtol=0)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_add_appends(dtype):
    first, more = latents(3), latents(2)
    bank = Bank.from_latents(first, ["a", "b", "c"], dtype=dtype)
    bank.add(more, ["d", 5])
    assert bank.ids == ["a", "b", "c", "d", 5]
    assert len(bank) == 5
    assert bank.latents.tokens.dtype == (dtype or torch.float32)
    assert torch.equal(bank.latents.tokens, torch.cat([first.tokens, more.tokens]).to(dtype or torch.float32))
    assert bank.search(more[1], 1).ids == [[5]]


@pytest.mark.parametrize(
    ("more", "ids", "words"),
    [
        (latents(1), ["b"], "The id 'b' is given twice; ids must differ"),
        (latents(2), ["d", "d"], "The id 'd' is given twice"),
        (latents(2), ["d"], "2 latents and 1 ids; give one id to each"),
        (latents(1, space="xyz"), ["d"], "two encoders"),
        (latents(1, grid=(1, 2)), ["d"], "grids"),
    ],
)
def test_what_cannot_be_added_leaves_the_bank_as_it_was(more, ids, words):
    start = latents(2)
    bank = Bank.from_latents(start, ["a", "b"])
    with pytest.raises(IncompatibleLatentError, match=words):
        bank.add(more, ids)
    assert bank.ids == ["a", "b"]
    assert torch.equal(bank.latents.tokens, start.tokens)


def test_ids_are_a_copy():
    bank = Bank.from_latents(latents(2))
    bank.ids.append(7)
    assert bank.ids == [0, 1]
    assert repr(bank).startswith("Bank(2 x Latent(tokens=[2, 4, 3]")


@pytest.mark.parametrize("ids", [["a", "a"], [1], [1, 2, 3]])
def test_ids_are_one_to_each_and_differ(ids):
    with pytest.raises(IncompatibleLatentError, match="id"):
        Bank.from_latents(latents(2), ids)


@pytest.mark.parametrize(
    ("query", "words"), [({"space": "xyz"}, "two encoders"), ({"grid": (1, 2)}, "grids")]
)
def test_queries_of_another_space_or_grid_are_refused(query, words):
    with pytest.raises(IncompatibleLatentError, match=words):
        Bank.from_latents(latents(2)).search(latents(1, **query))


def test_k_is_at_least_one():
    with pytest.raises(ValueError, match=r"k is 2\.0; it must be a whole number, at least 1"):
        Bank.from_latents(latents(7)).search(latents(1), k=2.0)
    for slip in (np.array(2.0), torch.tensor(2.0), np.array([1, 2]), torch.tensor(True), True, None, "2"):
        with pytest.raises(ValueError, match=r"^k is .*; it must be a whole number, at least 1"):
            Bank.from_latents(latents(7)).search(latents(1), k=slip)
    assert len(Bank.from_latents(latents(7)).search(latents(1), k=np.int64(2)).ids[0]) == 2
    with pytest.raises(ValueError, match="k is 0; it must be at least 1"):
        Bank.from_latents(latents(2)).search(latents(1), k=0)


def test_a_result_is_read_query_by_query():
    result = SearchResult([["a", 2], ["b", "a"]], torch.tensor([[0.5, 1.0], [0.25, 2.0]]))
    assert len(result) == 2
    assert list(result) == [(["a", 2], [0.5, 1.0]), (["b", "a"], [0.25, 2.0])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_file_round_trips(tmp_path, dtype):
    bank = Bank.from_latents(latents(4), ["straße.jpg", 'a "quoted" one', 7, "7"], dtype=dtype)
    path = tmp_path / "new" / "photos.safetensors"
    bank.save(path)
    loaded = Bank.load(path)
    assert loaded.ids == bank.ids
    assert (loaded.latents.grid, loaded.latents.space) == (GRID, "abc")
    assert loaded.latents.tokens.dtype == dtype
    assert torch.equal(loaded.latents.tokens, bank.latents.tokens)
    loaded.add(latents(1), ["more"])
    loaded.save(path)
    assert len(Bank.load(path)) == 5


@pytest.mark.parametrize(
    ("tensors", "about"),
    [
        ({"weight": torch.zeros(2, 4, 3)}, ABOUT),
        ({"tokens": torch.zeros(2, 4, 3)}, None),
        ({"tokens": torch.zeros(2, 4, 3)}, {k: v for k, v in ABOUT.items() if k != "space"}),
        ({"tokens": torch.zeros(2, 4, 3)}, ABOUT | {"ids": "[0]"}),
        ({"tokens": torch.zeros(2, 4, 3)}, ABOUT | {"ids": "[0, 0]"}),
        ({"tokens": torch.zeros(2, 4, 3)}, ABOUT | {"ids": "[0, "}),
        ({"tokens": torch.zeros(2, 4, 3)}, ABOUT | {"grid": "[2, 3]"}),
        ({"tokens": torch.zeros(2, 4, 3)}, ABOUT | {"grid": "4"}),
        ({"tokens": torch.zeros(2, 4)}, ABOUT),
    ],
)
def test_tensors_that_are_no_bank(tmp_path, tensors, about):
    path = tmp_path / "file.safetensors"
    save_file(tensors, path, about)
    with pytest.raises(IncompatibleWeightsError, match=r"file\.safetensors is not a bank that iwm wrote"):
        Bank.load(path)


def test_files_that_are_no_bank(tmp_path):
    for content in (b"", b"hello", b"\xff" * 100):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(IncompatibleWeightsError, match="not a bank"):
            Bank.load(tmp_path / "file")
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(WeightsUnavailableError, match=f"No bank at {path}"):
            Bank.load(path)


def test_a_stream_of_images_is_encoded_as_it_comes(model):
    made, most = [], 0

    def images():
        nonlocal most
        for _ in range(12):
            array = np.zeros((32, 32, 3), np.uint8)
            made.append(weakref.ref(array))
            most = max(most, sum(one() is not None for one in made))
            yield array
            del array

    bank = Bank.from_images(model, images(), batch_size=2)
    assert bank.ids == list(range(12))
    assert most <= 4
    named = (str(number) for number in range(12))
    assert Bank.from_images(model, images(), named, batch_size=2).ids[-1] == "11"


def test_from_images_encodes_and_calls_files_by_their_paths(model, tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(3)]
    for name, array in zip("ab", arrays[:2], strict=True):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    a, b = tmp_path / "a.png", str(tmp_path / "b.png")
    bank = Bank.from_images(model, iter([a, arrays[2], b]), batch_size=2)
    assert bank.ids == [str(a), 1, b]
    expected = [model.encode(array).tokens for array in (arrays[0], arrays[2], arrays[1])]
    torch.testing.assert_close(bank.latents.tokens, torch.cat(expected), atol=2e-5, rtol=0)
    assert bank.latents.space == model.space
    assert Bank.from_images(model, a).ids == [str(a)]
    assert Bank.from_images(model, [a, b], ids=["x", "y"]).ids == ["x", "y"]
    assert Bank.from_images(model, [a], dtype=torch.float16).latents.tokens.dtype == torch.float16
    with pytest.raises(IncompatibleLatentError, match="twice"):
        Bank.from_images(model, [a, a])


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_from_views_encodes_transformed_pixels(model, batch_size):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8))
    actions = [Action(), Action(brightness=0.5), Action(blur=1.5), Action(solarize=True)]
    bank = Bank.from_views(model, photo, actions, batch_size=batch_size)
    assert bank.ids == [0, 1, 2, 3]
    pixels = model.preprocess(photo)
    expected = torch.cat([model.encode(action.apply(pixels)).tokens for action in actions])
    torch.testing.assert_close(bank.latents.tokens, expected, atol=2e-5, rtol=0)
    assert bank.search(model.encode(photo), 1).ids == [[0]]
    assert bank.search(model.encode(actions[3].apply(pixels)), 1).ids == [[3]]
    half = Bank.from_views(model, photo, actions, dtype=torch.float16).latents.tokens
    assert torch.equal(half, bank.latents.tokens.half()) or batch_size < 64


def test_a_dtype_that_is_none_is_told_before_the_work(model):
    with pytest.raises(InvalidConfigError, match=r"dtype is 'float16'; use torch\.float32"):
        Bank.from_images(model, ["gone.jpg"], dtype="float16")


def test_from_views_takes_one_image_and_clean_sources(model):
    with pytest.raises(InvalidImageError, match="takes one image, not 2"):
        Bank.from_views(model, torch.rand(2, 3, 32, 32), [Action()])
    with pytest.raises(InvalidActionError, match="starts from a transformed view"):
        Bank.from_views(model, torch.rand(3, 32, 32), [Action(blur=1.0).inverse()])


def test_a_prediction_is_searched_like_an_encoding(model):
    bank = Bank.from_images(model, torch.rand(3, 3, 32, 32))
    moved = model.predict(torch.rand(3, 32, 32), [Action(brightness=2.0), Action(hue=0.3)])
    assert bank.search(moved, 3).ids == [
        [name for _, name in row] for row in plain_search(moved, bank.latents, [0, 1, 2], 3)
    ]


def test_ids_may_be_paths_and_numpy_integers(model, tmp_path):
    latents = model.encode(torch.rand(2, 3, 32, 32))
    bank = Bank.from_latents(latents, [tmp_path / "a.jpg", np.int64(3)])
    bank.save(tmp_path / "bank.safetensors")
    assert Bank.load(tmp_path / "bank.safetensors").ids == bank.ids == [str(tmp_path / "a.jpg"), 3]
    with pytest.raises(IncompatibleLatentError, match=r"The id 0\.5 is neither"):
        Bank.from_latents(latents, [0.5, 1])


def test_a_bank_of_another_format_is_refused(model, tmp_path):
    path = tmp_path / "bank.safetensors"
    Bank.from_latents(model.encode(torch.rand(3, 32, 32))).save(path)
    path.write_bytes(path.read_bytes().replace(b"iwm-bank-1", b"iwm-bank-9"))
    with pytest.raises(IncompatibleWeightsError, match="format iwm-bank-9, expected iwm-bank-1"):
        Bank.load(path)


@pytest.mark.parametrize("actions", [[], iwm.Action()])
def test_views_need_a_list_of_actions(model, actions):
    with pytest.raises(InvalidActionError, match="a list of at least one"):
        Bank.from_views(model, torch.rand(3, 32, 32), actions)
