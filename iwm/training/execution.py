"""How the transformer blocks of a task are run: attention kernel, compilation, recomputation.

None of it changes a parameter's name or, but for rounding, a result.
"""

import logging
import time
from collections.abc import Sequence
from functools import cache, partial

import torch
from timm.models.vision_transformer import Attention, Block
from torch import nn
from torch.utils.checkpoint import checkpoint

from iwm.blocks import PredictorBlock
from iwm.training.config import Precision

log = logging.getLogger(__name__)

_TOO_SLOW = 4.0
"""Times float32: processors with bfloat16 need less than once its time, those that emulate it up to 60 times."""


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which matrix products are computed in a precision, or the one that `precision_on` gives."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision_on(device, precision) == "bf16")


def precision_on(device: torch.device, precision: Precision) -> Precision:
    """What a device computes in where a precision is asked for.

    Processors that only emulate bfloat16 (x86 without AVX-512, for one; GPUs before Ampere) compute in
    float32, which is closer to the exact result and many times faster; that is logged once.
    """
    if precision != "bf16" or device.type not in ("cpu", "cuda"):
        return precision
    emulated = _emulates_bf16() if device.type == "cpu" else _gpu_emulates_bf16()
    return "float32" if emulated else precision


@cache
def _gpu_emulates_bf16() -> bool:
    emulated = not torch.cuda.is_bf16_supported(including_emulation=False)
    if emulated:
        log.warning("This GPU has no bfloat16; float32 is used.")
    return emulated


@cache
def _emulates_bf16() -> bool:
    """Whether bfloat16 is so much slower than float32 on this processor that it must be emulated."""
    exact, half = _seconds_of_products((torch.float32, torch.bfloat16))
    ratio = half / exact
    if ratio > _TOO_SLOW:
        log.warning(
            "This processor needs %.0f times as long for matrix products in bfloat16 as in float32; "
            "float32 is used. --precision float32 says the same and is not measured.",
            ratio,
        )
    return ratio > _TOO_SLOW


def _seconds_of_products(dtypes: Sequence[torch.dtype], side: int = 192) -> list[float]:
    """The shortest of five tries of each, in turn, after one that sets things up.

    On one thread, whose time says most about the processor where other processes are busy.
    """
    matrices = [torch.ones(side, side, dtype=dtype, device="cpu") for dtype in dtypes]
    taken: list[list[float]] = [[] for _ in dtypes]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.autocast("cpu", enabled=False):
            for _ in range(6):
                for matrix, seconds in zip(matrices, taken, strict=True):
                    started = time.perf_counter()
                    torch.mm(matrix, matrix)
                    seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return [min(seconds[1:]) for seconds in taken]


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
        if not isinstance(block, Block | PredictorBlock):
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
