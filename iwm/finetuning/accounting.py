"""What an adaptation costs: trained parameters, all parameters, FLOPs of an image [figure 3]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from iwm.adapter import Adapter
from iwm.config import WorldModelConfig
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


def cost(config: WorldModelConfig, adapter_name: str, trained: int) -> Cost:
    """Count without computing: on the meta device.

    Args:
        config: of a model with this adapter.
        adapter_name: which.
        trained: parameters that were finetuned.
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
    encoder, predictor = config.counts
    shared = predictor if described.reads == "predictor" and described.predictor is None else 0
    return Cost(
        trained=trained,
        parameters=encoder + shared + config.adapter_parameters(adapter_name),
        encoder_flops=encoding.get_total_flops(),
        task_flops=solving.get_total_flops(),
    )
