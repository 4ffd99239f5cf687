"""A predictor whose source tokens are kept apart: the same as masked attention, and once for all actions."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import iwm
from iwm.config import Conditioning, WorldModelConfig
from iwm.encoder import set_drop_path
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

    def build(conditioning, share_source=True):
        torch.manual_seed(1)
        model = Predictor(tiny_config("append", conditioning, share_source=share_source)).eval()
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


@every_conditioning
def test_the_residual_stream_keeps_its_precision_under_autocast(make, conditioning):
    source, action = torch.randn(2, 16, WIDTH), torch.randn(2, 14)
    for share in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            found = make(conditioning, share).features(source, action, GRID, count=2)
        assert [tokens.dtype for tokens in found] == [torch.float32] * 2
    context, asking = make(conditioning)._sequence(source, action, GRID)
    assert context.dtype == asking.dtype == torch.float32


def test_hooks_on_blocks_are_called(make):
    model, called = make("adaln"), []
    for block in model.blocks:
        block.register_forward_hook(lambda *_: called.append(1))
    model(torch.randn(1, 16, WIDTH), torch.randn(3, 14), GRID)
    assert len(called) == len(model.blocks)


def test_drop_path_skips_source_and_asking_tokens_in_training(make):
    model = make("none")
    x, source = torch.randn(3, 6, 32), torch.randn(3, 16, 32)
    set_drop_path(model.blocks, 1.0)
    model.train()
    assert all(map(torch.equal, model.blocks[-1](x, None, source), (x, source)))
    model.eval()
    assert not any(map(torch.equal, model.blocks[-1](x, None, source), (x, source)))
    assert torch.equal(model.blocks[-1](x, None, source, True)[1], source)


def test_many_actions_cost_about_half_as_much(tiny_config, monkeypatch):
    """Linear layers of mask tokens alone, in pieces that hold as many actions as without a source of their own."""
    monkeypatch.setattr(iwm.world_model, "ACTION_BYTES", {"cpu": 32 * 16 * 32 * 3 * 4})  # Of 32 actions.
    actions = [iwm.Action(hue=0.1)] * 64
    taken, pieces = [], []
    for share in (True, False):
        model = iwm.WorldModel(tiny_config("append", "adaln", share_source=share))
        latent = model.encode(torch.rand(1, 3, 32, 32))
        model.predictor.register_forward_hook(lambda _, args, out: pieces.append(len(out)))
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.apply_action(latent, actions)
        taken.append(counter.get_total_flops())
    assert pieces == [32] * 2 + [16] * 4
    assert 0.45 < taken[0] / taken[1] < 0.56


def test_inplace_has_no_source_to_share(tiny_config):
    with pytest.raises(InvalidConfigError, match=r"take predictor\.layout append"):
        tiny_config("inplace", share_source=True)


def test_it_is_saved_and_shown_and_older_configs_are_read(make, tiny_config, tmp_path):
    config = tiny_config("append", "adaln", share_source=True)
    model = iwm.WorldModel(config)
    model.predictor.load_state_dict(make("adaln").state_dict())
    model.save_pretrained(tmp_path)
    source, action = torch.randn(1, 16, WIDTH), torch.randn(2, 14)
    saved, other = iwm.load(tmp_path).predictor(source, action, GRID), make("adaln", share_source=False)
    rounded = (saved - model.predictor(source, action, GRID)).abs().max()
    assert rounded < 0.01 * (saved - other(source, action, GRID)).abs().max()
    assert "layout `append, shared source`, conditioning" in write_card(config, "a/b")
    older = config.replace(predictor=replace(config.predictor, share_source=False))
    without = older.to_json().replace(',\n    "share_source": false', "")
    assert "share_source" not in without
    assert WorldModelConfig.from_json(without) == older
