"""Finetuning recipes: one function a protocol [arXiv 2403.00504, App. A.2].

P marks the paper's values, J those of the code it builds on where it is silent (MAE and BEiT for
classification, MMSegmentation for segmentation), O ours. Beside each protocol with the paper's
hyperparameters stands a `-small` one for a few thousand photographs on a few cores (all O): fewer
images a step and fewer epochs, and weaker augmentation, which such a short run has no use for.
Overrides from the command line are typed and dotted, e.g. `--optim.lr 5e-4`.

Scores of the paper's recipes are the paper's (P), of IWM-Equi 18,384 with a ViT-B/16 encoder, top-1
accuracy on ImageNet-1k where nothing else is said; their costs are the lengths of the runs. Scores
of the small ones are of `iwm-tiny`, the mean of three seeds, in the settings that they name
(docs/RESULTS.md); their costs are images a second of training by one core with AVX-512 bf16,
decoding not counted (docs/FINETUNING.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from iwm.errors import UnknownModelError, nearest
from iwm.finetuning.config import AugmentConfig, FinetuneConfig
from iwm.training.config import DataConfig, OptimConfig

LARGE = 100_000
"""Training images from which on the paper's hyperparameters are the default."""

_IMAGENET = 1_281_167


def linear() -> FinetuneConfig:
    """A linear layer on pooled tokens of the frozen encoder [table 8].

    P: LARS, learning rate 6.4, batch 16,384, 90 epochs, 10 of warmup, cosine, momentum 0.9, no
    weight decay, crops of 0.08 to 1, flip 0.5. J: no batch norm, warmup from 0.

    Command: `iwm finetune --recipe linear --data IMAGENET --out DIR`.
    Cost: 90 epochs of ImageNet; time not measured.
    Score: 67.5 % (P, table 8).
    """
    return FinetuneConfig(
        tune="none", head="linear", epochs=90.0, batch_size=16_384,
        optim=_optim(optimizer="lars", lr=6.4, warmup=10 / 90, weight_decay=0.0),
        data=DataConfig(crop_scale=(0.08, 1.0), workers=8),
    )  # fmt: skip


def linear_small() -> FinetuneConfig:
    """As `linear`, with AdamW on cached latents of four views a photograph.

    Command: `iwm finetune --recipe linear-small --data DIR --out DIR`.
    Cost: 9,100 images a second from kept latents, 292 where every image is encoded.
    Score: not measured; 40.8 % as `iwm eval probe`, on the centre view (700 photographs of imagenette).
    """
    return linear().replace(
        epochs=60.0, batch_size=256, cache_views=4, data=DataConfig(crop_scale=(0.3, 1.0)),
        optim=_optim(lr=3e-3, warmup=0.1, weight_decay=0.0), log_every=20, checkpoint_every=200,
    )  # fmt: skip


def attentive() -> FinetuneConfig:
    """A learned query on the tokens of the frozen encoder [table 8].

    P: AdamW, learning rate 1e-4, betas 0.9 and 0.999, batch 1,024, 90 epochs, cosine, weight
    decay 0.01, crops of 0.3 to 1, flip 0.5, the photometry of pretraining's source views. The
    paper names no warmup: none.

    Command: `iwm finetune --recipe attentive --data IMAGENET --out DIR`.
    Cost: 90 epochs of ImageNet; time not measured.
    Score: 75.1 % (P, table 8).
    """
    return FinetuneConfig(
        tune="none", head="attentive", epochs=90.0, batch_size=1024,
        optim=_optim(lr=1e-4, warmup=0.0, weight_decay=0.01),
        data=DataConfig(crop_scale=(0.3, 1.0), workers=8), augment=AugmentConfig(photometry=True),
    )  # fmt: skip


def attentive_small() -> FinetuneConfig:
    """As `attentive`, on cached latents of four views a photograph, without photometry.

    Command: `iwm finetune --recipe attentive-small --data DIR --out DIR`.
    Cost: 2,600 images a second from kept latents, 242 where every image is encoded.
    Score: not measured.
    """
    return attentive().replace(
        epochs=30.0, batch_size=128, cache_views=4, data=DataConfig(crop_scale=(0.3, 1.0)),
        augment=AugmentConfig(), optim=_optim(lr=1e-3, warmup=0.1, weight_decay=0.01), log_every=20, checkpoint_every=200,
    )  # fmt: skip


