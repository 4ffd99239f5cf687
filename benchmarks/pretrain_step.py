"""One training step of `iwm-tiny` on the CPU: timm's fused attention against plain matrix products.

Run it: python benchmarks/pretrain_step.py [--steps 10] [--threads 2]
Both variants run in turn in one process, on the same random crops; it prints images a second and
the ratio. Training on a CPU uses the plain one, see `iwm.training.loop.prefer_plain_attention`.
"""

import argparse
import time

import torch
from timm.models.vision_transformer import Attention

from iwm.pretraining.recipes import find_recipe
from iwm.pretraining.task import PretrainTask
from iwm.training.optimizer import adamw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    config = find_recipe("iwm-tiny")
    task = PretrainTask(config)
    optimizer = adamw(task.trained(), config.optim)
    size = config.model.preprocess.size
    crops = torch.randint(0, 256, (config.batch_size, 3, size, size), dtype=torch.uint8)
    keys = [(0, i) for i in range(config.batch_size)]

    def run(steps: int) -> float:
        started = time.perf_counter()
        for step in range(steps):
            with torch.autocast("cpu", torch.bfloat16):
                loss, _ = task(crops, step, keys)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return steps * config.batch_size / (time.perf_counter() - started)

    speeds: dict[str, list[float]] = {"fused": [], "plain": []}
    for round_number in range(3):
        for name, measured in speeds.items():
            for module in task.modules():
                if isinstance(module, Attention):
                    module.fused_attn = name == "fused"  # type: ignore[misc]
            speed = run(2 if round_number == 0 else options.steps)
            if round_number:  # The first round warms up.
                measured.append(speed)
    fused, plain = (sum(s) / len(s) for s in speeds.values())
    print(
        f"{options.threads} threads: fused {fused:.0f} images/s, plain {plain:.0f}, ratio {plain / fused:.2f}"
    )


if __name__ == "__main__":
    main()
