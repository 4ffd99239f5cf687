"""Pretraining recipes: one function a zoo entry.

P marks the paper's values [arXiv 2403.00504, App. A.1, tables 2, S2, S4], J those of the
I-JEPA lineage where the paper is silent, O ours. What a recipe does not name is a default of
`RunConfig`, `OptimConfig`, `DataConfig` and `MaskConfig`, which are the paper's and J's:
crop scale 0.3-1 (P), flip 0.5 (P), four blocks of 0.15-0.2 (P), AdamW 1e-3 with betas 0.9 and
0.999 (P), cosine stretched by 1.25 (P), weight decay 0.04 to 0.4 (P), EMA 0.996 to 1 (J), bf16
(J). Overrides from the command line are typed and dotted, e.g. `--optim.lr 5e-4`.

Costs of the paper's recipes are FLOPs by `--dry-run`, and hours of one GPU that reaches a third of
its dense bf16 peak (104 TFLOP/s of an A100, 330 of an H100), an assumption: we have run none of
them to the end. Expected scores are the paper's (P): MRR by its own protocol, which is not that of
`iwm eval mrr`, and top-1 accuracy on ImageNet-1k.
"""

from collections.abc import Callable

from iwm.config import WorldModelConfig
from iwm.errors import UnknownModelError, nearest
from iwm.pretraining.config import MaskConfig, PretrainConfig
from iwm.training.config import DataConfig, OptimConfig
from iwm.zoo import find_entry


def iwm_tiny() -> PretrainConfig:
    """The embedded model: 6 x 256 encoder, 5 x 192 predictor (depth x width), 128 px (all O).

    Many steps of few images: what a world model learns counts in steps. A fifth of the steps are
    unmasked, 30 % of the sources and 30 % of the targets are untouched, as in use; the learning
    rate falls to zero (all O).

    Command: `iwm pretrain --recipe iwm-tiny --data FOLDER --out DIR`.
    Cost: 4.0e15 FLOPs, 7 h of one CPU core with AVX-512 bf16, 18 h with AVX2. Expected: apply-MRR
    0.907, undo-MRR 0.623, 20-NN 42.4 % (`iwm info iwm-tiny` has the commands); the shipped weights
    had these steps in three sittings (MODEL_CARD.md).
    """
    return PretrainConfig(
        model=_model("iwm-tiny"),
        masks=MaskConfig(unmasked=0.2),
        clean=0.3,
        optim=OptimConfig(lr=1.4e-3, lr_start=0.0, warmup=0.1, stretch=1.0, weight_decay_end=0.04, clip=3.0),
        steps=90_000,
        batch_size=16,
    )


def iwm_tiny_inv() -> PretrainConfig:
    """The invariant twin of `iwm_tiny`: the same run, with a world model that sees no action.

    Command: `iwm pretrain --recipe iwm-tiny-inv --data FOLDER --out DIR`.
    Cost: that of `iwm_tiny`. Expected: apply-MRR 0.024, its floor, by construction.
    """
    return iwm_tiny().replace(model=_model("iwm-tiny-inv"))


def iwm_equi_18_384() -> PretrainConfig:
    """The paper's main model, ViT-B/16 with an 18 x 384 predictor (P, table 4).

    Command: `iwm pretrain --recipe iwm-equi-18-384 --data IMAGENET/train --out DIR`.
    Cost: 5.0e19 FLOPs, 130 h of an A100 or 42 h of an H100, for 300 epochs (P) in batches of 2048 (J).
    Expected (P): MRR 0.79 (table 2); 83.3 % with the predictor finetuned, 82.9 the encoder, 84.4
    both (table 4); 67.5 linear and 75.1 attentive probe (table 8). Table S2 gives solarize 0.1 for
    that run, App. A.1, which we follow, 0.2.
    """
    return _paper("iwm-equi-18-384")


def iwm_equi_12_384() -> PretrainConfig:
    """ViT-B/16 with a 12 x 384 predictor, equivariant by strong jitter (P, tables 2 and S2).

    Command: `iwm pretrain --recipe iwm-equi-12-384 --data IMAGENET/train --out DIR`.
    Cost: 4.5e19 FLOPs, 120 h of an A100 or 38 h of an H100.
    Expected (P): MRR 0.81 (table 2); 82.7 % with the predictor finetuned, 82.7 the encoder, 83.3
    both (table S1); 69.3 linear and 75.5 attentive probe (table S2).
    """
    return _paper("iwm-equi-12-384")


def iwm_inv_12_384() -> PretrainConfig:
    """ViT-B/16 with a 12 x 384 predictor at the default jitter: invariant (P, table 2).

    Command: `iwm pretrain --recipe iwm-inv-12-384 --data IMAGENET/train --out DIR`.
    Cost: 4.5e19 FLOPs, 120 h of an A100 or 38 h of an H100.
    Expected (P): MRR 0.09 (table 2); 81.3 % with the predictor finetuned, 83.3 the encoder, 82.7
    both (table 4); 74.5 linear and 77.0 attentive probe (table 8).
    """
    return _paper("iwm-inv-12-384")


def iwm_equi_36_512() -> PretrainConfig:
    """ViT-L/16 with a 36 x 512 predictor (P, table S4).

    Command: `iwm pretrain --recipe iwm-equi-36-512 --data IMAGENET/train --out DIR`.
    Cost: 1.7e20 FLOPs, 460 h of an A100 or 150 h of an H100.
    Expected (P, table S4): 85.0 % with the predictor finetuned, 83.7 the encoder, 85.4 both.
    """
    return _paper("iwm-equi-36-512")


def iwm_inv_18_384_l16() -> PretrainConfig:
    """ViT-L/16 with an 18 x 384 predictor: invariant at this scale (P, table S4).

    Command: `iwm pretrain --recipe iwm-inv-18-384-l16 --data IMAGENET/train --out DIR`.
    Cost: 1.4e20 FLOPs, 360 h of an A100 or 110 h of an H100.
    Expected (P, table S4): 81.5 % with the predictor finetuned, 84.3 the encoder.
    """
    return _paper("iwm-inv-18-384-l16")


def _model(name: str) -> WorldModelConfig:
    """The zoo's architecture; whoever trains it decides the licence."""
    return find_entry(name).config.replace(license="unspecified")


def _paper(name: str) -> PretrainConfig:
    """300 epochs (P) of ImageNet's 1,281,167 images in batches of 2048 (J), 40 of warmup (P)."""
    return PretrainConfig(
        model=_model(name),
        data=DataConfig(workers=12),
        steps=300 * 1_281_167 // 2048,
        batch_size=2048,
        checkpoint_every=2500,
        monitor_every=2500,
    )


RECIPES: dict[str, Callable[[], PretrainConfig]] = {
    recipe.__name__.replace("_", "-"): recipe
    for recipe in (
        iwm_tiny, iwm_tiny_inv, iwm_equi_18_384, iwm_equi_12_384, iwm_inv_12_384, iwm_equi_36_512,
        iwm_inv_18_384_l16,
    )
}  # fmt: skip


def find_recipe(name: str) -> PretrainConfig:
    """The configuration of a recipe.

    Raises:
        UnknownModelError: no such recipe; the nearest names are in the message.
    """
    if name not in RECIPES:
        raise UnknownModelError(f'No recipe is called "{name}".{nearest(name, RECIPES)}')
    return RECIPES[name]()
