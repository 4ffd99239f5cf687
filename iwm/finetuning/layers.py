"""The learning rate of every layer [arXiv 2403.00504, App. A.2].

Layer decay as in BEiT and MAE: patch embedding 0, blocks 1 to L, head and last norm L + 1; the
share of layer i is decay^(L + 1 - i). Encoder and predictor count as one stack, in which what
comes before the predictor's first block belongs to that block.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from iwm.adapter import Adapter
from iwm.encoder import Encoder
from iwm.finetuning.config import FinetuneConfig
from iwm.predictor import Predictor


def learning_shares(
    config: FinetuneConfig, adapter: Adapter, encoder: Encoder | None, predictor: Predictor | None
) -> list[tuple[nn.Parameter, float]]:
    """Every parameter that may be trained, with its share of the learning rate.

    Args:
        config: supplies the shares of encoder and predictor, and the decay from layer to layer.
        adapter: its heads and tokens have share 1.
        encoder: of the model, if it is trained.
        predictor: of the model, if it is trained; else the adapter's own counts.
    """
    reads = predictor or adapter.predictor
    below = len(encoder.blocks) if encoder else 0
    top = below + (len(reads.blocks) if reads else 0) + 1
    shares: list[tuple[nn.Parameter, float]] = []
    if encoder:
        for name, parameter in encoder.named_parameters():
            layer = _block(name) + 1 if name.startswith("blocks.") else 0
            shares.append((parameter, config.encoder_lr_scale * config.layer_decay ** (top - layer)))
    if reads:
        for name, parameter in reads.named_parameters():
            layer = below + 1
            if name.startswith("blocks."):
                layer = below + _block(name) + 1
            elif name.startswith(("norm.", "project_out.")):
                layer = top
            shares.append((parameter, config.predictor_share * config.layer_decay ** (top - layer)))
    shares += [(parameter, 1.0) for parameter in _own(adapter)]
    return shares


def _block(name: str) -> int:
    return int(name.split(".")[1])


def _own(adapter: Adapter) -> Iterator[nn.Parameter]:
    """Heads and tokens."""
    for name, parameter in adapter.named_parameters():
        if not name.startswith("predictor."):
            yield parameter
