"""What a pretraining run will take, without training: parameters, FLOPs, memory, pace."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
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
            backward (three times forward; a frozen student forward only), the teacher forward.
        predictor_share: FLOPs of the predictor over those of the encoder, as in inference,
            whole image.
        weights_bytes: of weights, gradients, AdamW's two averages and the teacher, in float32.
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
    size = config.model.preprocess.size
    images = torch.zeros(1, 3, size, size, device="meta")
    flops, seen = _training_image(config, model, images)
    grid = model.encoder.grid_of(images)
    tokens = model.encoder(images)
    inference = _flops(lambda: model.predictor(tokens, _action(model), grid))
    encoder_size, predictor_size = config.model.counts
    e, p = config.model.encoder, config.model.predictor
    student_values = 0 if config.freeze_encoder else seen * e.width * e.depth
    rows = config.batch_size // processes // config.accumulate
    return Estimate(
        encoder=encoder_size,
        predictor=predictor_size,
        visible=seen,
        flops_per_image=flops,
        predictor_share=inference / _flops(lambda: model.encoder(images)),
        weights_bytes=16 * predictor_size + (8 if config.freeze_encoder else 20) * encoder_size,
        activation_bytes=round(
            _BYTES_PER_VALUE * rows * grid[0] * grid[1] * (student_values + p.width * p.depth)
        ),
        steps=config.steps,
        images=config.steps * config.batch_size,
    )


def _training_image(config: PretrainConfig, model: WorldModel, images: Tensor) -> tuple[float, float]:
    """FLOPs of one image, and the mean share of its patches that the student sees."""
    grid = model.encoder.grid_of(images)
    count = grid[0] * grid[1]
    drawn = [
        draw_masks(config.masks, grid, seed=config.seed, step=step, keys=[(0, 0)])
        for step in range(_SAMPLED_STEPS)
    ]
    kept = [masks[0].shape[1] for masks in drawn if masks is not None]
    masked_share = len(kept) / len(drawn)
    flops = _flops(lambda: model.encoder(images))
    if masked_share < 1:
        flops += (1 - masked_share) * _student_and_predictor(config, model, images, None)
    if kept:
        mean = round(sum(kept) / len(kept))
        flops += masked_share * _student_and_predictor(config, model, images, mean)
    return flops, (sum(kept) + (len(drawn) - len(kept)) * count) / (len(drawn) * count)


def _student_and_predictor(
    config: PretrainConfig, model: WorldModel, images: Tensor, visible: int | None
) -> float:
    """FLOPs forward and backward, with so many visible patches, or all."""
    grid = model.encoder.grid_of(images)
    index = targets = None
    if visible is not None:
        index = torch.arange(visible, device="meta").expand(1, -1)
        if config.model.predictor.layout == "append":
            targets = torch.arange(grid[0] * grid[1] - visible, device="meta").expand(1, -1)
    student = _flops(lambda: model.encoder(images, index))
    source = model.encoder(images, index)
    predictor = _flops(lambda: model.predictor(source, _action(model), grid, index, targets))
    return (1 if config.freeze_encoder else 3) * student + 3 * predictor


def _action(model: WorldModel) -> Tensor:
    return model.encode_photometry(torch.ones(1, 2, 7, device="meta"))


def _flops(call: object) -> float:
    with FlopCounterMode(display=False) as counter:
        call()  # type: ignore[operator]
    return float(counter.get_total_flops())
