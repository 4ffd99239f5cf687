"""Images a second of every finetuning protocol, counted in the process's own time.

Random pixels or latents of a model's size through forward, backward and optimiser, under the small
recipes' batch sizes. Processor time and not the clock's: another program on the machine then
takes nothing away. With one thread it is what one free core does.

    OMP_NUM_THREADS=1 python benchmarks/finetune_step.py --model iwm-tiny --steps 5
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from iwm.adapter import Adapter
from iwm.config import AdapterConfig, TaskConfig
from iwm.encoder import set_drop_path
from iwm.finetuning.recipes import find_recipe
from iwm.finetuning.task import FinetuneTask
from iwm.loading import load
from iwm.training.execution import autocast, prefer_plain_attention

PROTOCOLS = ("linear", "attentive", "predictor", "encoder", "end-to-end", "segmentation")


def measure(name: str, model_name: str, steps: int, cached: bool, channels: int | None = None) -> float:
    config = find_recipe(f"{name}-small").replace(batch_size=32)
    model = load(model_name)
    if channels is not None:
        config = config.replace(channels=channels)
    described = TaskConfig(
        kind=config.task, labels=tuple(map(str, range(10))), head=config.head, channels=config.channels
    )
    own = model.config.predictor if config.tune == "predictor" else None
    reads = "predictor" if config.uses_predictor else "encoder"
    adapter = Adapter(
        AdapterConfig(tasks={"task": described}, space=model.space, reads=reads, predictor=own),  # type: ignore[arg-type]
        model.config,
    )
    task = FinetuneTask(config, model, adapter, [0] * 32, [32])
    prefer_plain_attention(task)
    if adapter.predictor:
        set_drop_path(adapter.predictor.blocks, config.drop_path)
    optimizer = task.make_optimizer(config.optim)
    size = model.preprocess.size
    crops = torch.randint(
        0, 256, (32, 4 if config.task == "segmentation" else 3, size, size), dtype=torch.uint8
    )
    if config.task == "segmentation":
        crops[:, 3] %= 10
    if cached:
        with torch.no_grad():
            crops = model.encoder(crops / 255.0).half()
    keys = [(0, i) for i in range(32)]
    spent = []
    for step in range(steps + 1):
        started = time.process_time()
        with autocast(torch.device("cpu"), "bf16"):
            loss, _ = task(crops, step, keys)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        spent.append(time.process_time() - started)
    return 32 / statistics.median(spent[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="iwm-tiny")
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    with autocast(torch.device("cpu"), "bf16"):
        print((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
    for name in PROTOCOLS:
        frozen = find_recipe(f"{name}-small").cache_views > 0
        print(f"{name:12} {measure(name, options.model, options.steps, False):8.1f} images/s", end="")
        cached = (
            f"   from kept latents {measure(name, options.model, options.steps, True):8.1f}" if frozen else ""
        )
        print(cached, flush=True)
    name = "segmentation, a head at full width"
    print(f"{name} {measure('segmentation', options.model, options.steps, False, channels=0):8.1f} images/s")


if __name__ == "__main__":
    main()
