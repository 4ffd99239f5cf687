"""The image encoder f_theta: a Vision Transformer over patches [arXiv 2403.00504, section 3.1].

Blocks and patch embedding are timm's. There is no class token, positions are fixed 2-D
sin-cos (or learned, in encoders that others trained), and the final norm has no affine
parameters, so that encodings, training targets and predictions share one space: tokens
layer-normalised over features (eps 1e-6).

On a GPU PyTorch convolves in TF32 by default: the patch embedding rounds to ten bits there, and a
latent is not quite the CPU's. `torch.backends.cudnn.allow_tf32 = False` makes it so.

Shape legend: B batch, N patches of the grid (H x W), V visible patches, D width.
"""

import functools
from collections import deque
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from iwm.config import EncoderConfig, PreprocessConfig
from iwm.errors import InvalidImageError

NORM_EPS = 1e-6

BlockNorm = functools.partial(nn.LayerNorm, eps=NORM_EPS)
"""Norm of every block; said here because timm's default has changed between versions."""


class Encoder(nn.Module):
    """Images in [0, 1] to normalised patch tokens.

    Args:
        config: sizes.
        preprocess: supplies the channel means and deviations for normalising pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig, preprocess: PreprocessConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(
            img_size=None, patch_size=config.patch_size, embed_dim=config.width, strict_img_size=False
        )
        self.position_table = (
            nn.Parameter(torch.zeros(config.grid**2, config.width)) if config.positions == "learned" else None
        )
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio, qkv_bias=True, norm_layer=BlockNorm)  # type: ignore[arg-type]
            for _ in range(config.depth)
        )
        self.register_buffer("mean", _channels(preprocess.mean), persistent=False)
        self.register_buffer("std", _channels(preprocess.std), persistent=False)

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """Encode a batch.

        Args:
            images: `[B, 3, H, W]` floats in [0, 1], H and W divisible by the patch size.
            visible: `[B, V]` indices of the patches to keep; the others are dropped before
                the first block, as for the masked source of pretraining. None keeps all.

        Returns:
            Tokens `[B, N, D]`, or `[B, V, D]` in the order of `visible`.
        """
        return normalize_tokens(self._run(images, visible)[-1])

    def features(self, images: Tensor, count: int = 4) -> list[Tensor]:
        """Tokens after each of the last blocks, for dense heads [App. A.2].

        Args:
            images: as for `forward`.
            count: of blocks; where there are fewer, the first one's tokens stand for the missing.

        Returns:
            `count` times `[B, N, D]`; the last are `forward`'s, the others are not normalised.
        """
        *earlier, last = self._run(images, None, count)
        return [*earlier, normalize_tokens(last)]

    def _run(self, images: Tensor, visible: Tensor | None, count: int = 1) -> list[Tensor]:
        grid = self.grid_of(images)
        weight = self.patch_embed.proj.weight
        x_BND = self.patch_embed((images.to(weight.dtype) - self.mean) / self.std)
        # In the weights' dtype, so that under autocast the residual stream stays float32.
        x_BND = x_BND + self._positions(grid, weight)
        if visible is not None:
            x_BND = take_tokens(x_BND, visible)
        return run_blocks(self.blocks, x_BND, count=count)

    def _positions(self, grid: tuple[int, int], like: Tensor) -> Tensor:
        """`[N, D]`; learned ones are resampled bicubically for another grid."""
        side = self.config.grid
        if self.position_table is None:
            return sincos_positions(self.config.width, grid, side, like)
        if grid == (side, side):
            return self.position_table
        table = self.position_table[None]
        resampled: Tensor = resample_abs_pos_embed(table, list(grid), [side, side], num_prefix_tokens=0)
        return resampled[0]

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Patches along height and width.

        Raises:
            InvalidImageError: a side that the patch size does not divide.
        """
        patch = self.config.patch_size
        height, width = images.shape[-2:]
        if height % patch or width % patch or not height or not width:
            raise InvalidImageError(
                f"Image size {height} x {width} is not divisible by the patch size {patch}; "
                f"try {max(height // patch, 1) * patch} x {max(width // patch, 1) * patch}."
            )
        return height // patch, width // patch


