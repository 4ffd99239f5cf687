"""The image encoder f_theta: a Vision Transformer over patches [arXiv 2403.00504, section 3.1].

Blocks and patch embedding are timm's. There is no class token, positions are fixed 2-D
sin-cos, and the final norm has no affine parameters, so that encodings, training targets and
predictions share one space: tokens layer-normalised over features (eps 1e-6).

Shape legend: B batch, N patches of the grid (H x W), V visible patches, D width.
"""

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from iwm.config import EncoderConfig, PreprocessConfig
from iwm.errors import InvalidImageError

NORM_EPS = 1e-6


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
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio, qkv_bias=True) for _ in range(config.depth)
        )
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """Encode a batch.

        Args:
            images: `[B, 3, H, W]` floats in [0, 1], H and W divisible by the patch size.
            visible: `[B, V]` indices of the patches to keep; the others are dropped before
                the first block, as for the masked source of pretraining. None keeps all.

        Returns:
            Tokens `[B, N, D]`, or `[B, V, D]` in the order of `visible`.
        """
        grid = self.grid_of(images)
        x_BND = self.patch_embed((images - self.mean) / self.std)
        x_BND = x_BND + sincos_positions(self.config.width, grid, self.config.grid, x_BND.device)
        if visible is not None:
            x_BND = take_tokens(x_BND, visible)
        for block in self.blocks:
            x_BND = block(x_BND)
        return normalize_tokens(x_BND)

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


def normalize_tokens(tokens: Tensor) -> Tensor:
    """Layer norm over features without affine parameters: the library's one latent space."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=NORM_EPS)


def take_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Tokens `[B, V, D]` of `[B, N, D]` at `indices` `[B, V]`."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


_positions: dict[tuple[int, tuple[int, int], int, torch.device], Tensor] = {}


def sincos_positions(
    width: int, grid: tuple[int, int], train_grid: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Fixed 2-D sin-cos positions `[H * W, width]`, row-major.

    The first half of the features encodes the row, the second the column, each as the sines
    and then the cosines of the coordinate at geometrically spaced frequencies down to 1/10000.
    For a grid other than the training grid, coordinates are stretched so that the patches
    still span the range seen in training.

    Args:
        width: features, divisible by 4.
        grid: patches along height and width.
        train_grid: patches along one side of a training image.
        device: where the result is needed; results are kept, they are small and few.
    """
    key = (width, grid, train_grid, torch.device(device))
    if key not in _positions:
        rows, columns = (
            (torch.arange(n, dtype=torch.float64) + 0.5) * (train_grid / n) - 0.5 for n in grid
        )
        frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
        by_axis = [torch.outer(axis, frequencies) for axis in (rows, columns)]
        row_DH, column_DW = (torch.cat((a.sin(), a.cos()), dim=1) for a in by_axis)
        height, wide = grid
        table = torch.cat(
            (row_DH[:, None].expand(-1, wide, -1), column_DW[None].expand(height, -1, -1)), dim=-1
        )
        _positions[key] = table.flatten(0, 1).float().to(device)
    return _positions[key]
