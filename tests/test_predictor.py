"""The world model: layouts and conditionings, and the equivalences between them."""

import itertools
from functools import partial
from typing import get_args

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn

from iwm.config import VECTOR_SIZE, Conditioning, Layout, WorldModelConfig
from iwm.encoder import Encoder, set_drop_path, sincos_positions
from iwm.predictor import Predictor

LAYOUTS, CONDITIONINGS = get_args(Layout), get_args(Conditioning)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_conditioning = pytest.mark.parametrize("conditioning", CONDITIONINGS)
GRID, WIDTH = (4, 4), 48
VISIBLE = torch.tensor([[3, 0, 7, 12, 9], [1, 2, 15, 8, 4]])
TARGETS = torch.tensor([[5, 1, 14], [0, 13, 6]])


@pytest.fixture
def make(tiny_config):
    """Predictors with random weights everywhere, mask token and modulation included."""

    def build(layout, conditioning, encoding="pair"):
        torch.manual_seed(1)
        model = Predictor(tiny_config(layout, conditioning, encoding)).eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
        return model

    return build


def inputs(batch=2, tokens=16, size=14):
    return torch.randn(batch, tokens, WIDTH), torch.randn(batch, size)


def check_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


@every_layout
@every_conditioning
@pytest.mark.parametrize("encoding", VECTOR_SIZE)
def test_shapes_and_gradients(make, layout, conditioning, encoding):
    model = make(layout, conditioning, encoding)
    source, action = inputs(tokens=5, size=VECTOR_SIZE[encoding])
    source.requires_grad_()
    action.requires_grad_()
    out = model(source, action, GRID, VISIBLE, TARGETS)
    assert out.shape == (2, 3, WIDTH)
    (out * torch.randn_like(out)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []
    assert source.grad.abs().amin(dim=(0, 2)).shape == (5,)
    assert (source.grad.abs().amax(dim=2) > 0).all()
    assert (action.grad is None) == (conditioning == "none")
    if conditioning != "none":
        assert (action.grad != 0).all()


@every_layout
@every_conditioning
def test_everything_by_default(make, layout, conditioning):
    model = make(layout, conditioning)
    source, action = inputs()
    everything = torch.arange(16).expand(2, -1)
    out = model(source, action, GRID)
    assert out.shape == (2, 16, WIDTH)
    check_close(model(source, action, GRID, visible=everything), out)
    check_close(model(source, action, GRID, targets=everything), out)
    check_close(model(source, action, GRID, everything, everything), out)


@every_layout
@every_conditioning
def test_only_none_ignores_the_action(make, layout, conditioning):
    model = make(layout, conditioning)
    source, action = inputs(tokens=5)
    out = model(source, action, GRID, VISIBLE, TARGETS)
    other = model(source, action + 1, GRID, VISIBLE, TARGETS)
    if conditioning == "none":
        assert torch.equal(other, out)
    else:
        assert ((other - out).abs().amax(dim=(1, 2)) > 1e-3).all()


@every_layout
@every_conditioning
def test_batch_equals_one_by_one(make, layout, conditioning):
    model = make(layout, conditioning)
    source, action = inputs(tokens=5)
    one = [
        model(source[i : i + 1], action[i : i + 1], GRID, VISIBLE[i : i + 1], TARGETS[i : i + 1])
        for i in (0, 1)
    ]
    check_close(model(source, action, GRID, VISIBLE, TARGETS), torch.cat(one))


@every_conditioning
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_append_permuting_targets_permutes_outputs(make, conditioning, order):
    model = make("append", conditioning)
    source, action = inputs(tokens=5)
    out = model(source, action, GRID, VISIBLE, TARGETS)
    check_close(model(source, action, GRID, VISIBLE, TARGETS[:, list(order)]), out[:, list(order)])
    assert (out[:, 0] - out[:, 1]).abs().max() > 1e-2


@every_conditioning
def test_inplace_targets_choose_among_all_positions(make, conditioning):
    model = make("inplace", conditioning)
    source, action = inputs(tokens=5)
    everywhere = model(source, action, GRID, VISIBLE)
    out = model(source, action, GRID, VISIBLE, TARGETS)
    for b, t in itertools.product(range(2), range(3)):
        check_close(out[b, t], everywhere[b, TARGETS[b, t]])


@every_layout
@every_conditioning
def test_order_of_the_visible_tokens_is_free(make, layout, conditioning):
    model = make(layout, conditioning)
    source, action = inputs(tokens=5)
    order = torch.tensor([4, 2, 0, 3, 1])
    out = model(source, action, GRID, VISIBLE, TARGETS)
    check_close(model(source[:, order], action, GRID, VISIBLE[:, order], TARGETS), out)
    assert (model(source[:, order], action, GRID, VISIBLE, TARGETS) - out).abs().max() > 1e-2


@every_layout
@every_conditioning
def test_masked_patches_cannot_leak(make, tiny_config, layout, conditioning):
    """From pixels on: what the source loses changes nothing, what it keeps does."""
    config = tiny_config()
    encoder, model = Encoder(config.encoder, config.preprocess).eval(), make(layout, conditioning)
    visible, targets = torch.arange(8).expand(2, -1), torch.arange(8, 16).expand(2, -1)
    images, action = torch.rand(2, 3, 32, 32), torch.randn(2, 14)
    lower, upper = images.clone(), images.clone()
    lower[:, :, 16:] = torch.rand(2, 3, 16, 32)
    upper[:, :, :16] = torch.rand(2, 3, 16, 32)
    out, blind, seeing = (
        model(encoder(i, visible), action, GRID, visible, targets) for i in (images, lower, upper)
    )
    assert torch.equal(blind, out)
    assert (seeing - out).abs().max() > 1e-3


def plain_tokens(model, source, action, visible, targets):
    """The sequence before the blocks, of one sample, token by token as the paper words it."""
    table = sincos_positions(model.config.width, GRID, model.train_grid, torch.empty(0))
    context = {n: model.project_in(source[i]) for i, n in enumerate(visible)}

    def mixed(token):
        return token if model.mix is None else model.mix(torch.cat((token, action)))

    mask = model.mask_token[0, 0]
    if model.config.layout == "append":
        return [context[n] + table[n] for n in visible] + [mixed(mask + table[n]) for n in targets]
    return [mixed(context.get(n, mask) + table[n]) for n in range(16)]


@every_layout
@every_conditioning
def test_against_a_token_by_token_reference(make, layout, conditioning):
    model = make(layout, conditioning)
    source, action = inputs(tokens=5)
    out = model(source, action, GRID, VISIBLE, TARGETS)
    for b in range(2):
        visible, targets = VISIBLE[b].tolist(), TARGETS[b].tolist()
        tokens = plain_tokens(model, source[b], action[b], visible, targets)
        if conditioning == "sequence":  # The paper's other way: one token a component [section 4.2].
            layers = zip(model.action_tokens.components, action[b], strict=True)
            tokens += [layer.weight[:, 0] * value + layer.bias for layer, value in layers]
        x = torch.stack(tokens)[None]
        for block in model.blocks:
            x = block(x, model.embed_action(action[b : b + 1])) if conditioning == "adaln" else block(x)
        read = range(5, 8) if layout == "append" else targets
        expected = torch.stack([model.project_out(model.norm(x[0, t])) for t in read])
        check_close(out[b], expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_adaln_without_modulation_equals_a_plain_run(make, layout):
    adaln, plain = make(layout, "adaln"), make(layout, "none")
    for block, twin in zip(adaln.blocks, plain.blocks, strict=True):
        nn.init.zeros_(block.modulation.weight)
        nn.init.zeros_(block.modulation.bias)
        for norm in (twin.norm1, twin.norm2):
            nn.init.ones_(norm.weight)
            nn.init.zeros_(norm.bias)
    shared = {
        n: p for n, p in adaln.state_dict().items() if "modulation" not in n and "embed_action" not in n
    }
    missing, unexpected = plain.load_state_dict(shared, strict=False)
    assert all(".norm" in n for n in missing)
    assert unexpected == []
    source, action = inputs(tokens=5)
    arguments = (source, action, GRID, VISIBLE, TARGETS)
    check_close(adaln(*arguments), plain(*arguments))


def test_a_block_without_condition_is_timms(make):
    block = make("append", "none").blocks[0]
    timms = Block(32, 4, 2.0, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    timms.load_state_dict(block.state_dict(), strict=True)
    x = torch.randn(2, 6, 32)
    check_close(block(x), timms.eval()(x))


def test_adaln_block_by_hand(make):
    block = make("inplace", "adaln").blocks[0]
    x, condition = torch.randn(2, 6, 32), torch.randn(2, 32)
    scale1, shift1, gate1, scale2, shift2, gate2 = block.modulation(condition)[:, None].split(32, dim=-1)
    y = x + (1 + gate1) * block.attn(block.norm1(x) * (1 + scale1) + shift1)
    check_close(block(x, condition), y + (1 + gate2) * block.mlp(block.norm2(y) * (1 + scale2) + shift2))


def test_feature_mixer_is_the_papers(make):
    """Three layers of widths d, d, d with ReLU between [App. A.1]."""
    model = make("append", "feature")
    weights = list(model.mix.parameters())
    assert [tuple(w.shape) for w in weights[::2]] == [(32, 32 + 14), (32, 32), (32, 32)]
    x = tokens = torch.randn(2, 7, 32 + 14)
    for layer, (weight, bias) in enumerate(zip(weights[::2], weights[1::2], strict=True)):
        x = (x if layer == 0 else x.clamp_min(0)) @ weight.T + bias
    check_close(model.mix(tokens), x)


def test_size_of_the_papers_18_384():
    config = WorldModelConfig()
    with torch.device("meta"):
        model = nn.ModuleList((Encoder(config.encoder, config.preprocess), Predictor(config)))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(118.6e6, abs=0.05e6)


@every_layout
def test_feature_with_zeroed_action_weights_ignores_the_action(make, layout):
    model = make(layout, "feature")
    nn.init.zeros_(model.mix[0].weight[:, model.config.width :].data)
    source, action = inputs(tokens=5)
    out = model(source, action, GRID, VISIBLE, TARGETS)
    assert torch.equal(model(source, action + 1, GRID, VISIBLE, TARGETS), out)


def test_append_feature_reaches_the_context_only_through_the_mask_tokens(make):
    model = make("append", "feature")
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    source, action = inputs(tokens=5)
    for a in (action, action + 1):
        model(source, a, GRID, VISIBLE, TARGETS)
    assert torch.equal(seen[0][:, :5], seen[1][:, :5])
    assert ((seen[0] - seen[1])[:, 5:].abs().amax(dim=-1) > 1e-3).all()


@every_layout
@pytest.mark.parametrize("grid", [(6, 6), (2, 5), (1, 1)])
def test_other_grids_rescale_positions(make, layout, grid):
    model = make(layout, "none")
    n = grid[0] * grid[1]
    source, action = inputs(tokens=n)
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert model(source, action, grid).shape == (2, n, WIDTH)
    table = sincos_positions(model.config.width, grid, model.train_grid, torch.empty(0))
    check_close(seen[0][:, :n], model.project_in(source) + table)
    if layout == "append":
        check_close(seen[0][:, n:], (model.mask_token + table).expand(2, -1, -1))


@every_layout
@every_conditioning
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_response_without_more_tokens_is_the_prediction(make, layout, conditioning, precision):
    model = make(layout, conditioning)
    source, action = inputs()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        assert torch.equal(model.respond(source, action, GRID), model(source, action, GRID))


@every_layout
@every_conditioning
@pytest.mark.parametrize("alone", [False, True])
def test_responses_against_a_token_by_token_reference(make, layout, conditioning, alone):
    """Extra tokens join the sequence as they are; a token that is asked for is treated as a mask token."""
    model = make(layout, conditioning)
    source, action = inputs()
    token, extra = torch.randn(2, 1, 32), torch.randn(2, 2, 32)
    out = model.respond(source, action, GRID, token=token if alone else None, extra=extra)
    for b in range(2):
        everything = list(range(16))
        targets = [] if alone else everything
        tokens = plain_tokens(model, source[b], action[b], everything, targets)
        read = list(range(16, 32)) if layout == "append" else everything
        if alone:
            read = [len(tokens)]
            asked = token[b, 0]
            tokens.append(asked if model.mix is None else model.mix(torch.cat((asked, action[b]))))
        tokens += list(extra[b])
        if conditioning == "sequence":
            tokens += list(model.action_tokens(action[b : b + 1])[0])
        x = torch.stack(tokens)[None]
        for block in model.blocks:
            x = block(x, model.embed_action(action[b : b + 1])) if conditioning == "adaln" else block(x)
        check_close(out[b], model.project_out(model.norm(x[0, read])))


@every_layout
@every_conditioning
@pytest.mark.parametrize("count", [1, 2, 4])
def test_features_are_the_tokens_after_the_last_blocks(make, layout, conditioning, count):
    model = make(layout, conditioning)
    source, action = inputs()
    extra = torch.randn(2, 3, 32)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, out: seen.append(out))
    found = model.features(source, action, GRID, extra=extra, count=count)
    start = 16 if layout == "append" else 0
    expected = ([seen[0]] * 4 + seen[1:])[-count:]
    assert len(found) == count
    for tokens, kept in zip(found, expected, strict=True):
        assert torch.equal(tokens, kept[:, start : start + 16])
    last = model.project_out(model.norm(found[-1]))
    check_close(last, model.respond(source, action, GRID, extra=extra))


@every_layout
@pytest.mark.parametrize("conditioning", ["adaln", "none"])
def test_drop_path_rises_from_nothing_and_is_for_training(make, layout, conditioning):
    model = make(layout, conditioning)
    source, action = inputs()
    out, names = model(source, action, GRID), list(model.state_dict())
    set_drop_path(model.blocks, 1.0)
    assert list(model.state_dict()) == names
    assert torch.equal(model(source, action, GRID), out)
    first, last = model.train().blocks
    assert [type(part) for part in (first.drop_path1, first.drop_path2)] == [nn.Identity] * 2
    x = torch.randn(2, 5, 32)
    condition = () if conditioning == "none" else (torch.randn(2, 32),)
    assert torch.equal(last(x, *condition), x)  # Every path is dropped.
    set_drop_path(model.blocks, 0.5)
    torch.manual_seed(3)
    dropped = [bool(torch.equal(last(x[:1], *(c[:1] for c in condition)), x[:1])) for _ in range(200)]
    assert 0.15 < sum(dropped) / 200 < 0.35  # Both paths of a sample: a quarter.
    kept = last.drop_path1(torch.ones(1000, 5, 32))
    assert kept.unique().tolist() == [0.0, 2.0]  # Scaled, so that the mean stays what it was.
    assert torch.equal(kept, kept[:, :1, :1].expand_as(kept))
    set_drop_path(model.blocks, 0.0)
    assert torch.equal(model(source, action, GRID), out)