def encoder() -> FinetuneConfig:
    """The encoder and a linear layer, no predictor [table 4].

    P: RandAugment `rand-m9-mstd0.5-inc1`, mixup 0.8, cutmix 1, erasing 0.25 in pixel mode, label
    smoothing 0.1; AdamW, learning rate 2e-3, 5 of 100 epochs of warmup, cosine, weight decay
    0.005, batch 1,024, drop path 0.2, layer decay 0.65. J: crops of 0.08 to 1, warmup from 0.

    Command: `iwm finetune --recipe encoder --data IMAGENET --out DIR`.
    Cost: 100 epochs of ImageNet; time not measured.
    Score: 82.9 % (P, table 4).
    """
    return FinetuneConfig(
        tune="encoder", head="linear", epochs=100.0, batch_size=1024, layer_decay=0.65, drop_path=0.2,
        optim=_optim(lr=2e-3, warmup=0.05, weight_decay=0.005),
        data=DataConfig(crop_scale=(0.08, 1.0), workers=8), augment=_strong(),
    )  # fmt: skip


def encoder_small() -> FinetuneConfig:
    """As `encoder`, with crops, flips and label smoothing alone.

    700 photographs of imagenette, accuracy of one run each: 44.8, 53.4, 53.7 % at learning rates of
    1e-3, 3e-3 and 1e-2.

    Command: `iwm finetune --recipe encoder-small --data DIR --out DIR`.
    Cost: 118 images a second.
    Score: 51.9 % (700 photographs of imagenette, 20 epochs), 27.2 % (3,000 of caltech101, 300 steps).
    """
    return encoder().replace(
        epochs=20.0, batch_size=64, layer_decay=0.75, drop_path=0.1, data=DataConfig(crop_scale=(0.3, 1.0)),
        augment=_weak(), optim=_optim(lr=3e-3, warmup=0.1, weight_decay=0.05), log_every=20, checkpoint_every=200,
    )  # fmt: skip


def predictor() -> FinetuneConfig:
    """The predictor and an attentive head on the frozen teacher, null action, whole image [tables 3, 4].

    P: the augmentation of `encoder`; AdamW, learning rate 1e-3, a tenth of it for a pretrained
    predictor, 5 of 100 epochs of warmup, cosine, weight decay 0.1, batch 1,024, drop path 0.2 in
    the predictor, no layer decay. J: crops of 0.08 to 1, warmup from 0. Variants: `--output
    token`, `--action pretraining`, `--branch student` [table S3], `--init random`.

    Command: `iwm finetune --recipe predictor --data IMAGENET --out DIR`.
    Cost: 100 epochs of ImageNet; time not measured.
    Score: 83.3 % pretrained, 81.5 % at random (P, table 4).
    """
    return encoder().replace(
        tune="predictor", head="attentive", layer_decay=1.0,
        optim=_optim(lr=1e-3, warmup=0.05, weight_decay=0.1),
    )  # fmt: skip


def predictor_small() -> FinetuneConfig:
    """As `predictor`, with crops, flips and label smoothing alone, on four cached views a photograph.

    The predictor has 0.3 of the learning rate, whether it starts pretrained or at random. 1,000
    photographs of imagenette, 8 epochs, accuracy of one run each: pretrained 46.9, 51.2, 51.1 %
    at 0.1, 0.3 and 1; random 39.7, 38.6 % at 0.3 and 1.

    Command: `iwm finetune --recipe predictor-small --data DIR --out DIR`.
    Cost: 198 images a second from kept latents, 118 where every image is encoded.
    Score: with `--cache-views 0` 57.2 %, at random 46.3 % (700 photographs of imagenette, 20 epochs);
    29.8 %, at random 22.0 % (3,000 of caltech101, 300 steps).
    """
    return predictor().replace(
        epochs=20.0, batch_size=64, drop_path=0.1, cache_views=4, predictor_lr_scale=0.3,
        data=DataConfig(crop_scale=(0.3, 1.0)), augment=_weak(),
        optim=_optim(lr=1e-3, warmup=0.1, weight_decay=0.1), log_every=20, checkpoint_every=200,
    )  # fmt: skip


