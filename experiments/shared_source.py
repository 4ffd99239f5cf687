r"""A predictor whose source tokens attend to themselves alone, so that K actions share them.

    python experiments/shared_source.py pretrain --recipe iwm-tiny --data FOLDER --out RUN \
        --model.predictor.layout append --model.predictor.conditioning adaln
    python experiments/shared_source.py eval mrr --model RUN --data FOLDER --protocol apply

Everything after the script's name is an `iwm` command, run with that predictor instead of the library's
own. In the `append` layout source tokens attend to source tokens, mask tokens to all; with `adaln`
the action moves the mask tokens alone (source tokens get the modulation of a condition of zeros).
So all activations of source tokens are a function of the source, and their keys and values could
be computed once for all actions. This script shows what that costs in MRR; it computes them each
time. Models that it trains are of no use to the library, whose attention is another. It needs a timm
whose blocks take an `attn_mask`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

import iwm.stored
from iwm.cli.main import main
from iwm.errors import InvalidConfigError
from iwm.predictor import AdaLNBlock, Predictor


class SharedSourcePredictor(Predictor):
    """`append`, with source tokens that know nothing of the action."""

    def _sequence(self, *arguments, **named) -> tuple[Tensor, slice]:  # type: ignore[no-untyped-def]
        if self.config.layout != "append" or self.config.conditioning == "sequence":
            raise InvalidConfigError(
                "Only the append layout with feature or adaln has source tokens to share: --model.predictor.layout append"
            )
        x, read = super()._sequence(*arguments, **named)
        self._sources = read.start
        return x, read

    def _run(self, x: Tensor, action_BA: Tensor, extra: Tensor | None = None, count: int = 1) -> list[Tensor]:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
        mask[: self._sources, self._sources :] = False
        condition = None
        if self.embed_action is not None:
            condition = self.embed_action(action_BA).unsqueeze(1).repeat(1, x.shape[1], 1)
            condition[:, : self._sources] = 0
        for block in self.blocks:
            if condition is None:
                x = block(x, attn_mask=mask)
            else:
                x = modulated(cast(AdaLNBlock, block), x, condition, mask)
        return [x]


def modulated(block: AdaLNBlock, x_BTP: Tensor, condition_BTP: Tensor, mask_TT: Tensor) -> Tensor:
    """`AdaLNBlock` with a condition for each token and a mask (True: may be attended to)."""
    scale1, shift1, gate1, scale2, shift2, gate2 = block.modulation(condition_BTP).chunk(6, dim=-1)
    attended = block.attn(torch.addcmul(shift1, block.norm1(x_BTP), 1 + scale1), attn_mask=mask_TT)
    x_BTP = x_BTP + (1 + gate1) * attended
    out: Tensor = x_BTP + (1 + gate2) * block.mlp(torch.addcmul(shift2, block.norm2(x_BTP), 1 + scale2))
    return out


if __name__ == "__main__":
    iwm.stored.Predictor = SharedSourcePredictor  # type: ignore[attr-defined]
    main()
