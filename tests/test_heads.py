"""Heads against plain loops and against other people's implementations."""

import math
from dataclasses import replace

import pytest
import torch
from adapter_parts import classification, segmentation, shake
from torch import nn

from iwm.counting import count_head
from iwm.heads import AttentiveHead, LinearHead, UperNetHead, make_head

WIDTH, HEADS = 48, 4


def check_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


def test_linear_is_a_layer_over_the_mean():
    head = LinearHead(WIDTH, 3)
    tokens = torch.randn(2, 5, WIDTH)
    for sample, scores in zip(tokens, head(tokens), strict=True):
        pooled = sum(sample) / 5
        check_close(scores, head.classify.weight @ pooled + head.classify.bias)


def test_batch_norm_has_no_parameters_and_normalises_pooled_tokens():
    head = LinearHead(WIDTH, 3, batch_norm=True)
    assert len(list(head.parameters())) == 2
    tokens = torch.randn(8, 5, WIDTH) * 3 + 1
    pooled = tokens.mean(dim=1)
    mean, variance = pooled.mean(dim=0), pooled.var(dim=0, correction=0)
    check_close(head.train()(tokens), head.classify((pooled - mean) / (variance + 1e-6).sqrt()))
    shake(head)
    seen = (pooled - head.norm.running_mean) / (head.norm.running_var + 1e-6).sqrt()
    check_close(head.eval()(tokens), head.classify(seen))


def test_attentive_against_a_loop_over_heads_and_tokens():
    head = AttentiveHead(WIDTH, HEADS, 3)
    shake(head)
    tokens = torch.randn(2, 5, WIDTH)
    size = WIDTH // HEADS
    query = head.query_token - head.query_token.mean()
    query = query / (query.square().mean() + 1e-6).sqrt()
    for sample, scores in zip(tokens, head(tokens), strict=True):
        pairs = [head.keys_values(head.norm(token)) for token in sample]
        gathered = []
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            weights = [(query[part] @ pair[:WIDTH][part] / math.sqrt(size)).exp() for pair in pairs]
            values = [pair[WIDTH:][part] for pair in pairs]
            gathered.append(sum(w / sum(weights) * v for w, v in zip(weights, values, strict=True)))
        check_close(scores, head.classify(head.project(torch.cat(gathered))))


def test_attentive_equals_torchs_attention():
    head = AttentiveHead(WIDTH, HEADS, 3)
    shake(head)
    reference = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    reference.in_proj_weight.data = torch.cat((torch.eye(WIDTH), head.keys_values.weight.data))
    reference.in_proj_bias.data = torch.cat((torch.zeros(WIDTH), head.keys_values.bias.data))
    reference.out_proj.load_state_dict(head.project.state_dict())
    tokens = torch.randn(3, 7, WIDTH)
    query = nn.functional.layer_norm(head.query_token, (WIDTH,), eps=1e-6).expand(3, 1, -1)
    seen = head.norm(tokens)
    check_close(head(tokens), head.classify(reference(query, seen, seen)[0][:, 0]))


def test_attentive_sees_a_set():
    head = AttentiveHead(WIDTH, HEADS, 3)
    shake(head)
    tokens = torch.randn(2, 6, WIDTH)
    check_close(head(tokens[:, torch.randperm(6)]), head(tokens))
    assert (head(tokens[:, :5]) - head(tokens)).abs().max() > 1e-3


def reference_upernet(head, channels, classes):
    """The same weights in transformers' UperNet and BEiT's pyramid, which others have checked."""
    upernet = pytest.importorskip(
        "transformers.models.upernet.modeling_upernet", reason="pip install transformers"
    )
    beit = pytest.importorskip("transformers.models.beit.modeling_beit", reason="pip install transformers")
    config = upernet.UperNetConfig(hidden_size=channels, num_labels=classes, pool_scales=[1, 2, 3, 6])
    reference, neck = (
        upernet.UperNetHead(config, [WIDTH] * 4),
        beit.BeitFPNNeck(beit.BeitConfig(hidden_size=WIDTH)),
    )
    names = {"0": "conv", "1": "batch_norm"}
    blocks = {
        "pooled": "psp_modules.{}.1",
        "lateral": "lateral_convs.{}",
        "smooth": "fpn_convs.{}",
        "bottleneck": "bottleneck",
        "merge": "fpn_bottleneck",
    }
    state = {}
    for name, tensor in head.state_dict().items():
        kind, *rest = name.split(".")
        if kind == "classify":
            state[f"classifier.{rest[0]}"] = tensor
        elif kind in ("bottleneck", "merge"):
            state[".".join((blocks[kind], names[rest[0]], rest[1]))] = tensor
        elif kind != "scales":
            state[".".join((blocks[kind].format(rest[0]), names[rest[1]], rest[2]))] = tensor
    reference.load_state_dict(state, strict=True)
    values = [t for name, t in head.state_dict().items() if name.startswith("scales.")]
    neck.load_state_dict(dict(zip(neck.state_dict(), values, strict=True)), strict=True)
    return reference, neck


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("grid", "channels"), [((4, 4), WIDTH), ((2, 5), 12), ((7, 3), WIDTH + 4)])
def test_upernet_equals_transformers(grid, channels, training):
    head = UperNetHead(WIDTH, channels, 4)
    shake(head)
    reference, neck = reference_upernet(head, channels, 4)
    for module in (head, reference, neck):
        module.train(training)
    features = [torch.randn(2, grid[0] * grid[1], WIDTH) for _ in range(4)]
    maps = [tokens.view(2, *grid, WIDTH).permute(0, 3, 1, 2) for tokens in features]
    out = head(features, grid)
    assert out.shape == (2, 4, 4 * grid[0], 4 * grid[1])
    check_close(out, reference(neck(maps)))


def test_upernet_puts_scores_where_the_tokens_are():
    head = UperNetHead(WIDTH, WIDTH, 4).eval()
    shake(head)
    features = [torch.randn(1, 64, WIDTH) for _ in range(4)]
    before = head(features, (8, 8))
    moved = [tokens.clone() for tokens in features]
    for tokens in moved[:2]:
        tokens[:, 9] += 1.0  # Row 1, column 1: a corner of the output.
    change = (head(moved, (8, 8)) - before).abs().amax(dim=(0, 1))
    assert change[:16, :16].max() > 1e-3
    assert change[16:, 16:].max() == 0


@pytest.mark.parametrize("width", [8, WIDTH])
@pytest.mark.parametrize(
    ("task", "kind"),
    [
        (classification(), LinearHead),
        (classification(batch_norm=True), LinearHead),
        (classification("a", "b", head="attentive"), AttentiveHead),
        (segmentation(), UperNetHead),
        (replace(segmentation(), channels=6), UperNetHead),
    ],
)
def test_heads_of_tasks_and_their_parameters(task, kind, width):
    head = make_head(task, width, HEADS)
    assert type(head) is kind
    assert sum(p.numel() for p in head.parameters()) == count_head(task, width)
    assert head.classify.weight.shape[0] == len(task.labels)
    if task.channels:
        assert head.classify.weight.shape[1] == task.channels
    assert isinstance(getattr(head, "norm", None), nn.BatchNorm1d) is task.batch_norm


def test_upernet_has_no_more_channels_than_the_original():
    with torch.device("meta"):
        head = make_head(segmentation(*(str(i) for i in range(150))), 768, HEADS)
    assert head.merge[0].weight.shape == (512, 2048, 3, 3)
    assert sum(p.numel() for p in head.parameters()) == count_head(
        segmentation(*(str(i) for i in range(150))), 768
    )
