"""How the transformer blocks of a task are run: attention kernel, compilation, recomputation.

None of it changes a parameter's name or, but for rounding, a result.
"""

from functools import partial

import torch
from timm.models.vision_transformer import Attention, Block
from torch import nn
from torch.utils.checkpoint import checkpoint

from iwm.predictor import AdaLNBlock


def prepare_blocks(module: nn.Module, *, compiled: bool, recomputed: bool, random: bool = False) -> None:
    """Set how every transformer block in a module is run.

    Args:
        module: changed in place.
        compiled: through `torch.compile`, once for all numbers of visible patches.
        recomputed: activation checkpointing: of every block only its input is kept for the
            backward pass, which runs the block again.
        random: blocks draw at random (drop path), and must draw the same when run again.
    """
    for block in module.modules():
        if not isinstance(block, Block | AdaLNBlock):
            continue
        run = block.forward
        if compiled:
            run = torch.compile(run, dynamic=True)
        if recomputed:
            run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=random)
        block.forward = run  # type: ignore[method-assign]


def prefer_plain_attention(module: nn.Module) -> None:
    """On a CPU, attention over a few hundred tokens trains faster as plain matrix products.

    Measured on two cores (AVX-512 bf16) at 64 tokens: 1.4 times the images a second of the
    fused kernel, by `python benchmarks/pretrain_step.py --recipe iwm-tiny --fused`.
    """
    for part in module.modules():
        if isinstance(part, Attention):
            part.fused_attn = False  # type: ignore[misc]
