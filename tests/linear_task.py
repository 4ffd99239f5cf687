"""A task small enough to be worked out by hand, its settings and what it logged."""

import json

from torch import nn

from iwm.training.config import DataConfig, OptimConfig, RunConfig
from iwm.training.loop import Task

SIZE = 4
TIMING = {"images_per_second", "data_wait", "memory_mb"}


class LinearTask(Task):
    """Fits two numbers per image; `at` holds what happens at the start of a step."""

    def __init__(self, at=None, scale=1.0):
        super().__init__()
        self.layer = nn.Linear(3 * SIZE * SIZE, 2)
        nn.init.constant_(self.layer.weight, 0.01)
        nn.init.zeros_(self.layer.bias)
        self.at = at or {}
        self.scale = scale
        self.seen = []

    def trained(self):
        return [self.layer]

    def forward(self, crops, step, keys):
        self.seen.append((step, list(keys)))
        factor = self.at[step]() if step in self.at else self.scale
        loss = (self.layer(crops.flatten(1).float() / 255) - 1).square().mean() * (factor or self.scale)
        return loss, {"brightness": crops.float().mean()}

    def after_step(self, step):
        return {"after": float(step)}


def loop_config(**changes):
    defaults = {"steps": 10, "batch_size": 2, "log_every": 1, "checkpoint_every": 4, "precision": "float32"}
    return RunConfig(
        data=DataConfig(workers=0),
        device="cpu",
        **{"optim": OptimConfig(lr=0.01, warmup=0.2)} | defaults | changes,
    )


def metrics_of(folder):
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def comparable(metrics):
    return [{k: v for k, v in record.items() if k not in TIMING} for record in metrics]
