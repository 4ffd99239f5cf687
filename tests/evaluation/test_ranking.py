"""Ranks and scores against sorted lists and hand-worked values."""

import pytest
import torch

from iwm.errors import IncompatibleWeightsError
from iwm.evaluation.ranking import Scores, rank_of, squared_distances


def plain_rank(row, wanted):
    """The mean of the places that the wanted distance takes in the sorted row."""
    places = [place for place, value in enumerate(sorted(row), start=1) if value == row[wanted]]
    return sum(places) / len(places)


@pytest.mark.parametrize("levels", [1, 2, 3, 50])
@pytest.mark.parametrize("candidates", [1, 2, 9])
def test_rank_against_a_sorted_list(levels, candidates):
    distances = torch.randint(levels, (40, candidates)).float()
    wanted = torch.randint(candidates, (40,))
    expected = [plain_rank(row, w) for row, w in zip(distances.tolist(), wanted.tolist(), strict=True)]
    ranks = rank_of(distances, wanted)
    assert ranks.dtype == torch.float64
    assert ranks.tolist() == expected


@pytest.mark.parametrize(
    ("row", "wanted", "rank"),
    [
        ([3.0, 1.0, 2.0], 1, 1.0),
        ([3.0, 1.0, 2.0], 0, 3.0),
        ([1.0, 1.0, 2.0], 0, 1.5),
        ([0.0, 1.0, 1.0, 1.0], 3, 3.0),
        ([5.0] * 256, 17, 128.5),
        ([1000.0, 1000.004, 999.996, 3.0], 0, 3.0),
        ([1000.0, 1000.1, 999.9, 3.0], 0, 3.0),
    ],
)
def test_ties_take_the_middle_rank(row, wanted, rank):
    assert rank_of(torch.tensor([row]), torch.tensor([wanted])).tolist() == [rank]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_no_numbers_never_score(value):
    with pytest.raises(IncompatibleWeightsError, match="not finite"):
        rank_of(torch.tensor([[1.0, value, 2.0]]), torch.tensor([0]))


def test_scores_by_hand():
    scores = Scores.of(torch.tensor([1.0, 2.0, 4.0, 5.0, 5.5, 10.0, 10.5, 20.0], dtype=torch.float64))
    reciprocals = 1 + 1 / 2 + 1 / 4 + 1 / 5 + 2 / 11 + 1 / 10 + 2 / 21 + 1 / 20
    assert scores.mrr == pytest.approx(reciprocals / 8, abs=1e-12)
    assert scores.hits == {1: 1 / 8, 5: 4 / 8, 10: 6 / 8}
    assert scores.queries == 8
    assert Scores.of(torch.ones(3)) == Scores(mrr=1.0, hits={1: 1.0, 5: 1.0, 10: 1.0}, queries=3)


@pytest.mark.parametrize("candidates", [1, 2, 7, 256, 257])
def test_chance_is_the_mean_over_all_ranks(candidates):
    every_rank = Scores.of(torch.arange(1, candidates + 1))
    chance = Scores.of_chance(candidates, queries=9)
    assert chance.mrr == pytest.approx(every_rank.mrr, abs=1e-12)
    assert chance.hits == pytest.approx(every_rank.hits, abs=1e-12)
    assert chance.queries == 9


def test_the_floor_of_256():
    assert round(Scores.of_chance(256, 1).mrr, 4) == 0.0239


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_squared_distances_pair_by_pair(dtype):
    queries, candidates = torch.randn(4, 3, 5).to(dtype), torch.randn(6, 3, 5).to(dtype)
    expected = [
        [float((q.double() - c.double()).square().sum()) for c in candidates] for q in queries
    ]  # fmt: skip
    measured = squared_distances(queries, candidates)
    assert measured.dtype == torch.float64
    torch.testing.assert_close(measured, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)
