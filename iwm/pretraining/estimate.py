"""What a pretraining run will take, without training: parameters, FLOPs, memory, pace."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from iwm.pretraining.config import PretrainConfig
from iwm.pretraining.masks import draw_masks
from iwm.world_model import WorldModel

_SAMPLED_STEPS = 64
_BYTES_PER_VALUE = 34
"""Activations kept for the backward pass, in bytes a token and feature of a block, under bf16
(Korthikanti et al. 2022, equation 2, without the attention matrix)."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will take.

    Attributes:
        encoder, predictor: parameters.
        visible: mean share of the source's patches that the student sees.
        flops_per_image: of one training image: the student and the predictor forward and
            backward (three times forward), the teacher forward.
        predictor_share: FLOPs of the predictor over those of the encoder, as in inference,
            whole image.
        weights_bytes: of weights, gradients, AdamW's two averages and the teacher.
        activation_bytes: of one process's piece of a batch, about; twice as much where
            attention is not fused.
        steps, images: of the whole run.
    """

    encoder: int
    predictor: int
    visible: float
    flops_per_image: float
    predictor_share: float
    weights_bytes: int
    activation_bytes: int
    steps: int
    images: int

    def pace(self, hours: float) -> float:
        """Images a second that finish the run in so many hours."""
        return self.images / (hours * 3600)


def estimate(config: PretrainConfig, processes: int = 1) -> Estimate:
    """Work out what a run will take; builds nothing but shapes."""
    with torch.device("meta"):
        model = WorldModel(config.model).to("meta")  # Its few constants too.
        images = torch.zeros(1, 3, config.model.preprocess.size, config.model.preprocess.size)
        action = model.encode_photometry(torch.ones(1, 2, 7))
    grid = model.encoder.grid_of(images)
    count = grid[0] * grid[1]
    kept = [
        count if masks is None else masks[0].shape[1]
        for step in range(_SAMPLED_STEPS)
        for masks in [draw_masks(config.masks, grid, seed=config.seed, step=step, keys=[(0, 0)])]
    ]
    visible = round(sum(kept) / len(kept))
    index = torch.arange(visible, device="meta").expand(1, -1)
    targets = None
    if config.model.predictor.layout == "append" and visible < count:
        targets = torch.arange(count - visible, device="meta").expand(1, -1)
    teacher = _flops(lambda: model.encoder(images))
    student = _flops(lambda: model.encoder(images, index))
    source = torch.zeros(1, visible, config.model.encoder.width, device="meta")
    predictor = _flops(lambda: model.predictor(source, action, grid, index, targets))
    whole = torch.zeros(1, count, config.model.encoder.width, device="meta")
    inference = _flops(lambda: model.predictor(whole, action, grid))
    encoder_size, predictor_size = config.model.counts
    e, p = config.model.encoder, config.model.predictor
    tokens = count if p.layout == "inplace" else visible + (count - visible)
    values = visible * e.width * e.depth + tokens * p.width * p.depth
    rows = config.batch_size // processes // config.accumulate
    return Estimate(
        encoder=encoder_size,
        predictor=predictor_size,
        visible=visible / count,
        flops_per_image=3 * (student + predictor) + teacher,
        predictor_share=inference / teacher,
        weights_bytes=16 * (encoder_size + predictor_size) + 4 * encoder_size,
        activation_bytes=_BYTES_PER_VALUE * values * rows,
        steps=config.steps,
        images=config.steps * config.batch_size,
    )


def _flops(call: object) -> float:
    with FlopCounterMode(display=False) as counter:
        call()  # type: ignore[operator]
    return float(counter.get_total_flops())
