"""Small tasks, adapters and models for tests of what leverages a world model."""

from typing import Any

import torch
from torch import nn

from iwm.adapter import Adapter
from iwm.config import AdapterConfig, Head, TaskConfig, WorldModelConfig
from iwm.world_model import WorldModel

SPACE = "0123456789abcdef"


def classification(*labels: str, head: Head = "linear", batch_norm: bool = False) -> TaskConfig:
    """A task of a few classes; cat, dog and bird if none are named."""
    named = labels or ("cat", "dog", "bird")
    return TaskConfig(kind="classification", labels=named, head=head, batch_norm=batch_norm)


def segmentation(*labels: str) -> TaskConfig:
    """A task of a few regions."""
    return TaskConfig(kind="segmentation", labels=labels or ("sky", "road", "car", "tree"), head="upernet")


def shake(module: nn.Module, by: float = 0.2) -> None:
    """Random weights everywhere, and statistics that a batch norm has seen something."""
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=by)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 2.0)


def make_model(config: WorldModelConfig, **adapters: dict[str, Any]) -> WorldModel:
    """A model with adapters, given as fields of their `AdapterConfig`; weights are random everywhere."""
    model = WorldModel(config)
    shake(model, 0.1)
    for name, fields in adapters.items():
        adapter = Adapter(AdapterConfig(space=model.space, **fields), config)
        shake(adapter)
        model.add_adapter(name, adapter)
    return model
