"""One training step: iwm against the I-JEPA authors' code, with the FLOPs of each.

Same encoder and predictor sizes, same random crops, bf16 autocast, float32 weights, turn by turn
in one process. A step is forward, backward, AdamW and the teacher's update. Those of iwm make
both views from the crops as well; I-JEPA's loader makes its one view, outside of the step. FLOPs
are counted by PyTorch over the very steps that are timed, so that less work and faster work can
be told apart; the share is of a bf16 matrix product of 4096 x 4096, measured in the same run.

I-JEPA's code is not part of this project. Clone it, and say where it is:

    git clone https://github.com/facebookresearch/ijepa
    python benchmarks/pretrain_step.py --ijepa ijepa --batch-size 16

`--recipe iwm-tiny --fused` compares timm's fused attention with plain matrix products, see
`iwm.training.execution.prefer_plain_attention`.
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import sys
import time
import warnings
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from iwm.pretraining.config import PretrainConfig
from iwm.pretraining.recipes import find_recipe
from iwm.pretraining.task import PretrainTask
from iwm.training.optimizer import make_optimizer


class Variant(ABC):
    """Something that trains a batch of crops."""

    device: torch.device

    @abstractmethod
    def loss(self, crops: Tensor, step: int) -> Tensor:
        """Forward."""

    @abstractmethod
    def update(self, step: int) -> None:
        """The optimiser and the teacher."""

    def step(self, crops: Tensor, step: int) -> None:
        """All of it."""
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.loss(crops, step)
        torch.autograd.backward(loss)
        self.update(step)


class Ours(Variant):
    """The step of `iwm.training.loop` for one of our layouts, without the gradient's norm (1 % of it at ViT-B/16).

    The authors' code is timed without the norms that its loop logs.
    """

    def __init__(self, config: PretrainConfig, device: torch.device, fused: bool) -> None:
        self.device = device
        torch.manual_seed(0)
        self.task = PretrainTask(config).to(device)
        for module in self.task.modules():
            if isinstance(module, Attention):
                module.fused_attn = fused  # type: ignore[misc]
        self.optimizer = make_optimizer(self.task.trained(), config.optim)

    def loss(self, crops: Tensor, step: int) -> Tensor:
        keys = [(0, step * len(crops) + row) for row in range(len(crops))]
        loss, _ = self.task(crops, step, keys)
        return loss  # type: ignore[no-any-return]

    def update(self, step: int) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.task.after_step(step)


class IJepa(Variant):
    """Networks, masks and optimiser of the authors' code, in the order its training loop has them."""

    def __init__(self, config: PretrainConfig, device: torch.device, folder: Path) -> None:
        sys.path.insert(0, str(folder.resolve()))
        from src.helper import init_model, init_opt  # type: ignore[import-not-found]
        from src.masks.multiblock import MaskCollator  # type: ignore[import-not-found]
        from src.masks.utils import apply_masks  # type: ignore[import-not-found]

        logging.disable(logging.INFO)
        self.device, self.apply_masks = device, apply_masks
        encoder, predictor = config.model.encoder, config.model.predictor
        size, patch = encoder.image_size, encoder.patch_size
        by_width = {768: "vit_base", 1024: "vit_large"}
        if encoder.width not in by_width:
            sys.exit(f"I-JEPA has no encoder {encoder.width} wide; take a recipe with ViT-B or L.")
        torch.manual_seed(0)
        self.encoder, self.predictor = init_model(
            device, patch, by_width[encoder.width], size, predictor.depth, predictor.width
        )
        self.teacher = copy.deepcopy(self.encoder)
        self.teacher.requires_grad_(False)
        self.optimizer = init_opt(
            self.encoder, self.predictor, 1000, 2e-4, 1e-3, 40, 300, wd=0.04, final_wd=0.4, final_lr=1e-6
        )[0]
        self.masks: dict[int, Any] = {}
        self.collate = MaskCollator(
            input_size=(size, size), patch_size=patch, pred_mask_scale=(0.15, 0.2), enc_mask_scale=(0.85, 1.0),
            aspect_ratio=(0.75, 1.5), nenc=1, npred=4, allow_overlap=False, min_keep=10,
        )  # fmt: skip
        self.mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(3, 1, 1)
        self.std = torch.tensor([0.229, 0.224, 0.225], device=device).view(3, 1, 1)

    def prepare(self, step: int, batch_size: int) -> None:
        """Masks, which its loader draws outside of the step."""
        _, context, targets = self.collate([0] * batch_size)
        self.masks[step] = [m.to(self.device) for m in context], [m.to(self.device) for m in targets]

    def loss(self, crops: Tensor, step: int) -> Tensor:
        context, targets = self.masks[step]
        images = (crops.float() / 255 - self.mean) / self.std
        with torch.no_grad():
            wanted = self.teacher(images)
            wanted = F.layer_norm(wanted, wanted.shape[-1:])
            wanted = self.apply_masks(wanted, targets)
        predicted = self.predictor(self.encoder(images, context), context, targets)
        return F.smooth_l1_loss(predicted, wanted)

    @torch.no_grad()
    def update(self, step: int) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        for student, teacher in zip(self.encoder.parameters(), self.teacher.parameters(), strict=True):
            teacher.mul_(0.996).add_(student, alpha=0.004)


