"""Predictions in a row, and the mean of many."""

import pytest
import torch

from iwm.actions import Action, Photometry
from iwm.encoder import normalize_tokens
from iwm.errors import InvalidActionError, InvalidConfigError
from iwm.rolling import chain

STEPS = [Action(brightness=0.8), Action(hue=0.1), Action(grayscale=True)]


def test_rolling_feeds_every_prediction_back(acting_model):
    latent = acting_model.encode(torch.rand(2, 3, 32, 32))
    rolled = acting_model.roll(latent, STEPS)
    assert len(rolled) == 3
    expected = latent
    for step, action in zip(rolled, chain(STEPS), strict=True):
        expected = acting_model.apply_action(expected, action)
        assert torch.equal(step.tokens, expected.tokens)


def test_a_chain_says_where_each_step_starts():
    first, second, third = chain(STEPS)
    assert first == STEPS[0]
    assert second == Action.between(Photometry(brightness=0.8), Photometry(brightness=0.8, hue=0.1))
    assert third.source == second.target
    assert third.target == Photometry(brightness=0.8, hue=0.1, grayscale=True)


def test_where_no_photometry_is_known_a_step_starts_anew():
    steps = [Action(solarize=True), Action(brightness=0.8), Action(hue=0.1)]
    assert chain(steps)[:2] == steps[:2]
    assert chain(steps)[2].source == Photometry(brightness=0.8)
    back = STEPS[0].inverse()
    assert chain([STEPS[0], back]) == [STEPS[0], back]


def test_the_invariant_is_the_normalised_mean_of_predictions(acting_model):
    latent = acting_model.encode(torch.rand(2, 3, 32, 32))
    moved = [acting_model.apply_action(latent, action).tokens for action in STEPS]
    expected = normalize_tokens(torch.stack(moved).mean(0))
    found = acting_model.invariant(latent, actions=STEPS)
    torch.testing.assert_close(found.tokens, expected, atol=2e-5, rtol=0)
    assert (found.grid, found.space) == (latent.grid, latent.space)


def test_the_invariant_hardly_depends_on_the_draw(acting_model):
    latent = acting_model.encode(torch.rand(1, 3, 32, 32))
    few, again = (acting_model.invariant(latent, 2, seed=seed).tokens for seed in (1, 2))
    many, more = (acting_model.invariant(latent, 64, seed=seed).tokens for seed in (1, 2))
    assert (many - more).norm() < 0.5 * (few - again).norm()
    assert torch.equal(acting_model.invariant(latent, 4).tokens, acting_model.invariant(latent, n=4).tokens)


def test_nothing_to_roll(acting_model):
    latent = acting_model.encode(torch.rand(1, 3, 32, 32))
    for actions in ([], Action(), 3, ["darker"], [[Action()], Action()]):
        with pytest.raises(InvalidActionError, match=r"Expected a list of at least one iwm\.Action"):
            acting_model.roll(latent, actions)
    for actions in ([], Action(), [None]):
        with pytest.raises(InvalidActionError, match=r"Expected a list of at least one iwm\.Action"):
            acting_model.invariant(latent, actions=actions)
    with pytest.raises(InvalidConfigError, match="n is 0"):
        acting_model.invariant(latent, 0)
    with pytest.raises(InvalidConfigError, match="seed is -1"):
        acting_model.invariant(latent, 2, seed=-1)


def test_the_mean_of_a_generator_of_actions(acting_model):
    latents = acting_model.encode(torch.rand(2, 3, 32, 32))
    actions = [Action(brightness=0.8), Action(hue=0.1)]
    found = acting_model.invariant(latents, actions=(action for action in actions))
    torch.testing.assert_close(found.tokens, acting_model.invariant(latents, actions=actions).tokens)
