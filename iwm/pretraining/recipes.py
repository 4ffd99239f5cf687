"""Pretraining recipes: one function a zoo entry.

In the docstrings and comments, P marks the paper's values [arXiv 2403.00504, App. A.1, table
S2], J those of the I-JEPA lineage where the paper is silent, O ours. Overrides from the command
line are typed and dotted, e.g. `--model.predictor.depth 12 --optim.lr 5e-4`.
"""

from collections.abc import Callable

from iwm.config import (
    STRENGTHS,
    ActionConfig,
    EncoderConfig,
    PhotometryDistribution,
    PredictorConfig,
    PreprocessConfig,
    WorldModelConfig,
)
from iwm.errors import UnknownModelError, nearest
from iwm.pretraining.config import MaskConfig, PretrainConfig
from iwm.training.config import OptimConfig

_IMAGENET_EPOCH = 1_281_167 / 2048
_VIT_B = EncoderConfig(width=768, depth=12, heads=12)
_VIT_L = EncoderConfig(width=1024, depth=24, heads=16)


def iwm_tiny() -> PretrainConfig:
    """The embedded model: 256 x 6 encoder, 192 x 5 predictor, 128 px, all of it ours (O).

    Command: `iwm pretrain --recipe iwm-tiny --data FOLDER --out DIR`.
    """
    return PretrainConfig(
        model=WorldModelConfig(
            name="iwm-tiny",
            encoder=EncoderConfig(width=256, depth=6, heads=4, image_size=128),
            predictor=PredictorConfig(width=192, depth=5, layout="inplace", conditioning="adaln"),
            actions=ActionConfig(encoding="pair", distribution=STRENGTHS["strong"], symmetric=True),
            preprocess=PreprocessConfig(size=128, resize=128),
        ),
        masks=MaskConfig(unmasked=0.15),
        optim=OptimConfig(lr_start=0.0, warmup=0.1, weight_decay_end=0.04, clip=3.0),
        steps=12_000,
        batch_size=64,
    )


RECIPES: dict[str, Callable[[], PretrainConfig]] = {"iwm-tiny": iwm_tiny}
