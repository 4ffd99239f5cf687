"""Predictions averaged over actions, against `model.invariant` and a plain search."""

import json
import re

import numpy as np
import pytest

from iwm.actions import CLEAN, Action, Photometry
from iwm.errors import InvalidConfigError
from iwm.evaluation.mrr import draw_views
from iwm.figures.invariant import Marginal, marginalise
from iwm.figures.invariant_picture import save_marginals
from iwm.world_model import WorldModel


def make(places=3, rank=2):
    views = [np.full((3, 8, 8), value, dtype=np.float32) for value in np.linspace(0.1, 0.9, places)]
    photometries = [CLEAN if place == rank - 1 else Photometry(hue=0.1) for place in range(places)]
    return Marginal(
        views=views, view_changes=[0.11] * places, found=views, photometries=photometries,
        distances=[1.0] * places, changes=[0.22] * places, rank=rank, bank_size=17, mean_change=0.33,
        curve={1: 5.0, 2: 3.0, 4: 2.0}, mean_distance=4.0,
    )  # fmt: skip


@pytest.mark.parametrize("distribution", ["jitter", "full"])
def test_numbers_are_what_a_plain_computation_finds(acting_model, images, distribution):
    result = marginalise(acting_model, images[0], 10, distribution=distribution, shown=4, seed=3, index=2)
    pixels = acting_model.preprocess.one(images[0])
    drawn = draw_views(acting_model, 10, distribution=distribution, seed=3, index=2)
    photometries = [Photometry.from_params(row) for row in drawn]
    actions = [Action.between(CLEAN, photometry) for photometry in photometries]
    views = [pixels, *(action.apply(pixels) for action in actions)]
    encoded = [acting_model.encode(view).tokens for view in views]
    assert list(result.curve) == [1, 2, 4, 8, 10]
    for count, distance in result.curve.items():
        mean = acting_model.invariant(acting_model.encode(pixels), actions=actions[:count]).tokens
        assert distance == pytest.approx((mean - encoded[0]).norm().item(), rel=1e-3)
    found = [(mean - one).norm().item() for one in encoded]
    order = sorted(range(11), key=found.__getitem__)
    assert (result.rank, result.bank_size) == (order.index(0) + 1, 11)
    assert result.distances == pytest.approx([found[i] for i in order[:4]], rel=1e-3)
    assert result.photometries == [[CLEAN, *photometries][i] for i in order[:4]]
    changes = [(view - pixels).abs().mean().item() for view in views]
    assert result.changes == pytest.approx([changes[i] for i in order[:4]], rel=1e-3)
    assert result.view_changes == pytest.approx(changes[1:5], rel=1e-3)
    assert result.mean_change == pytest.approx(sum(changes) / 10, rel=1e-3)
    apart = [(one - encoded[0]).norm().item() for one in encoded[1:]]
    assert result.mean_distance == pytest.approx(sum(apart) / 10, rel=1e-3)
    for place, i in enumerate(order[:4]):
        np.testing.assert_array_equal(result.found[place], views[i].numpy())
        np.testing.assert_array_equal(result.views[place], views[place + 1].numpy())


def test_a_model_that_ignores_actions_finds_the_same_after_any_number(acting_model, images, monkeypatch):
    monkeypatch.setattr(WorldModel, "apply_action", lambda self, latent, actions: latent[[0] * len(actions)])
    result = marginalise(acting_model, images[1], 9, shown=2)
    assert result.rank == 1
    assert result.photometries[0] == CLEAN
    assert list(result.curve.values()) == pytest.approx([0.0] * 5, abs=1e-3)


def test_more_cannot_be_shown_than_there_are(acting_model, images):
    for actions, shown in ((3, 4), (3, 0)):
        with pytest.raises(InvalidConfigError, match=f"3 actions; the picture shows {shown}"):
            marginalise(acting_model, images[0], actions, shown=shown)


def test_numbers_are_plain_json():
    told = json.loads(json.dumps(make().to_dict()))
    assert [found["clean"] for found in told["found"]] == [False, True, False]
    assert told["curve"] == {"1": 5.0, "2": 3.0, "4": 2.0}


def test_the_picture_marks_the_untouched_photograph(tmp_path):
    save_marginals([make(), make(rank=9)], tmp_path / "a.svg")
    save_marginals([make()], tmp_path / "b.svg", curve=True)
    both, one = ((tmp_path / name).read_text(encoding="utf-8") for name in ("a.svg", "b.svg"))
    words = re.findall(r"<!-- (.+?) -->", both)
    assert words.count("untouched") == 1
    assert {"untouched: rank 2 of 17", "untouched: rank 9 of 17", "photograph 2"} <= set(words)
    assert (words.count("0.11"), words.count("0.22"), words.count("mean change 0.33")) == (6, 5, 2)
    assert ("predictions averaged" in both, "predictions averaged" in one) == (False, True)


def test_photographs_must_show_as_many(tmp_path):
    for marginals in ([], [make(3), make(2)]):
        with pytest.raises(InvalidConfigError, match="as many views"):
            save_marginals(marginals, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
