"""Optimisers, and the groups of parameters that transformers are trained with.

A group may carry `lr_scale`, its share of the learning rate, and `decays`, whether the weight
decay of the schedule reaches it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import Lars
from torch import nn

from iwm.training.config import OptimConfig

Group = dict[str, Any]


def make_optimizer(modules: Iterable[nn.Module], config: OptimConfig) -> torch.optim.Optimizer:
    """The configured optimiser over all trainable parameters of some modules."""
    return optimizer_over(decay_groups(modules), config)


def decay_groups(modules: Iterable[nn.Module]) -> list[Group]:
    """All trainable parameters in two groups; none of the one-dimensional ones decay.

    The first group decays, the second does not: biases, norms and single tokens (one vector).
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if not is_vector(p)], "decays": True},
        {"params": [p for p in parameters if is_vector(p)], "decays": False},
    ]


def scaled_groups(parameters: Iterable[tuple[nn.Parameter, float]]) -> list[Group]:
    """Trainable parameters, each with its share of the learning rate, in groups of equal treatment."""
    groups: dict[tuple[float, bool], Group] = {}
    for parameter, scale in parameters:
        if parameter.requires_grad:
            decays = not is_vector(parameter)
            group = groups.setdefault((scale, decays), {"params": [], "lr_scale": scale, "decays": decays})
            group["params"].append(parameter)
    return list(groups.values())


def is_vector(parameter: nn.Parameter) -> bool:
    """Whether a parameter is one vector: a bias, a norm's weight, a token."""
    return parameter.ndim <= 1 or parameter.shape[:-1] == (1, 1)


def optimizer_over(groups: list[Group], config: OptimConfig) -> torch.optim.Optimizer:
    """The configured optimiser over groups of parameters.

    LARS scales the step to the norm of matrices alone, as in MAE's linear probing.
    """
    if config.optimizer == "lars":
        adapted = [group | {"always_adapt": group["decays"]} for group in groups]
        return Lars(_undecayed(adapted), lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(
        _undecayed(groups), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )


def _undecayed(groups: list[Group]) -> list[Group]:
    return [group if group["decays"] else group | {"weight_decay": 0.0} for group in groups]


def set_schedule(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Set this step's learning rate everywhere, and weight decay where there is one."""
    for number, group in enumerate(optimizer.param_groups):
        group["lr"] = lr * group.get("lr_scale", 1.0)
        if group.get("decays", number == 0):  # Checkpoints of version 0.1 do not say it.
            group["weight_decay"] = weight_decay
