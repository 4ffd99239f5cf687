"""The cost of a photometry: what it measures, where it is computed, and what it leaves alone."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from iwm import costs as module
from iwm.actions import Action, stack_actions
from iwm.costs import latent_cost, predictions_at_a_time
from iwm.latent import Latent
from iwm.world_model import WorldModel

ACTIONS = [Action(brightness=1.2, blur=1.0), Action(hue=0.1, solarize=True)]
PARAMS = stack_actions(ACTIONS)[:, 1].expand(2, -1, -1)


def test_the_cost_is_the_distance_of_the_prediction(acting_model):
    model = acting_model
    before, after = (model.encode(torch.rand(2, 3, 32, 32)) for _ in range(2))
    costs = latent_cost(model, before, after)(PARAMS)
    for i in range(2):
        for j, action in enumerate(ACTIONS):
            moved = model.apply_action(before[i], action)
            expected = (moved.tokens - after[i].tokens).square().mean()
            torch.testing.assert_close(costs[i, j], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("symmetric", [True, False])
def test_photometries_on_the_cpu_are_tried_on_the_models_device(acting_model, symmetric, monkeypatch):
    """Shapes and devices alone: no test machine need have the device."""
    config = acting_model.config
    config = config.replace(actions=dataclasses.replace(config.actions, symmetric=symmetric))
    monkeypatch.setattr("iwm.stored.init_weights", lambda model: None)
    with FakeTensorMode():
        with torch.device("cuda"):
            model = WorldModel(config)
        before, after = (Latent(torch.rand(2, 16, 48, device="cuda"), (4, 4), "fake") for _ in range(2))
        costs = latent_cost(model, before, after)(torch.rand(2, 3, 7))
    assert (costs.device.type, costs.shape) == ("cuda", (2, 3))


def test_no_gradient_reaches_the_weights(acting_model):
    model = acting_model.requires_grad_(True)
    latents = model.encode(torch.rand(2, 3, 32, 32))
    params = PARAMS.clone().requires_grad_()
    costs = latent_cost(model, latents, latents)(params)
    costs.sum().backward()
    assert params.grad.abs().max() > 0
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("layout", "shared", "expected"), [("inplace", False, 4), ("append", False, 1), ("append", True, 3)]
)
def test_larger_predictions_are_made_fewer_at_a_time(tiny_config, monkeypatch, layout, shared, expected):
    model = WorldModel(tiny_config(layout, "feature", share_source=shared))
    assert predictions_at_a_time(model, 16) == module.BATCH
    # Two blocks of 16 tokens, 32 wide, hidden layers of 64, four heads, in float32.
    monkeypatch.setattr(module, "GRADIENT_BYTES", 4.5 * 2 * 4 * 16 * (14 * 32 + 3 * 4 * 16))
    assert predictions_at_a_time(model, 16) == expected
    monkeypatch.setattr(module, "GRADIENT_BYTES", 0)
    assert predictions_at_a_time(model, 16) == 1
