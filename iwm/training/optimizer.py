"""AdamW with the decay groups that transformers are trained with."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from iwm.training.config import OptimConfig


def adamw(modules: Iterable[nn.Module], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over all trainable parameters; none of the one-dimensional ones decay.

    The first group decays, the second does not: biases, norms and the mask token (one vector).
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in modules:
        for parameter in module.parameters():
            if parameter.requires_grad:
                one_vector = parameter.ndim <= 1 or parameter.shape[:-1] == (1, 1)
                (plain if one_vector else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )


def set_schedule(optimizer: torch.optim.AdamW, lr: float, weight_decay: float) -> None:
    """Set this step's learning rate everywhere, and weight decay on the decayed group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.param_groups[0]["weight_decay"] = weight_decay