def end_to_end() -> FinetuneConfig:
    """Encoder, predictor and head [table 4].

    P: as `predictor`, with learning rate 2e-3, a tenth of it for the encoder and for the
    predictor, layer decay 0.9 over both. Drop path stays in the predictor.

    Command: `iwm finetune --recipe end-to-end --data IMAGENET --out DIR`.
    Cost: 100 epochs of ImageNet; time not measured.
    Score: 84.4 % (P, table 4).
    """
    return predictor().replace(
        tune="all", encoder_lr_scale=0.1, layer_decay=0.9,
        optim=_optim(lr=2e-3, warmup=0.05, weight_decay=0.1),
    )  # fmt: skip


def end_to_end_small() -> FinetuneConfig:
    """As `end_to_end`, with crops, flips and label smoothing alone.

    Command: `iwm finetune --recipe end-to-end-small --data DIR --out DIR`.
    Cost: 75 images a second.
    Score: 60.6 % (700 photographs of imagenette, 20 epochs), 33.0 % (3,000 of caltech101, 300 steps).
    """
    return predictor_small().replace(
        tune="all", encoder_lr_scale=0.1, layer_decay=0.9, cache_views=0,
        optim=_optim(lr=2e-3, warmup=0.1, weight_decay=0.1),
    )  # fmt: skip


def segmentation() -> FinetuneConfig:
    """UperNet on the last four layers of the finetuned predictor [table 6].

    P: 160,000 iterations, learning rate 1e-5, 2e-5 or 3e-5, the best of them, linear decay,
    weight decay 0.01; the resolution of pretraining in training, the image's own in use. J: batch
    16, 1,500 iterations of warmup, random scale of 0.5 to 2, crop and flip. O: one learning rate
    for all parts, each of the four layers one level of the pyramid (the paper concatenates them),
    no distortion of colours, no auxiliary head. `--tune encoder` and `--tune all` are the paper's
    other two columns.

    Command: `iwm finetune --task segmentation --recipe segmentation --data ADE20K --out DIR`.
    Cost: 160,000 steps of 16; time not measured.
    Score: mIoU 46.8 % on ADE20k, 44.2 % with `--tune encoder`, 47.0 % with `--tune all` (P, table 6).
    """
    return FinetuneConfig(
        task="segmentation", tune="predictor", head="upernet", steps=160_000, batch_size=16,
        predictor_lr_scale=1.0, optim=_optim(lr=2e-5, warmup=1500 / 160_000, weight_decay=0.01, schedule="linear"),
        data=DataConfig(workers=8), monitor_every=16_000,
    )  # fmt: skip


def segmentation_small() -> FinetuneConfig:
    """As `segmentation`, shorter, with a head of 64 channels.

    At full width the head of `iwm-tiny` is 6 times the encoder's FLOPs, with `--tune encoder` 10
    times. The widths were not compared in mIoU. The learning rate is the best of 5e-4, 2e-3 and 4e-3
    both for the predictor and for the encoder (CamVid, 300 steps: `docs/RESULTS.md`).

    Command: `iwm finetune --task segmentation --recipe segmentation-small --data DIR --out DIR`.
    Cost: 14.0 images a second by one core with AVX2, in float32.
    Score: mIoU 51.6 %, 46.2 % with `--tune encoder` (367 scenes of CamVid, one seed).
    """
    return segmentation().replace(
        steps=1500, monitor_every=300, channels=64, data=DataConfig(),
        optim=_optim(lr=2e-3, warmup=0.1, weight_decay=0.01, schedule="linear"), log_every=20, checkpoint_every=200,
    )  # fmt: skip


def multitask() -> FinetuneConfig:
    """One predictor for several tasks: task tokens, a head each, losses summed [section 5.2, table 7].

    P: as `predictor`, 512 images of every task a step, for as many steps as 50 epochs of ImageNet
    take. `batch_size` counts all tasks: the recipe's is for one, and grows with their number.

    Command: `iwm finetune --recipe multitask --data a=DIR --data b=DIR --out DIR`.
    Cost: 50 epochs of ImageNet for every task; time not measured.
    Score: 73.5 %, the average of ImageNet, iNaturalist18, SUN397 and Places205; 73.4 % each alone (P, table 7).
    """
    return _several(predictor())


def multitask_small() -> FinetuneConfig:
    """As `predictor_small`: 32 images of every task a step, 3,000 steps.

    Command: `iwm finetune --recipe multitask-small --data a=DIR --data b=DIR --out DIR`.
    Cost: not measured.
    Score: not measured in 3,000 steps; 39.1 % on average in 300, 39.4 % each alone (700 photographs
    each of imagenette, caltech101 and clothing).
    """
    return _several_small(predictor_small())


