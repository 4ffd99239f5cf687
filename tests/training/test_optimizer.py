"""Decay groups, and the schedule reaching the right one."""

import pytest
import torch
from torch import nn

from iwm.config import EncoderConfig, PredictorConfig, PreprocessConfig, WorldModelConfig
from iwm.training.config import OptimConfig
from iwm.training.optimizer import make_optimizer, optimizer_over, scaled_groups, set_schedule
from iwm.world_model import WorldModel


def _model(conditioning):
    return WorldModel(
        WorldModelConfig(
            encoder=EncoderConfig(width=32, depth=1, heads=2, patch_size=8, image_size=32),
            predictor=PredictorConfig(width=16, depth=1, conditioning=conditioning),
            preprocess=PreprocessConfig(size=32, resize=32),
        )
    )


@pytest.mark.parametrize("conditioning", ["feature", "adaln", "none"])
def test_only_matrices_decay(conditioning):
    model = _model(conditioning)
    decayed, plain = make_optimizer([model], OptimConfig()).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert all(names[p].endswith("weight") and p.ndim >= 2 for p in decayed["params"])
    assert {names[p] for p in plain["params"]} == {
        name
        for name in names.values()
        if name.endswith(("bias", "mask_token")) or (".norm" in name and name.endswith("weight"))
    }
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_frozen_parameters_are_left_out():
    model = _model("none")
    model.encoder.requires_grad_(False)
    groups = make_optimizer([model.encoder, model.predictor], OptimConfig()).param_groups
    held = {id(p) for group in groups for p in group["params"]}
    assert held == {id(p) for p in model.predictor.parameters()}


def test_schedule_sets_every_rate_but_only_the_decayed_groups_decay():
    optimizer = make_optimizer([nn.Linear(3, 2)], OptimConfig(betas=(0.8, 0.9)))
    set_schedule(optimizer, 0.25, 0.125)
    decayed, plain = optimizer.param_groups
    assert (decayed["lr"], decayed["weight_decay"], decayed["betas"]) == (0.25, 0.125, (0.8, 0.9))
    assert (plain["lr"], plain["weight_decay"]) == (0.25, 0.0)


def test_a_step_is_adamw_by_hand():
    layer = nn.Linear(3, 2)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = make_optimizer([layer], OptimConfig())
    set_schedule(optimizer, 0.1, 0.5)
    layer.weight.grad, layer.bias.grad = torch.full((2, 3), 2.0), torch.full((2,), -3.0)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), weight * (1 - 0.1 * 0.5) - 0.1)
    torch.testing.assert_close(layer.bias.detach(), bias + 0.1)


def test_groups_carry_their_share_of_the_rate_and_whether_they_decay():
    first, second = nn.Linear(3, 2), nn.Linear(2, 2)
    second.bias.requires_grad_(False)
    shares = [(p, 1.0) for p in first.parameters()] + [(p, 0.25) for p in second.parameters()]
    optimizer = optimizer_over(scaled_groups(shares), OptimConfig())
    set_schedule(optimizer, 0.5, 0.125)
    found = {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert found == {
        id(first.weight): (0.5, 0.125), id(first.bias): (0.5, 0.0), id(second.weight): (0.125, 0.125),
    }  # fmt: skip


def test_groups_of_a_checkpoint_that_does_not_say_what_decays():
    optimizer = make_optimizer([nn.Linear(3, 2)], OptimConfig())
    for group in optimizer.param_groups:
        del group["decays"]
    set_schedule(optimizer, 0.25, 0.125)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.25, 0.125), (0.25, 0.0)]


def test_two_steps_of_lars_by_hand():
    layer = nn.Linear(3, 2)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = make_optimizer([layer], OptimConfig(optimizer="lars", momentum=0.5))
    velocity_w, velocity_b = torch.zeros(2, 3), torch.zeros(2)
    for _ in range(2):
        set_schedule(optimizer, 2.0, 0.0)
        layer.weight.grad, layer.bias.grad = torch.full((2, 3), 3.0), torch.full((2,), -3.0)
        optimizer.step()
        scaled = torch.full((2, 3), 3.0) * 0.001 * weight.norm() / torch.full((2, 3), 3.0).norm()
        velocity_w, velocity_b = 0.5 * velocity_w + scaled, 0.5 * velocity_b - 3.0
        weight, bias = weight - 2.0 * velocity_w, bias - 2.0 * velocity_b
    torch.testing.assert_close(layer.weight.detach(), weight)
    torch.testing.assert_close(layer.bias.detach(), bias)
