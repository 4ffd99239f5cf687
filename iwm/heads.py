"""Heads: from tokens to class scores [arXiv 2403.00504, App. A.2].

`LinearHead` pools and maps. `AttentiveHead` is the one of Chen et al. (2023, CAE): a learned query
gathers the tokens by cross-attention. `UperNetHead` (Xiao et al. 2018) segments: four maps of one
plain ViT are brought to four scales, as BEiT did, then pooled in a pyramid and merged top down.

Shape legend: B batch, N tokens of the grid (H x W), D width of the tokens, K classes, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iwm.config import TaskConfig
from iwm.counting import upernet_channels
from iwm.encoder import NORM_EPS, BlockNorm

POOL_SCALES = (1, 2, 3, 6)
"""Sides of the maps that the pyramid pools to."""


class LinearHead(nn.Module):
    """Mean over the tokens, batch norm without affine parameters if asked for, one linear layer."""

    def __init__(self, width: int, classes: int, batch_norm: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=NORM_EPS, affine=False) if batch_norm else nn.Identity()
        self.classify = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, N, D]` to `[B, K]`."""
        out: Tensor = self.classify(self.norm(tokens.mean(dim=1)))
        return out


class AttentiveHead(nn.Module):
    """One learned query attends to all tokens; a linear layer classifies what it gathers.

    The query is normalised and not projected: a projection of what is learned learns nothing more.
    """

    def __init__(self, width: int, heads: int, classes: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_token = nn.Parameter(torch.zeros(width))
        self.norm = BlockNorm(width)
        self.keys_values = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        self.classify = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, N, D]` to `[B, K]`."""
        batch, count, width = tokens.shape
        query = F.layer_norm(self.query_token, (width,), eps=NORM_EPS)
        pairs = self.keys_values(self.norm(tokens)).view(batch, count, 2, self.heads, width // self.heads)
        keys, values = pairs.permute(2, 0, 3, 1, 4)  # Each [B, heads, N, D / heads].
        asked = query.to(keys.dtype).view(1, self.heads, 1, -1).expand(batch, -1, -1, -1)
        gathered = F.scaled_dot_product_attention(asked, keys, values).reshape(batch, width)
        out: Tensor = self.classify(self.project(gathered))
        return out


class UperNetHead(nn.Module):
    """Pyramid pooling and a feature pyramid over the tokens of four blocks."""

    def __init__(self, width: int, channels: int, classes: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            (
                nn.Sequential(_double(width), nn.BatchNorm2d(width), nn.GELU(), _double(width)),
                _double(width),
                nn.Identity(),
                nn.MaxPool2d(2),
            )
        )
        self.pooled = nn.ModuleList(_conv(width, channels, 1) for _ in POOL_SCALES)
        self.bottleneck = _conv(width + len(POOL_SCALES) * channels, channels, 3)
        self.lateral = nn.ModuleList(_conv(width, channels, 1) for _ in range(3))
        self.smooth = nn.ModuleList(_conv(channels, channels, 3) for _ in range(3))
        self.merge = _conv(4 * channels, channels, 3)
        self.classify = nn.Conv2d(channels, classes, 1)

    def forward(self, features: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Four times `[B, N, D]`, earliest block first, to `[B, K, 4 H, 4 W]`; H and W at least 2."""
        maps = [
            scale(tokens.transpose(1, 2).reshape(*tokens.shape[::2], *grid))
            for scale, tokens in zip(self.scales, features, strict=True)
        ]
        top = maps.pop()
        pooled = [
            _resize(conv(F.adaptive_avg_pool2d(top, side)), top)
            for side, conv in zip(POOL_SCALES, self.pooled, strict=True)
        ]
        levels = [conv(level) for conv, level in zip(self.lateral, maps, strict=True)]
        levels.append(self.bottleneck(torch.cat((top, *pooled), dim=1)))
        for i in (2, 1, 0):
            levels[i] = levels[i] + _resize(levels[i + 1], levels[i])
        levels[:3] = [conv(level) for conv, level in zip(self.smooth, levels, strict=False)]
        out: Tensor = self.classify(self.merge(torch.cat([_resize(v, levels[0]) for v in levels], dim=1)))
        return out


def make_head(task: TaskConfig, width: int, heads: int) -> nn.Module:
    """The head of a task.

    Args:
        task: says which, and for how many classes.
        width: of the tokens it reads.
        heads: of its attention, where it has any; those of the encoder.
    """
    classes = len(task.labels)
    if task.head == "upernet":
        return UperNetHead(width, upernet_channels(task, width), classes)
    if task.head == "attentive":
        return AttentiveHead(width, heads, classes)
    return LinearHead(width, classes, task.batch_norm)


def _double(width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)


def _conv(width: int, channels: int, side: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, channels, side, padding=side // 2, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    )


def _resize(values: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(values, size=like.shape[2:], mode="bilinear", align_corners=False)