def multitask_encoder() -> FinetuneConfig:
    """One encoder for several tasks and a linear layer each: `encoder`, for as long as `multitask` (O).

    Command: `iwm finetune --recipe multitask-encoder --data a=DIR --data b=DIR --out DIR`.
    Cost: 50 epochs of ImageNet for every task; time not measured.
    Score: not measured.
    """
    return _several(encoder())


def multitask_encoder_small() -> FinetuneConfig:
    """As `encoder_small`, for as long as `multitask_small`.

    Command: `iwm finetune --recipe multitask-encoder-small --data a=DIR --data b=DIR --out DIR`.
    Cost: not measured.
    Score: not measured.
    """
    return _several_small(encoder_small())


def multitask_end_to_end() -> FinetuneConfig:
    """Encoder and predictor for several tasks: `end_to_end`, for as long as `multitask` (O).

    Command: `iwm finetune --recipe multitask-end-to-end --data a=DIR --data b=DIR --out DIR`.
    Cost: 50 epochs of ImageNet for every task; time not measured.
    Score: not measured.
    """
    return _several(end_to_end())


def multitask_end_to_end_small() -> FinetuneConfig:
    """As `end_to_end_small`, for as long as `multitask_small`.

    Command: `iwm finetune --recipe multitask-end-to-end-small --data a=DIR --data b=DIR --out DIR`.
    Cost: not measured.
    Score: not measured.
    """
    return _several_small(end_to_end_small())


def _several(config: FinetuneConfig) -> FinetuneConfig:
    """Half as long, with as many epochs of warmup."""
    optim = replace(config.optim, warmup=2 * config.optim.warmup)
    return config.replace(
        epochs=0.0, steps=50 * _IMAGENET // 512, batch_size=512, monitor_every=5000, optim=optim
    )


def _several_small(config: FinetuneConfig) -> FinetuneConfig:
    return config.replace(epochs=0.0, steps=3000, batch_size=32, monitor_every=300)


def _optim(**changes: Any) -> OptimConfig:
    """Warmup from 0, a schedule that ends at 0, constant weight decay."""
    plain = {"lr_start": 0.0, "stretch": 1.0} | changes
    return OptimConfig(**plain, weight_decay_end=changes["weight_decay"])


def _strong() -> AugmentConfig:
    return AugmentConfig(
        rand_augment="rand-m9-mstd0.5-inc1", mixup=0.8, cutmix=1.0, erasing=0.25, label_smoothing=0.1
    )


def _weak() -> AugmentConfig:
    return AugmentConfig(label_smoothing=0.1)


RECIPES: dict[str, Callable[[], FinetuneConfig]] = {
    recipe.__name__.replace("_", "-"): recipe
    for recipe in (
        linear, linear_small, attentive, attentive_small, encoder, encoder_small, predictor, predictor_small,
        end_to_end, end_to_end_small, segmentation, segmentation_small, multitask, multitask_small,
        multitask_encoder, multitask_encoder_small, multitask_end_to_end, multitask_end_to_end_small,
    )
}  # fmt: skip


def find_recipe(name: str, tasks: int = 1) -> FinetuneConfig:
    """The configuration of a recipe, for so many tasks.

    The batch of `multitask` recipes grows with their number; that of others is as large, less what
    cannot be split evenly between the tasks.

    Raises:
        UnknownModelError: no such recipe; the nearest names are in the message.
    """
    if name not in RECIPES:
        raise UnknownModelError(f'No recipe is called "{name}".{nearest(name, RECIPES)}')
    config = RECIPES[name]()
    if name.startswith("multitask"):
        return config.replace(batch_size=config.batch_size * tasks)
    multiple = tasks * (2 if config.augment.mixes else 1)  # Images are mixed in pairs within a task.
    return config.replace(batch_size=max(config.batch_size // multiple, 1) * multiple)


def protocol(task: str, tune: str, head: str | None, tasks: int) -> str:
    """Name of the recipe that goes with what a user asks for."""
    if task == "segmentation":
        return "segmentation"
    if tune == "none":
        return "linear" if head == "linear" else "attentive"
    name = {"encoder": "encoder", "all": "end-to-end"}.get(tune, "predictor")
    if tasks > 1:
        return "multitask" if name == "predictor" else f"multitask-{name}"
    return name
