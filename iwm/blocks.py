"""Blocks of the world model, and two ways through them.

Together, every token attends to every other. Apart (ours), source tokens attend to each other alone and
are told nothing of the action, so that what they compute serves all actions on one photograph; the
tokens that ask attend to both.

Shape legend: S 1 or B, B batch, V source tokens, T tokens that ask, P predictor width.
"""

from collections import deque
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from iwm.encoder import NORM_EPS

Modulation = tuple[Tensor, ...]
"""Scale, shift and gate of a block's first branch, then of its second; `()` where nothing is modulated."""


class PredictorBlock(nn.Module):
    """A pre-norm transformer block, whose two branches a condition may scale, shift and gate (`adaln`).

    Args:
        width: P.
        heads: of the attention.
        mlp_ratio: hidden width of the MLP over `width`.
        conditioned: by a condition; its norms then have no weights of their own. With zero
            modulation weights it is a plain block.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, *, conditioned: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=not conditioned)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=not conditioned)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.modulation = nn.Linear(width, 6 * width) if conditioned else None
        self.drop_path1: nn.Module = nn.Identity()
        self.drop_path2: nn.Module = nn.Identity()

    def forward(
        self,
        x_BTP: Tensor,
        condition_BP: Tensor | None = None,
        source_SVP: Tensor | None = None,
        last: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens after the block; with a source apart, those that ask and the source's.

        Args:
            x_BTP: the tokens, or those that ask.
            condition_BP: one per sample, where the block is conditioned. Source tokens get one of
                zeros.
            source_SVP: source tokens, for all samples or one each. Drop path is drawn for them
                and for those that ask.
            last: nobody reads the source's tokens afterwards; they are returned as they came.
        """
        modulation = self._modulation(condition_BP)
        if source_SVP is None:
            return self._finish(x_BTP, self.attn(self._read(x_BTP, modulation)), modulation)
        unconditioned = self._modulation(None)
        query_B, key_B, value_B = _split(self.attn, self._read(x_BTP, modulation))
        query_S, key_S, value_S = _split(self.attn, self._read(source_SVP, unconditioned))
        mixed_BTP = _attend(self.attn, query_B, _behind(key_S, key_B), _behind(value_S, value_B))
        if not last:
            mixed_SVP = _attend(self.attn, query_S, key_S, value_S)
            source_SVP = self._finish(source_SVP, mixed_SVP, unconditioned)
        return self._finish(x_BTP, mixed_BTP, modulation), source_SVP

    def _modulation(self, condition_BP: Tensor | None) -> Modulation:
        """Six tensors `[B, 1, P]`; of no condition, which is one of zeros, `[1, 1, P]`."""
        if self.modulation is None:
            return ()
        moved = self.modulation.bias[None] if condition_BP is None else self.modulation(condition_BP)
        return tuple(moved.unsqueeze(1).chunk(6, dim=-1))

    def _read(self, x_BTP: Tensor, modulation: Modulation) -> Tensor:
        """What the attention reads."""
        normed: Tensor = self.norm1(x_BTP)
        if not modulation:
            return normed
        scale, shift, *_ = modulation
        return torch.addcmul(shift, normed, 1 + scale)

    def _finish(self, x_BTP: Tensor, mixed_BTP: Tensor, modulation: Modulation) -> Tensor:
        """The block's output, given what its attention made of its input."""
        if modulation:
            _, _, gate1, scale2, shift2, gate2 = modulation
            x_BTP = x_BTP + self.drop_path1((1 + gate1) * mixed_BTP)
            moved = (1 + gate2) * self.mlp(torch.addcmul(shift2, self.norm2(x_BTP), 1 + scale2))
        else:
            x_BTP = x_BTP + self.drop_path1(mixed_BTP)
            moved = self.mlp(self.norm2(x_BTP))
        out: Tensor = x_BTP + self.drop_path2(moved)
        return out


def run_apart(
    blocks: Iterable[nn.Module],
    source_SVP: Tensor,
    x_BTP: Tensor,
    condition_BP: Tensor | None = None,
    count: int = 1,
) -> list[Tensor]:
    """The asking tokens after each of the last `count` blocks, as `run_blocks`, with source tokens apart."""
    outputs: deque[Tensor] = deque(maxlen=count)
    chain = list(blocks)
    for number, block in enumerate(chain, start=1):
        x_BTP, source_SVP = block(x_BTP, condition_BP, source_SVP, number == len(chain))
        outputs.append(x_BTP)
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
