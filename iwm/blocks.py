"""Blocks of the world model, and two ways through them.

Together every token attends to every other. Apart [ours], source tokens attend to each other alone and
are told nothing of the action, so that whatever they compute serves any number of actions; the
tokens that ask attend to both.

Shape legend: S 1 or B, B batch, V source tokens, T tokens that ask, P predictor width.
"""

from collections import deque
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from iwm.encoder import NORM_EPS, BlockNorm

Modulation = tuple[Tensor, ...]
"""Scale, shift and gate of a block's first branch, then of its second; `()` for a plain block."""


class _Apart:
    """What both kinds of block do with source tokens that are kept apart."""

    attn: Attention

    def modulated(self, condition_BP: Tensor | None) -> Modulation:
        """By a condition; None is one of zeros."""
        raise NotImplementedError

    def attended_to(self, x_BTP: Tensor, modulation: Modulation) -> Tensor:
        """What the attention reads."""
        raise NotImplementedError

    def finish(self, x_BTP: Tensor, attended_BTP: Tensor, modulation: Modulation) -> Tensor:
        """The block's output, given what its attention made of its input."""
        raise NotImplementedError

    def apart(
        self, asking_BTP: Tensor, source_SVP: Tensor, condition_BP: Tensor | None, last: bool
    ) -> tuple[Tensor, Tensor]:
        """Both after the block; after the last one nobody reads the source's, which stay as they were."""
        told, untold = self.modulated(condition_BP), self.modulated(None)
        query_B, *asking = _split(self.attn, self.attended_to(asking_BTP, told))
        query_S, *source = _split(self.attn, self.attended_to(source_SVP, untold))
        both = [_behind(one, other) for one, other in zip(source, asking, strict=True)]
        asking_BTP = self.finish(asking_BTP, _attend(self.attn, query_B, *both), told)
        if not last:
            source_SVP = self.finish(source_SVP, _attend(self.attn, query_S, *source), untold)
        return asking_BTP, source_SVP


class PlainBlock(_Apart, Block):  # type: ignore[misc]
    """A pre-norm transformer block, timm's."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__(width, heads, mlp_ratio, qkv_bias=True, norm_layer=BlockNorm)  # type: ignore[arg-type]

    def modulated(self, condition_BP: Tensor | None) -> Modulation:
        """Not at all."""
        return ()

    def attended_to(self, x_BTP: Tensor, modulation: Modulation) -> Tensor:
        """What the attention reads."""
        out: Tensor = self.norm1(x_BTP)
        return out

    def finish(self, x_BTP: Tensor, attended_BTP: Tensor, modulation: Modulation) -> Tensor:
        """The block's output, given what its attention made of its input."""
        x_BTP = x_BTP + self.drop_path1(attended_BTP)
        out: Tensor = x_BTP + self.drop_path2(self.mlp(self.norm2(x_BTP)))
        return out


class AdaLNBlock(_Apart, nn.Module):
    """A transformer block whose two branches are scaled, shifted and gated by a condition.

    With zero modulation weights it is a plain pre-norm block.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.modulation = nn.Linear(width, 6 * width)
        self.drop_path1: nn.Module = nn.Identity()
        self.drop_path2: nn.Module = nn.Identity()

    def forward(self, x_BTP: Tensor, condition_BP: Tensor) -> Tensor:
        """`x` `[B, T, P]`, one condition `[B, P]` per sample."""
        modulation = self.modulated(condition_BP)
        return self.finish(x_BTP, self.attn(self.attended_to(x_BTP, modulation)), modulation)

    def modulated(self, condition_BP: Tensor | None) -> Modulation:
        """Six tensors `[B, 1, P]`, of no condition `[1, 1, P]`."""
        bias = self.modulation.bias[None]
        modulation = bias if condition_BP is None else self.modulation(condition_BP)
        return tuple(modulation.unsqueeze(1).chunk(6, dim=-1))

    def attended_to(self, x_BTP: Tensor, modulation: Modulation) -> Tensor:
        """What the attention reads."""
        scale, shift, *_ = modulation
        return torch.addcmul(shift, self.norm1(x_BTP), 1 + scale)

    def finish(self, x_BTP: Tensor, attended_BTP: Tensor, modulation: Modulation) -> Tensor:
        """The block's output, given what its attention made of its input."""
        _, _, gate1, scale2, shift2, gate2 = modulation
        x_BTP = x_BTP + self.drop_path1((1 + gate1) * attended_BTP)
        moved = (1 + gate2) * self.mlp(torch.addcmul(shift2, self.norm2(x_BTP), 1 + scale2))
        out: Tensor = x_BTP + self.drop_path2(moved)
        return out


def run_apart(
    blocks: Iterable[nn.Module],
    source_SVP: Tensor,
    asking_BTP: Tensor,
    condition_BP: Tensor | None = None,
    count: int = 1,
) -> list[Tensor]:
    """The asking tokens after each of the last blocks, where source tokens see each other alone.

    Args:
        blocks: `PlainBlock` or `AdaLNBlock`.
        source_SVP: one source for all, or one each.
        asking_BTP: tokens that attend to the source's and to each other.
        condition_BP: of the action; None for plain blocks.
        count: of blocks, as for `run_blocks`.
    """
    outputs: deque[Tensor] = deque(maxlen=count)
    parts = list(blocks)
    for number, block in enumerate(parts, start=1):
        asking_BTP, source_SVP = cast(_Apart, block).apart(
            asking_BTP, source_SVP, condition_BP, number == len(parts)
        )
        outputs.append(asking_BTP)
    return [outputs[0]] * (count - len(outputs)) + list(outputs)


def _split(attention: Attention, x: Tensor) -> Tensor:
    """Queries, keys and values, each `[B, heads, T, P / heads]`."""
    qkv: Tensor = attention.qkv(x)
    return qkv.view(*x.shape[:2], 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)


def _behind(source: Tensor, asking: Tensor) -> Tensor:
    """Keys, or values, of both: those of the source first, which may be one for all."""
    if source.shape[0] != asking.shape[0]:
        source = source.expand(asking.shape[0], -1, -1, -1)
    return torch.cat((source, asking), dim=2)


def _attend(attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What timm's attention does once it has them, `[B, T, P]`."""
    if attention.fused_attn:
        mixed = F.scaled_dot_product_attention(query, key, value)
    else:
        mixed = (query * attention.scale @ key.transpose(-2, -1)).softmax(dim=-1) @ value
    out: Tensor = attention.proj(mixed.transpose(1, 2).flatten(2))
    return out
