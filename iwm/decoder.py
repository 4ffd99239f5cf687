"""A window into the latents: from patch tokens back to pixels.

The paper has none. The decoder is trained on the frozen teacher's encodings of real views alone,
never on predictions, so that what it shows of a prediction is what the world model put there and
not what a decoder has learned to expect. It sees one latent space and refuses others.

Shape legend: B batch, N patches of the grid (H x W), D encoder width, C decoder width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from iwm.checkpoint import load_weights
from iwm.config import DecoderConfig, WorldModelConfig
from iwm.counting import decoder_channels, decoder_factors
from iwm.encoder import NORM_EPS, BlockNorm, init_weights, sincos_positions
from iwm.errors import IncompatibleWeightsError, WeightsUnavailableError
from iwm.model_folder import DECODER_FILE

if TYPE_CHECKING:
    from iwm.stored import StoredModel


class Decoder(nn.Module):
    """Transformer blocks over the tokens, then convolutions that double the grid up to pixels.

    Args:
        config: sizes of the decoder.
        model: config of the model whose latents it reads.
    """

    def __init__(self, config: DecoderConfig, model: WorldModelConfig) -> None:
        super().__init__()
        self.config = config
        self.train_grid = model.encoder.grid
        width = config.width
        self.project_in = nn.Linear(model.encoder.width, width)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, qkv_bias=True, norm_layer=BlockNorm)  # type: ignore[arg-type]
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        factors = decoder_factors(model.encoder.patch_size)
        channels = decoder_channels(width, len(factors))
        self.stages = nn.ModuleList(
            _Upsample(before, after, factor)
            for before, after, factor in zip(channels[:-1], channels[1:], factors, strict=True)
        )
        self.to_pixels = nn.Conv2d(channels[-1], 3, 3, padding=1)
        init_weights(self)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pixels, not yet clipped.

        Args:
            tokens: `[B, N, D]`, layer-normalised, as the encoder gives them.
            grid: patches along height and width; N is their product.

        Returns:
            `[B, 3, H * patch, W * patch]`, about in [0, 1].
        """
        weight = self.project_in.weight
        x_BNC = self.project_in(tokens) + sincos_positions(self.config.width, grid, self.train_grid, weight)
        for block in self.blocks:
            x_BNC = block(x_BNC)
        x: Tensor = self.norm(x_BNC).transpose(1, 2).unflatten(2, grid)
        for stage in self.stages:
            x = stage(x)
        pixels: Tensor = self.to_pixels(F.gelu(x))
        return pixels + 0.5


class _Upsample(nn.Module):
    """One convolution to a finer grid, and one on it."""

    def __init__(self, before: int, after: int, factor: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(before, after * factor**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(factor)
        self.refine = nn.Conv2d(after, after, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, before, h, w]` to `[B, after, factor * h, factor * w]`."""
        x = self.shuffle(self.spread(x))
        refined: Tensor = self.refine(F.gelu(x))
        return x + refined


def check_decoder(config: DecoderConfig, model: StoredModel) -> None:
    """Raise `IncompatibleWeightsError` unless a decoder was trained on this model's latents."""
    if config.space != model.space:
        raise IncompatibleWeightsError(
            f"The decoder was trained on another encoder (space {config.space}, this model's is "
            f"{model.space}). Take both from one checkpoint and branch, or train it again: `iwm pretrain-decoder`."
        )


def read_decoder(model: StoredModel) -> Decoder:
    """The decoder of a model, from where the model came from.

    Raises:
        WeightsUnavailableError: the model has none, came from no folder, or the file cannot be had.
        IntegrityError: the file is not what was published.
        IncompatibleWeightsError: it belongs to another encoder, or does not fit its config.
    """
    described = model.config.decoder
    if described is None:
        raise WeightsUnavailableError(
            f'"{model.config.name}" has no decoder. Train one: `iwm pretrain-decoder --model FOLDER --data IMAGES '
            "--out DIR`."
        )
    if model.source is None:
        raise WeightsUnavailableError(
            "The decoder is described and not loaded, and the model came from no folder. Load it with iwm.load."
        )
    check_decoder(described, model)
    model.source.have([DECODER_FILE])
    with torch.device("meta"):
        decoder = Decoder(described, model.config)
    load_weights(model.source.folder / DECODER_FILE, decoder)
    return decoder
