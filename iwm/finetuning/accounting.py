"""What an adaptation costs: trained parameters, all parameters, FLOPs of an image [figure 3]."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from iwm.adapter import Adapter
from iwm.config import VECTOR_SIZE, WorldModelConfig
from iwm.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of solving a task with an adapter.

    Attributes:
        trained: parameters that were finetuned.
        parameters: all that the outputs are computed from: of the encoder, of the predictor that is read, of
            the heads. A mask token that takes no place, or layers after those that a head reads, are not among them.
        encoder_flops: of one image of the training size through the encoder, which all tasks share.
        task_flops: of what comes after it, for one task.
    """

    trained: int
    parameters: int
    encoder_flops: int
    task_flops: int

    @property
    def flops(self) -> int:
        """Of one image and one task."""
        return self.encoder_flops + self.task_flops

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the sum of FLOPs among them."""
        return dataclasses.asdict(self) | {"flops": self.flops}

    def rows(self) -> list[tuple[str, str]]:
        """What is printed: a name and a value a line."""
        encoding, solving = self.encoder_flops / 1e9, self.task_flops / 1e9
        return [
            ("finetuned", f"{self.trained:,} parameters"),
            ("in use", f"{self.parameters:,} parameters"),
            ("FLOPs", f"{encoding:.3f} G an image to encode, {solving:.3f} G a task"),
        ]


def cost(config: WorldModelConfig, adapter_name: str, trained: int, predictions: int = 0) -> Cost:
    """Count without computing: on the meta device.

    Args:
        config: of a model with this adapter.
        adapter_name: which.
        trained: parameters that were finetuned.
        predictions: of the world model, that the head reads the average of; 0 reads the encoding.
    """
    described = config.adapters[adapter_name]
    with torch.device("meta"):
        model = WorldModel(config).to("meta")
        adapter = Adapter(described, config).to("meta").eval()
        size = config.preprocess.size
        images = torch.zeros(1, 3, size, size, device="meta")
        action = torch.zeros(1, VECTOR_SIZE[config.actions.encoding], device="meta")
    task = next(iter(described.tasks))
    grid = model.encoder.grid_of(images)
    with torch.no_grad():
        with FlopCounterMode(display=False) as encoding:
            source = adapter.encode(model.encoder, images, task)
        with FlopCounterMode(display=False) as solving:
            adapter(model, source, grid, task)
        with FlopCounterMode(display=False) as predicting:
            if predictions:
                model.predictor(source, action, grid)
    return Cost(
        trained=trained,
        parameters=_in_use(model, adapter, images, action if predictions else None),
        encoder_flops=encoding.get_total_flops(),
        task_flops=solving.get_total_flops() + predictions * predicting.get_total_flops(),
    )


def _in_use(model: WorldModel, adapter: Adapter, images: Tensor, action: Tensor | None) -> int:
    """Parameters that a gradient of the outputs of all tasks reaches; with an action, those of predictions too."""
    grid = model.encoder.grid_of(images)
    with torch.enable_grad():
        outputs = []
        for task in adapter.config.tasks:
            source = adapter.encode(model.encoder, images, task)
            if action is not None:
                source = model.predictor(source, action, grid)
            outputs.append(adapter(model, source, grid, task).sum())
        parameters = [*model.parameters(), *adapter.parameters()]
        reached = torch.autograd.grad(torch.stack(outputs).sum(), parameters, allow_unused=True)
    return sum(p.numel() for p, gradient in zip(parameters, reached, strict=True) if gradient is not None)