def _channels(values: tuple[float, float, float]) -> Tensor:
    # On the CPU even where the model is built on the meta device: no file supplies these.
    return torch.tensor(values, device="cpu").view(1, 3, 1, 1)


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, *condition: Tensor, count: int = 1) -> list[Tensor]:
    """Tokens after each of the last `count` blocks; the first block's again where there are fewer."""
    outputs: deque[Tensor] = deque(maxlen=count)
    for block in blocks:
        x = block(x, *condition)
        outputs.append(x)
    return [outputs[0]] * (count - len(outputs)) + list(outputs)


class DropPath(nn.Module):
    """Stochastic depth: in training some samples' branches are dropped, and the others scaled up.

    The share that is kept is a tensor, unlike in timm's module: of a number `torch.compile` would
    make a graph for every block, and give up after eight.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.kept: Tensor
        self.register_buffer("kept", torch.tensor(1.0 - rate), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The output of a branch `[B, ...]`, zero for the samples that are drawn."""
        if not self.training:
            return x
        draw = torch.rand([len(x)] + [1] * (x.ndim - 1), device=x.device)
        scale = (draw < self.kept) / self.kept.clamp(min=1e-6)
        return x * scale.to(x.dtype)


def set_drop_path(blocks: Iterable[nn.Module], rate: float) -> None:
    """Set stochastic depth for training: from 0 at the first block, linearly, to `rate` at the last."""
    blocks = list(blocks)
    for number, block in enumerate(blocks):
        share = rate * number / max(len(blocks) - 1, 1)
        for name in ("drop_path1", "drop_path2"):
            path = DropPath(share).to(next(block.parameters()).device) if share else nn.Identity()
            setattr(block, name, path.train(block.training))


def init_weights(module: nn.Module) -> None:
    """Truncated normal of deviation 0.02 for weights and tokens, zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for name, parameter in module.named_parameters():
        if name.endswith("_token"):
            nn.init.trunc_normal_(parameter, std=0.02)


def normalize_tokens(tokens: Tensor) -> Tensor:
    """Layer norm over features without affine parameters: the library's one latent space."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=NORM_EPS)


def take_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Tokens `[B, V, D]` of `[B, N, D]` at `indices` `[B, V]`."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def sincos_positions(width: int, grid: tuple[int, int], train_grid: int, like: Tensor) -> Tensor:
    """Fixed 2-D sin-cos positions `[H * W, width]`, row-major.

    The first half of the features encodes the row, the second the column, each as the sines
    and then the cosines of the coordinate at geometrically spaced frequencies down to 1/10000.
    For a grid other than the training grid, coordinates are stretched so that the patches
    still span the range seen in training.

    Args:
        width: features, divisible by 4.
        grid: patches along height and width.
        train_grid: patches along one side of a training image.
        like: a tensor of the device and dtype to return.
    """
    table = torch.from_numpy(_position_table(width, grid, train_grid))
    return table.to(like.device, like.dtype, non_blocking=like.is_cuda)


@functools.lru_cache(maxsize=64)
def _position_table(
    width: int, grid: tuple[int, int], train_grid: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """In NumPy: a kept tensor would leak from under a tracer or a device context."""
    frequencies = 10000.0 ** -(np.arange(width // 4) / (width // 4))
    by_axis = []
    for count in grid:
        coordinates = (np.arange(count) + 0.5) * (train_grid / count) - 0.5
        angles = np.outer(coordinates, frequencies)
        by_axis.append(np.concatenate((np.sin(angles), np.cos(angles)), axis=1))
    rows, columns = by_axis
    height, wide = grid
    table = np.concatenate((rows.repeat(wide, axis=0), np.tile(columns, (height, 1))), axis=1)
    return table.astype(np.float32)
