"""Configuration of a pretraining run; contains the model's, never the reverse."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from iwm.config import WorldModelConfig
from iwm.fields import require
from iwm.training.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Block masks of the source view [App. A.1].

    Attributes:
        blocks: rectangles whose union is dropped.
        scale: range of a block's share of the area.
        aspect: range of its height over its width.
        unmasked: share of steps without any mask, the case that inference uses (ours).
    """

    blocks: int = 4
    scale: tuple[float, float] = (0.15, 0.2)
    aspect: tuple[float, float] = (0.75, 1.5)
    unmasked: float = 0.0

    def __post_init__(self) -> None:
        require(1 <= self.blocks <= 64, f"masks.blocks is {self.blocks}; it must be 1 to 64.")
        low, high = self.scale
        require(0 < low <= high < 1, f"masks.scale is {self.scale}; use 0 < low <= high < 1.")
        low, high = self.aspect
        require(0 < low <= high, f"masks.aspect is {self.aspect}; use 0 < low <= high.")
        require(0 <= self.unmasked <= 1, f"masks.unmasked is {self.unmasked}; it must be 0 to 1.")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """A pretraining run.

    Attributes:
        model: what is trained.
        masks: block masks of the source.
        clean: share of pairs with an untouched source, and of pairs with an untouched target (ours).
        collapse_below: standard deviation of target tokens over the batch, averaged over some
            steps, below which the run stops; 0 never stops it.
        init_encoder: start from an encoder that somebody has trained: `timm:<name>`, or a
            safetensors file; see `iwm.pretraining.warm_start`. Empty starts at random.
        freeze_encoder: train the world model alone.
        ema: the teacher's momentum at the first step; it rises linearly to 1.
    """

    model: WorldModelConfig = field(default_factory=WorldModelConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    clean: float = 0.0
    collapse_below: float = 0.02
    init_encoder: str = ""
    freeze_encoder: bool = False
    ema: float = 0.996

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.ema <= 1, f"ema is {self.ema}; it must be 0 to 1.")
        require(0 <= self.clean <= 0.5, f"clean is {self.clean}; it must be 0 to 0.5.")
        require(
            self.model.preprocess.size == self.model.encoder.image_size,
            f"model.preprocess.size is {self.model.preprocess.size} and model.encoder.image_size "
            f"{self.model.encoder.image_size}; training needs them equal, so set both.",
        )
        size, patch = self.model.preprocess.size, self.model.encoder.patch_size
        require(
            size // patch >= 2,
            f"A grid of {size // patch} x {size // patch} patches leaves nothing to mask; use a larger "
            "preprocess.size or smaller patches.",
        )

    def replace(self, **changes: Any) -> "PretrainConfig":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)
