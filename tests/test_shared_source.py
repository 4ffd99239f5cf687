"""A predictor whose source tokens are kept apart: the same as masked attention, and once for all actions."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import iwm
from iwm.config import Conditioning, WorldModelConfig
from iwm.errors import InvalidConfigError
from iwm.model_card import write_card
from iwm.predictor import Predictor

GRID, WIDTH = (4, 4), 48
VISIBLE = torch.tensor([[3, 0, 7, 12, 9], [1, 2, 15, 8, 4]])
TARGETS = torch.tensor([[5, 1, 14], [0, 13, 6]])
every_conditioning = pytest.mark.parametrize("conditioning", get_args(Conditioning))


@pytest.fixture
def make(tiny_config):
    """Predictors with random weights everywhere; without `share_source`, one with the same weights."""

    def build(conditioning, share_source=True, layout="append"):
        torch.manual_seed(1)
        model = Predictor(tiny_config(layout, conditioning, share_source=share_source)).eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
        return model

    return build


def by_masked_attention(model, source, asking, action, count=1):
    """All tokens through every block in one sequence, head by head, with a mask; one sample."""
    first, x = len(source), torch.cat((source, asking))
    allowed = torch.ones(len(x), len(x), dtype=torch.bool)
    allowed[:first, first:] = False
    condition = torch.zeros(6, len(x), model.config.width)
    outputs = []
    for block in model.blocks:
        if model.embed_action is not None:
            told = torch.zeros(len(x), model.config.width)
            told[first:] = model.embed_action(action[None])
            condition = torch.stack(block.modulation(told).chunk(6, dim=-1))
        scale1, shift1, gate1, scale2, shift2, gate2 = condition
        query, key, value = block.attn.qkv(block.norm1(x) * (1 + scale1) + shift1).chunk(3, dim=-1)
        size = model.config.width // block.attn.num_heads
        heads = []
        for start in range(0, model.config.width, size):
            q, k, v = (t[:, start : start + size] for t in (query, key, value))
            scores = (q @ k.T / size**0.5).masked_fill(~allowed, -torch.inf)
            heads.append(scores.softmax(dim=-1) @ v)
        x = x + (1 + gate1) * block.attn.proj(torch.cat(heads, dim=-1))
        x = x + (1 + gate2) * block.mlp(block.norm2(x) * (1 + scale2) + shift2)
        outputs.append(x[first:])
    return outputs[-count:]


@every_conditioning
@pytest.mark.parametrize("fused", [True, False])
def test_it_is_masked_attention(make, conditioning, fused):
    model = make(conditioning)
    for block in model.blocks:
        block.attn.fused_attn = fused
    source, action = torch.randn(2, 5, WIDTH), torch.randn(2, 14)
    extra = torch.randn(2, 2, model.config.width)
    predicted = model(source, action, GRID, VISIBLE, TARGETS)
    whole = torch.randn(2, 16, WIDTH)
    features = model.features(whole, action, GRID, extra=extra, count=2)
    token = torch.randn(2, 1, model.config.width)
    alone = model.respond(whole, action, GRID, token=token)
    for b in range(2):
        added = (
            model.action_tokens(action[b : b + 1])[0] if conditioning == "sequence" else torch.empty(0, 32)
        )
        context, asking = (t[b] for t in model._sequence(source, action, GRID, VISIBLE, TARGETS))
        (expected,) = by_masked_attention(model, context, torch.cat((asking, added)), action[b])
        close(predicted[b], model.project_out(model.norm(expected[:3])))
        context, asking = (t[min(b, len(t) - 1)] for t in model._sequence(whole, action, GRID))
        tokens = torch.cat((asking, extra[b], added))
        for found, expected in zip(
            features, by_masked_attention(model, context, tokens, action[b], count=2), strict=True
        ):
            close(found[b], expected[:16])
        context, asking = (t[b] for t in model._sequence(whole, action, GRID, token=token))
        (expected,) = by_masked_attention(model, context, torch.cat((asking, added)), action[b])
        close(alone[b], model.project_out(model.norm(expected[:1])))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@every_conditioning
def test_one_source_serves_every_action(make, conditioning):
    model = make(conditioning)
    source, actions = torch.randn(1, 16, WIDTH), torch.randn(5, 14)
    together = model(source, actions, GRID)
    assert together.shape == (5, 16, WIDTH)
    close(together, model(source.expand(5, -1, -1), actions, GRID))
    for action, one in zip(actions, together, strict=True):
        close(one, model(source, action[None], GRID)[0])
    assert ((together[0] - together[1]).abs().max() > 1e-3) == (conditioning != "none")


@every_conditioning
def test_predictions_read_the_source_and_are_others_than_by_full_attention(make, conditioning):
    model, other = make(conditioning), make(conditioning, share_source=False)
    source, action = torch.randn(1, 16, WIDTH), torch.randn(1, 14)
    moved = source + torch.eye(16)[0][:, None]  # One token: all that are predicted see it.
    assert (model(moved, action, GRID) - model(source, action, GRID)).abs().amax((0, 2)).min() > 1e-3
    other.load_state_dict(model.state_dict())
    assert (model(source, action, GRID) - other(source, action, GRID)).abs().max() > 1e-3


def test_gradients_reach_everything(make):
    for conditioning in get_args(Conditioning):
        model = make(conditioning)
        source = torch.randn(2, 16, WIDTH, requires_grad=True)
        action = torch.randn(2, 14, requires_grad=True)
        model(source, action, GRID).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
        assert source.grad.abs().amax((0, 2)).min() > 0
        assert (action.grad is not None) == (conditioning != "none")


def test_many_actions_cost_about_half_as_much(make):
    """Linear layers of mask tokens alone; the attention of all to all is what is left of the rest."""
    source, actions = torch.randn(1, 16, WIDTH), torch.randn(64, 14)
    taken = []
    for share in (True, False):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            make("adaln", share)(source, actions, GRID)
        taken.append(counter.get_total_flops())
    assert 0.45 < taken[0] / taken[1] < 0.56


def test_inplace_has_no_source_to_share(tiny_config):
    with pytest.raises(InvalidConfigError, match=r"take predictor\.layout append"):
        tiny_config("inplace", share_source=True)


def test_it_is_saved_and_shown_and_older_configs_are_read(tiny_config, tmp_path):
    config = tiny_config("append", "adaln", share_source=True)
    model = iwm.WorldModel(config)
    model.save_pretrained(tmp_path)
    loaded = iwm.load(tmp_path)
    assert loaded.config.predictor.share_source
    source, action = torch.randn(1, 16, WIDTH), torch.randn(2, 14)
    torch.testing.assert_close(
        loaded.predictor(source, action, GRID), model.predictor(source, action, GRID), atol=0.01, rtol=0.01
    )
    assert "layout `append` with shared source, conditioning" in write_card(config, "a/b")
    older = config.to_json().replace('"share_source": true', '"share_source": false')
    assert older != config.to_json()
    without = older.replace(',\n    "share_source": false', "")
    assert "share_source" not in without
    assert WorldModelConfig.from_json(without) == config.replace(
        predictor=replace(config.predictor, share_source=False)
    )
