"""What an adaptation costs: trained parameters, all parameters, FLOPs of an image [figure 3]."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from iwm.adapter import Adapter
from iwm.config import VECTOR_SIZE, WorldModelConfig
from iwm.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of solving a task with an adapter.

    Attributes:
        trained: parameters that were finetuned.
        parameters: all that are used: of the encoder, of the predictor that is read, of the head.
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
    task = next(iter(described.tasks))
    grid = model.encoder.grid_of(images)
    with torch.no_grad():
        with FlopCounterMode(display=False) as encoding:
            source = adapter.encode(model.encoder, images, task)
        with FlopCounterMode(display=False) as solving:
            adapter(model, source, grid, task)
        action = torch.zeros(1, VECTOR_SIZE[config.actions.encoding], device="meta")
        with FlopCounterMode(display=False) as predicting:
            if predictions:
                model.predictor(source, action, grid)
    encoder, predictor = config.counts
    reads_models = described.reads == "predictor" and described.predictor is None
    shared = predictor if reads_models or predictions else 0
    return Cost(
        trained=trained,
        parameters=encoder + shared + config.adapter_parameters(adapter_name),
        encoder_flops=encoding.get_total_flops(),
        task_flops=solving.get_total_flops() + predictions * predicting.get_total_flops(),
    )
