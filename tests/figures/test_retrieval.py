"""The actions of figures 1 and S5 to S8, and retrievals that start from transformed views."""

import json

import numpy as np
import pytest

from iwm.actions import CLEAN, Action, Photometry
from iwm.demo import retrieve
from iwm.errors import InvalidConfigError
from iwm.evaluation.mrr import draw_views
from iwm.figures.retrieval import NAMED, random_actions, retrievals_to_dict

VIEWS = {
    "there": Action(hue=0.2),
    "back": Action(blur=1.0).inverse(),
    "across": Action.between(Photometry(brightness=0.6), Photometry(contrast=1.3)),
    "also back": Action(brightness=1.4).inverse(),
}


def test_transformed_sources_are_what_a_plain_computation_finds(acting_model, images):
    rows = list(retrieve(acting_model, images[:2], VIEWS, bank_size=12, seed=3))
    own = [Photometry(hue=0.2), CLEAN, Photometry(contrast=1.3)]
    own += [Photometry(blur=1.0), Photometry(brightness=0.6), Photometry(brightness=1.4)]
    ranks = []
    for index, (row, action) in enumerate(zip(rows, VIEWS.values(), strict=True)):
        pixels = acting_model.preprocess.one(images[index % 2])
        drawn = draw_views(acting_model, 6, seed=3, index=index % 2)
        bank = own + [Photometry.from_params(params) for params in drawn]
        views = [Action.between(CLEAN, photometry).apply(pixels) for photometry in bank]
        source = Action.between(CLEAN, action.source).apply(pixels)
        query = acting_model.apply_action(acting_model.encode(source), action).tokens
        found = [(acting_model.encode(view).tokens - query).norm().item() for view in views]
        order = sorted(range(12), key=found.__getitem__)
        asked = bank.index(action.target)
        ranks.append(order.index(asked) + 1)
        assert row.rank == ranks[-1]
        assert row.photometries == [bank[i] for i in order[:3]]
        assert row.distances == pytest.approx([found[i] for i in order[:3]], rel=1e-4)
        assert row.right == [i == asked for i in order[:3]]
        np.testing.assert_array_equal(row.source, source.numpy())
        np.testing.assert_array_equal(row.asked, views[asked].numpy())
    assert len(set(ranks)) > 1


def test_figure_1_applies_and_undoes():
    assert {action.source.is_clean for action in NAMED.values()} == {True, False}
    for name, action in NAMED.items():
        assert name.startswith("undo: ") == action.target.is_clean
        assert action.source.is_clean != action.target.is_clean


@pytest.mark.parametrize(
    ("protocol", "clean"), [("apply", (True, False)), ("undo", (False, True)), ("transfer", (False, False))]
)
def test_random_actions_start_and_end_where_the_protocol_says(acting_model, protocol, clean):
    actions = random_actions(acting_model, 40, protocol, seed=5)
    assert len(actions) == len(set(actions.values())) == 40
    assert {(a.source.is_clean, a.target.is_clean) for a in actions.values()} == {clean}
    assert random_actions(acting_model, 40, protocol, seed=5) == actions
    assert list(random_actions(acting_model, 40, protocol, seed=6).values()) != list(actions.values())
    views = [a.target if protocol == "apply" else a.source for a in actions.values()]
    assert any(view.grayscale for view in views)
    for name, action in actions.items():
        assert ("gray" in name) == (action.source.grayscale or action.target.grayscale)
        assert ("untouched" in name) == (protocol != "transfer")


def test_targets_are_those_of_training(acting_model):
    config = acting_model.config
    acting_model.config = config.replace(actions=type(config.actions)(symmetric=False))
    actions = random_actions(acting_model, 60).values()
    assert any(a.source.solarize or a.source.grayscale for a in actions)
    assert not any(a.target.solarize or a.target.grayscale or a.target.blur for a in actions)


@pytest.mark.parametrize(
    ("rows", "protocol", "message"),
    [(3, "aply", 'Did you mean "apply"'), (0, "apply", "ask for at least 1")],
)
def test_what_cannot_be_drawn(acting_model, rows, protocol, message):
    with pytest.raises(InvalidConfigError, match=message):
        random_actions(acting_model, rows, protocol)


def test_numbers_are_plain_json(acting_model, images):
    rows = list(retrieve(acting_model, images, VIEWS, bank_size=9))
    told = json.loads(json.dumps(retrievals_to_dict(rows)))
    assert [row["action"] for row in told] == list(VIEWS)
    assert told[1]["source"]["blur"] == 1.0
    for row, item in zip(told, rows, strict=True):
        assert (row["rank"], row["bank_size"]) == (item.rank, 9)
        assert [Photometry(**found["photometry"]) for found in row["found"]] == item.photometries
