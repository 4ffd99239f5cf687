"""The encoder against timm's VisionTransformer and plain loops."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer

from iwm.encoder import Encoder, normalize_tokens, set_drop_path, sincos_positions, take_tokens
from iwm.errors import InvalidImageError


@pytest.fixture
def encoder(tiny_config):
    config = tiny_config()
    model = Encoder(config.encoder, config.preprocess).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return model.requires_grad_(False)


def positions_by_hand(width, grid, train_grid):
    """One number at a time: row then column, sines then cosines."""
    table = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            features = []
            for index, n in ((row, grid[0]), (column, grid[1])):
                coordinate = (index + 0.5) * train_grid / n - 0.5
                angles = [coordinate / 10000 ** (4 * k / width) for k in range(width // 4)]
                features += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            table.append(features)
    return torch.tensor(table)


def plain_encoding(encoder, image, kept, grid):
    """One image, patch by patch: only the kept ones are ever embedded or attended to."""
    c = encoder.config
    table = positions_by_hand(c.width, grid, c.grid)
    normal = (image - encoder.mean[0]) / encoder.std[0]
    weight = encoder.patch_embed.proj.weight.flatten(1)
    tokens = []
    for n in kept:
        top, left = n // grid[1] * c.patch_size, n % grid[1] * c.patch_size
        patch = normal[:, top : top + c.patch_size, left : left + c.patch_size].flatten()
        tokens.append(weight @ patch + encoder.patch_embed.proj.bias + table[n])
    x = torch.stack(tokens)[None]
    for block in encoder.blocks:
        x = block(x)
    return F.layer_norm(x[0], (c.width,), eps=1e-6)


@pytest.mark.parametrize("side", [32, 48])
def test_matches_timm(encoder, side):
    c = encoder.config
    grid = (side // c.patch_size, side // c.patch_size)
    reference = VisionTransformer(
        img_size=side, patch_size=c.patch_size, embed_dim=c.width, depth=c.depth, num_heads=c.heads,
        mlp_ratio=c.mlp_ratio, class_token=False, global_pool="", num_classes=0,
    ).eval()  # fmt: skip
    missing, unexpected = reference.load_state_dict(encoder.state_dict(), strict=False)
    assert (set(missing), unexpected) == ({"pos_embed", "norm.weight", "norm.bias"}, [])
    reference.pos_embed.data = positions_by_hand(c.width, grid, c.grid)[None]
    images = torch.rand(2, 3, side, side)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = reference((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    torch.testing.assert_close(encoder(images), expected.detach(), atol=1e-4, rtol=1e-4)


def test_checkpoint_holds_no_tables_or_norms(encoder):
    assert {name.split(".")[0] for name in encoder.state_dict()} == {"patch_embed", "blocks"}


@pytest.mark.parametrize("kept", [5, 1, 16])
def test_dropping_tokens_equals_a_run_over_the_kept(encoder, kept):
    images = torch.rand(3, 3, 32, 32)
    visible = torch.stack([torch.randperm(16)[:kept] for _ in range(3)])
    out = encoder(images, visible)
    expected = [plain_encoding(encoder, i, v.tolist(), (4, 4)) for i, v in zip(images, visible, strict=True)]
    torch.testing.assert_close(out, torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_dropped_patches_cannot_leak(encoder):
    images = torch.rand(2, 3, 32, 32)
    visible = torch.tensor([[0, 1, 5], [3, 2, 4]])
    changed = images.clone()
    changed[:, :, 16:] = torch.rand(2, 3, 16, 32)
    assert torch.equal(encoder(changed, visible), encoder(images, visible))
    assert not torch.allclose(encoder(changed)[:, :8], encoder(images)[:, :8], atol=1e-3)


def test_all_visible_in_order_equals_no_mask(encoder):
    images = torch.rand(2, 3, 32, 32)
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(encoder(images, everything), encoder(images))
    order = torch.randperm(16)
    shuffled = encoder(images, order.expand(2, -1))
    torch.testing.assert_close(shuffled, encoder(images)[:, order], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 24), (8, 8), (8, 64), (64, 56)])
def test_any_size_the_patch_divides(encoder, height, width):
    image = torch.rand(1, 3, height, width)
    grid = (height // 8, width // 8)
    assert encoder.grid_of(image) == grid
    expected = plain_encoding(encoder, image[0], range(grid[0] * grid[1]), grid)
    torch.testing.assert_close(encoder(image)[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("height", "width", "advice"),
    [(33, 32, "32 x 32"), (32, 47, "32 x 40"), (4, 32, "8 x 32"), (0, 8, "8 x 8")],
)
def test_other_sizes_say_what_to_use(encoder, height, width, advice):
    with pytest.raises(InvalidImageError, match=f"{height} x {width} .*patch size 8; try {advice}"):
        encoder(torch.rand(1, 3, height, width))


def test_batch_equals_one_by_one(encoder):
    images = torch.rand(4, 3, 32, 32)
    alone = torch.cat([encoder(image[None]) for image in images])
    torch.testing.assert_close(encoder(images), alone, atol=1e-5, rtol=1e-5)


def test_output_is_layer_normalised(encoder):
    tokens = encoder(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(tokens.mean(dim=-1), torch.zeros(2, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.var(dim=-1, unbiased=False), torch.ones(2, 16), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalize_tokens(tokens), tokens, atol=1e-4, rtol=0)


def test_normalize_tokens_by_hand():
    tokens = torch.randn(2, 5, 12) * 3 + 1
    expected = torch.empty_like(tokens)
    for b in range(2):
        for n in range(5):
            x = tokens[b, n]
            expected[b, n] = (x - x.mean()) / (x.var(unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(normalize_tokens(tokens), expected, atol=1e-6, rtol=1e-5)


def test_gradients_reach_every_parameter(encoder):
    encoder.requires_grad_(True)
    (encoder(torch.rand(2, 3, 32, 32)) * torch.randn(2, 16, 48)).sum().backward()
    assert [n for n, p in encoder.named_parameters() if not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize(("width", "grid", "train_grid"), [(48, (4, 4), 4), (8, (3, 5), 4), (64, (7, 2), 14), (4, (1, 1), 1)])  # fmt: skip
def test_position_table_by_hand(width, grid, train_grid):
    table = sincos_positions(width, grid, train_grid, torch.empty(0))
    assert table.dtype == torch.float32
    torch.testing.assert_close(table, positions_by_hand(width, grid, train_grid), atol=1e-6, rtol=0)


def coordinates(table, width):
    """Rows and columns read back from the angle of the first frequency, 1."""
    return [torch.atan2(table[:, o].double(), table[:, o + width // 4].double()) for o in (0, width // 2)]


@pytest.mark.parametrize("grid", [(3, 3), (2, 6), (9, 3), (12, 12), (1, 1)])
def test_rescaled_positions_span_the_training_range(grid):
    rows, columns = coordinates(sincos_positions(16, grid, 3, torch.empty(0)), 16)
    for axis, n in ((rows, grid[0]), (columns, grid[1])):
        patch = 3 / n
        assert axis.min().item() - patch / 2 == pytest.approx(-0.5, abs=1e-5)
        assert axis.max().item() + patch / 2 == pytest.approx(2.5, abs=1e-5)
    assert torch.equal(rows.view(grid)[:, :1].expand(grid), rows.view(grid))
    assert torch.equal(columns.view(grid)[:1].expand(grid), columns.view(grid))


def test_take_tokens_by_loop():
    tokens = torch.randn(3, 7, 4)
    indices = torch.tensor([[6, 0], [2, 2], [1, 5]])
    expected = torch.stack(
        [torch.stack([tokens[b, n] for n in row]) for b, row in enumerate(indices.tolist())]
    )
    assert torch.equal(take_tokens(tokens, indices), expected)


@pytest.fixture
def learned(tiny_config):
    """An encoder whose positions are weights."""
    config = tiny_config()
    model = Encoder(dataclasses.replace(config.encoder, positions="learned"), config.preprocess).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return model.requires_grad_(False)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 48), (16, 40), (8, 8)])
def test_learned_positions_are_resampled_to_any_grid_as_timm_does(learned, height, width):
    grid = [height // 8, width // 8]
    table = resample_abs_pos_embed(learned.position_table[None], grid, [4, 4], num_prefix_tokens=0)
    images = torch.rand(2, 3, height, width)
    x = learned.patch_embed((images - learned.mean) / learned.std) + table
    for block in learned.blocks:
        x = block(x)
    torch.testing.assert_close(learned(images), F.layer_norm(x, (48,), eps=1e-6), atol=1e-5, rtol=1e-5)
    if grid == [4, 4]:
        assert torch.equal(table[0], learned.position_table)


def test_learned_positions_follow_the_visible_patches(learned):
    images = torch.rand(2, 3, 32, 32)
    order = torch.randperm(16)
    shuffled = learned(images, order.expand(2, -1))
    torch.testing.assert_close(shuffled, learned(images)[:, order], atol=1e-4, rtol=1e-4)


def test_learned_positions_are_a_weight_like_any_other(learned, encoder):
    assert learned.state_dict().keys() == encoder.state_dict().keys() | {"position_table"}
    assert learned.position_table.shape == (16, 48)
    learned.requires_grad_(True)
    (learned(torch.rand(2, 3, 32, 32)) * torch.randn(2, 16, 48)).sum().backward()
    assert (learned.position_table.grad.abs().sum(dim=1) > 0).all()
    before = (
        learned(torch.rand(1, 3, 32, 32)).dtype,
        learned.to(torch.float64)(torch.rand(1, 3, 48, 32)).dtype,
    )
    assert before == (torch.float32, torch.float64)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("size", [(32, 32), (48, 16)])
def test_features_are_the_tokens_after_the_last_blocks(encoder, count, size):
    images = torch.rand(2, 3, *size)
    seen = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda _, args, out: seen.append(out))
    found = encoder.features(images, count)
    expected = ([seen[0]] * 4 + seen[1:])[-count:]
    assert len(found) == count
    assert all(torch.equal(a, b) for a, b in zip(found[:-1], expected[:-1], strict=True))
    assert torch.equal(found[-1], normalize_tokens(expected[-1]))
    assert torch.equal(found[-1], encoder(images))


def test_drop_path_rises_linearly(encoder):
    blocks = [*encoder.blocks, *encoder.blocks]
    names = list(encoder.state_dict())
    set_drop_path(encoder.blocks, 0.2)
    kept = [float(getattr(block.drop_path1, "kept", 1.0)) for block in encoder.blocks]
    assert kept == pytest.approx([1.0, 0.8])
    assert list(encoder.state_dict()) == names
    set_drop_path(blocks[:1], 0.2)  # A single block has nothing to rise from.
    assert not hasattr(blocks[0].drop_path1, "kept")
    images = torch.rand(2, 3, 32, 32)
    out = encoder(images)
    set_drop_path(encoder.blocks, 0.9)
    assert torch.equal(encoder(images), out)
    assert not torch.equal(encoder.train()(images), out)