def matmul_rate(device: torch.device) -> float:
    """Bf16 FLOP a second of one large matrix product, the best of several."""
    a = torch.randn(4096, 4096, device=device).bfloat16()
    times = []
    for _ in range(5):
        started = clock(device)
        a @ a
        times.append(clock(device) - started)
    return 2 * 4096**3 / min(times)


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recipe", default="iwm-equi-12-384", help="gives the sizes")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ijepa", type=Path, help="a clone of github.com/facebookresearch/ijepa")
    parser.add_argument("--fused", action="store_true", help="add rows with the other kind of attention")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    device = torch.device(options.device)
    recipe = find_recipe(options.recipe)
    on_gpu = device.type == "cuda"

    variants: dict[str, Variant] = {}
    if options.ijepa:
        variants["I-JEPA"] = IJepa(recipe, device, options.ijepa)
    for layout, conditioning in (("append", "feature"), ("inplace", "adaln")):
        shape = replace(recipe.model.predictor, layout=layout, conditioning=conditioning)  # type: ignore[arg-type]
        config = recipe.replace(model=recipe.model.replace(predictor=shape))
        variants[f"{layout}/{conditioning}"] = Ours(config, device, fused=on_gpu)
        if options.fused:
            kind = "plain" if on_gpu else "fused"
            variants[f"{layout}/{conditioning}, {kind}"] = Ours(config, device, fused=not on_gpu)

    size = recipe.model.preprocess.size
    crops = torch.randint(0, 256, (options.batch_size, 3, size, size), dtype=torch.uint8, device=device)
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    flops: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(options.rounds):
        steps = range(number * options.steps, (number + 1) * options.steps)
        for name, variant in variants.items():
            if isinstance(variant, IJepa):
                for step in steps:
                    variant.prepare(step, options.batch_size)
            with FlopCounterMode(display=False) as counter:  # Warms up too.
                for step in steps:
                    variant.step(crops, step)
            started = clock(device)
            for step in steps:
                variant.step(crops, step)
            images = options.steps * options.batch_size
            speeds[name].append(images / (clock(device) - started))
            flops[name].append(counter.get_total_flops() / images)

    peak = matmul_rate(device)
    print(
        f"{options.recipe}, {size} px, batch {options.batch_size}, {device.type}, {options.threads} threads, "
        f"PyTorch {torch.__version__}; bf16 matrix product {peak / 1e9:,.0f} GFLOP/s"
    )
    print(f"{'':22}{'images/s':>10}{'GFLOP/image':>13}{'GFLOP/s':>10}{'share':>8}{'ratio':>8}")
    rates = {name: [a * b for a, b in zip(speeds[name], flops[name], strict=True)] for name in variants}
    first = next(iter(variants))
    for name in variants:
        rate = statistics.median(rates[name])
        ratio = statistics.median(a / b for a, b in zip(rates[name], rates[first], strict=True))
        print(
            f"{name:22}{statistics.median(speeds[name]):10.2f}{statistics.median(flops[name]) / 1e9:13.1f}"
            f"{rate / 1e9:10,.0f}{rate / peak:8.0%}{ratio:8.2f}"
        )
    print("Medians over rounds; ratio is of FLOP/s to the first row's of the same round.")


if __name__ == "__main__":
    main()
