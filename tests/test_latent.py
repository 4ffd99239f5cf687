"""Latents: batches that index, join, move and pool, and never mix spaces."""

import dataclasses

import numpy as np
import pytest
import torch

from iwm.errors import IncompatibleLatentError
from iwm.latent import Latent

GRID = (2, 3)


def latent(count=4, grid=GRID, space="abc"):
    return Latent(torch.randn(count, grid[0] * grid[1], 5), grid, space)


@pytest.mark.parametrize("shape", [(6, 5), (1, 5, 6), (1, 7, 5), (1, 1, 6, 5)])
def test_tokens_must_fill_the_grid(shape):
    with pytest.raises(IncompatibleLatentError, match=r"do not fill a grid of 2 x 3; expected \[B, 6, D\]"):
        Latent(torch.zeros(shape), GRID, "abc")


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (0, [0]),
        (3, [3]),
        (-1, [3]),
        (-4, [0]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        ([3, 0, 3], [3, 0, 3]),
        ([], []),
        (torch.tensor([2, 1]), [2, 1]),
        (torch.tensor([True, False, False, True]), [0, 3]),
    ],
)
def test_an_index_gives_a_batch(index, rows):
    z = latent()
    picked = z[index]
    assert len(picked) == len(rows)
    assert (picked.grid, picked.space) == (GRID, "abc")
    assert picked.tokens.tolist() == [z.tokens[row].tolist() for row in rows]


@pytest.mark.parametrize("index", [4, -5])
def test_an_index_out_of_range(index):
    with pytest.raises(IndexError, match=f"Index {index} is out of range for 4 latents"):
        latent()[index]


def test_iteration_gives_latents_of_one():
    z = latent(3)
    assert [one.tokens.tolist() for one in z] == [[z.tokens[i].tolist()] for i in range(3)]
    assert {(one.grid, one.space) for one in z} == {(GRID, "abc")}


def test_mean_is_over_the_grid():
    z = latent()
    expected = [np.mean([token.numpy() for token in tokens], axis=0) for tokens in z.tokens]
    np.testing.assert_allclose(z.mean().numpy(), np.stack(expected), atol=1e-6)


@pytest.mark.parametrize(
    "index",
    [
        np.array([2, 0]),
        np.array([True, False, True]),
        np.array([2, 1, 0])[::2],
        np.array([0, 1, 2], np.uint8),
        np.array([2], np.uint16),
        np.array([], np.int64),
        torch.tensor([0, 2]),
        [1],
    ],
)
def test_several_are_taken_by_numbers_or_a_mask(index):
    latents = Latent(torch.arange(24.0).view(3, 4, 2), (2, 2), "a")
    expected = latents.tokens.numpy()[np.asarray(index)]
    assert np.array_equal(latents[index].tokens, expected)


def test_fractions_take_no_latents():
    with pytest.raises(IndexError, match="float64"):
        Latent(torch.zeros(3, 4, 2), (2, 2), "a")[np.array([0.0, 1.0])]


def test_to_casts_a_copy():
    z = latent()
    half = z.to(torch.float16)
    assert half.tokens.dtype == torch.float16
    assert torch.equal(half.tokens, z.tokens.half())
    assert (half.grid, half.space) == (GRID, "abc")
    assert z.tokens.dtype == torch.float32
    assert z.to("meta").tokens.device.type == "meta"


def test_cat_keeps_order_grid_and_space():
    parts = [latent(2), latent(1), latent(3)]
    joined = Latent.cat(iter(parts))
    assert joined.tokens.tolist() == [row for part in parts for row in part.tokens.tolist()]
    assert (joined.grid, joined.space) == (GRID, "abc")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (latent(space="xyz"), r"two encoders \(spaces abc and xyz\) cannot be mixed; encode everything with"),
        (latent(grid=(3, 2)), r"grids \(2, 3\) and \(3, 2\) cannot be mixed; encode images of one size"),
    ],
)
def test_what_does_not_match_is_not_mixed(other, words):
    with pytest.raises(IncompatibleLatentError, match=words):
        Latent.cat([latent(), latent(), other])
    with pytest.raises(IncompatibleLatentError, match=words):
        latent().check_matches(other)


@pytest.mark.parametrize("place", [0, 1])
def test_tensors_are_not_concatenated(place):
    items = [Latent(torch.zeros(1, 4, 2), (2, 2), "a")] * 2
    items[place] = items[place].tokens
    with pytest.raises(IncompatibleLatentError, match=r"Expected iwm\.Latent, got Tensor"):
        Latent.cat(items)


def test_cat_of_nothing():
    with pytest.raises(IncompatibleLatentError, match="at least one"):
        Latent.cat([])


def test_a_latent_is_frozen_and_says_what_it_is():
    z = latent()
    with pytest.raises(dataclasses.FrozenInstanceError):
        z.space = "xyz"
    assert repr(z) == "Latent(tokens=[4, 6, 5] float32, grid=(2, 3), space='abc')"


@pytest.mark.parametrize("index", [np.int64(1), torch.tensor(1)])
def test_integers_of_other_kinds_index_too(index):
    latent = Latent(torch.rand(3, 4, 8), (2, 2), "s")
    assert torch.equal(latent[index].tokens, latent.tokens[1:2])
