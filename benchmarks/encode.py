"""Encoding by every backend: time beside timm's own ViT, agreement with float32, scores kept.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/encode.py --rounds 7
    python benchmarks/encode.py --rounds 1 --photos imagenette/val --train imagenette/train \
        --val imagenette/val --task imagenette --calibration photos

Backends take turns within each round; ratios are of the same round, to torch float32. With
--photos every backend's apply-MRR is measured, with --train and --val its 20-nearest-neighbour
accuracy, with --task and --val the accuracy of that task's head. Needs pip install
"iwm[openvino,onnx]". With --cpu-time the processor's time is taken, which other programs on the
machine disturb less.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import iwm
from iwm.evaluation import knn, mrr
from iwm.evaluation.labelled import read_class_folder
from iwm.export import Format, Precision
from iwm.images import list_images

EXPORTS: list[tuple[Format, Precision]] = [
    ("onnx", "fp32"),
    ("onnx", "int8"),
    ("openvino", "fp32"),
    ("openvino", "fp16"),
    ("openvino", "int8"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="iwm-tiny")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="torch.compile too; takes a while")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--calibration", type=Path, help="photographs that int8 is calibrated on")
    parser.add_argument("--photos", type=Path, help="measure apply-MRR on photographs of this folder")
    parser.add_argument("--images", type=int, default=20, help="how many of them")
    parser.add_argument("--bank-size", type=int, default=64)
    parser.add_argument("--train", type=Path, help="measure 20-NN accuracy: folder of classes")
    parser.add_argument("--val", type=Path)
    parser.add_argument("--task", help="measure the accuracy of this task's classification on --val")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = iwm.load(options.model)
    with tempfile.TemporaryDirectory() as folder:
        models = backends(options.model, Path(folder), options.calibration)
        runs: dict[str, Callable[[Tensor], Tensor]] = {"timm float32": timm_twin(model)}
        runs |= {name: backend.encoder for name, backend in models.items()}
        if options.compile:
            runs["torch compile"] = torch.compile(model.encoder)
        print(f"{options.model}, {options.threads} threads, PyTorch {torch.__version__}")
        tick = time.process_time if options.cpu_time else time.perf_counter
        for size in options.batch:
            times(runs, torch.rand(size, 3, *[model.preprocess.size] * 2), options.rounds, tick)
        scores(models, options)


def backends(name: str, folder: Path, calibration: Path | None) -> dict[str, iwm.WorldModel]:
    """The model in every runtime and precision, by name."""
    model = iwm.load(name)
    models = {"torch float32": model, "torch bfloat16": iwm.load(name, dtype=torch.bfloat16)}
    images = None if calibration is None else list_images(calibration)
    images = images and images[:: -(-len(images) // 64)]
    for backend, precision in EXPORTS:
        target = folder / f"{backend}-{precision}"
        model.export(target, backend, precision, calibration=images if precision == "int8" else None)
        if backend != "torch":
            models[f"{backend} {precision}"] = iwm.load(target, backend=backend)
    return models


def timm_twin(model: iwm.WorldModel) -> torch.nn.Module:
    """Timm's ViT of the same size, random weights: the same blocks, its own forward."""
    e = model.config.encoder
    vit = VisionTransformer(
        img_size=model.preprocess.size, patch_size=e.patch_size, embed_dim=e.width, depth=e.depth,
        num_heads=e.heads, mlp_ratio=e.mlp_ratio, num_classes=0, class_token=False, global_pool="",
    )  # fmt: skip
    return vit.eval()


@torch.no_grad()
def times(
    runs: Mapping[str, Callable[[Tensor], Tensor]], images: Tensor, rounds: int, tick: Callable[[], float]
) -> None:
    """A table: milliseconds an image, medians over rounds, and ratios of the same round."""
    measured: dict[str, list[float]] = {name: [] for name in runs}
    repeats = max(32 // len(images), 1)
    for number in range(rounds + 1):
        for name, run in runs.items():
            given = images.bfloat16() if name == "torch bfloat16" else images
            started = tick()
            for _ in range(repeats):
                run(given)
            if number:  # The first round warms up.
                measured[name].append((tick() - started) / repeats / len(images) * 1e3)
    print(f"\nbatch {len(images):3}{'ms/image':>26}{'torch float32 / this':>24}")
    for name, values in measured.items():
        pairs = zip(measured["torch float32"], values, strict=True)
        ratio = statistics.median(base / value for base, value in pairs)
        print(f"{name:22}{statistics.median(values):13.2f}{ratio:22.2f}", flush=True)


def scores(models: dict[str, iwm.WorldModel], options: argparse.Namespace) -> None:
    """A table: lowest cosine to float32 over photographs and actions, and what scores are kept."""
    base = models["torch float32"]
    if options.photos:
        everything = list_images(options.photos)
        photos = [everything[i * len(everything) // options.images] for i in range(options.images)]
        pixels = base.preprocess(photos)
    else:
        pixels = F.interpolate(torch.rand(16, 3, 8, 8), size=base.preprocess.size, mode="bicubic").clamp(0, 1)
    latent, actions = base.encode(pixels), iwm.Action.sample(len(pixels), seed=2)
    moved = base.apply_action(latent, actions)
    known = read_class_folder(options.val) if options.task and options.val else None
    print(f"\n{'':22}{'cos encode':>12}{'cos act':>10}{'apply-MRR':>11}{'20-NN':>8}{'task':>8}")
    for name, model in models.items():
        cells = [
            f"{lowest_cosine(model.encode(pixels), latent):12.5f}",
            f"{lowest_cosine(model.apply_action(latent, actions), moved):10.5f}",
        ]
        cells.append(
            f"{mrr(model, photos, bank_size=options.bank_size).mrr:11.3f}" if options.photos else " " * 11
        )
        accurate = options.train and options.val
        cells.append(f"{knn(model, options.train, options.val).accuracy:8.1%}" if accurate else " " * 8)
        if known:
            answers = model.classify(known.images, task=options.task, topk=1).labels
            right = [answer[0] == label for answer, label in zip(answers, known.labels, strict=True)]
            cells.append(f"{statistics.mean(right):8.1%}")
        print(f"{name:22}{''.join(cells)}", flush=True)


def lowest_cosine(one: iwm.Latent, other: iwm.Latent) -> float:
    """The lowest cosine of two views' tokens, all of a view as one vector."""
    cosines = F.cosine_similarity(one.tokens.float().flatten(1), other.tokens.float().flatten(1))
    return float(cosines.min())


if __name__ == "__main__":
    main()
