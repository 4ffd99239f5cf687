"""What a pretraining run will take, without training: parameters, FLOPs, memory, pace."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from iwm.config import VECTOR_SIZE
from iwm.device import planned_device
from iwm.pretraining.config import PretrainConfig
from iwm.pretraining.masks import draw_masks
from iwm.world_model import WorldModel

_SAMPLED_STEPS = 64


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
        activation_bytes: kept by the blocks for the backward pass of one process's piece of a
            batch, in the step that masks least; embeddings and loss add a few per cent.
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
    grid = model.encoder.grid_of(images)
    drawn = _visible_counts(config, grid)
    teacher = _flops(lambda: model.encoder(images))
    flops = teacher + _trained_flops(config, model, images, drawn)
    tokens = model.encoder(images)
    inference = _flops(lambda: model.predictor(tokens, _action(model), grid))
    encoder_size, predictor_size = config.model.counts
    return Estimate(
        encoder=encoder_size,
        predictor=predictor_size,
        visible=sum(drawn) / len(drawn) / (grid[0] * grid[1]),
        flops_per_image=flops,
        predictor_share=inference / teacher,
        weights_bytes=16 * predictor_size + (8 if config.freeze_encoder else 20) * encoder_size,
        activation_bytes=config.rows(processes) * _activations(config, max(drawn), grid[0] * grid[1]),
        steps=config.steps,
        images=config.steps * config.batch_size,
    )


def _visible_counts(config: PretrainConfig, grid: tuple[int, int]) -> list[int]:
    """How many patches the student sees, in some steps."""
    drawn = [
        draw_masks(config.masks, grid, seed=config.seed, step=step, keys=[(0, 0)])
        for step in range(_SAMPLED_STEPS)
    ]
    return [grid[0] * grid[1] if masks is None else masks[0].shape[1] for masks in drawn]


def _activations(config: PretrainConfig, visible: int, count: int) -> int:
    """Bytes that the blocks keep for the backward pass of one image of so many patches.

    A block keeps its two norms' inputs in float32 and, in the precision of the run, the inputs of
    its four linear layers, queries, keys and values, and what goes into the activation function
    (Korthikanti et al. 2022, section 4.1, without dropout); `adaln` also what it scales.
    """
    e, p = config.model.encoder, config.model.predictor
    value = 2 if config.precision == "bf16" else 4
    plain = planned_device(config.device)[0].type == "cpu"  # See `prefer_plain_attention`.

    def blocks(
        depth: int, width: int, mlp_ratio: float, tokens: int, unseen: int = 0, scaled: bool = False
    ) -> float:
        features = 8 + (6 + 2 * mlp_ratio) * value + (8 + 2 * value if scaled else 0)
        one = tokens * width * features + (value * e.heads * (tokens**2 - unseen) if plain else 0)
        if config.activation_checkpointing:  # The inputs of all, and the one that is run again.
            return depth * tokens * width * 4 + one
        return depth * one

    whole = p.layout == "append" and visible == count  # Then as many mask tokens, one for each patch.
    tokens = count + (count if whole else 0)
    tokens += VECTOR_SIZE[config.model.actions.encoding] if p.conditioning == "sequence" else 0
    unseen = visible * (tokens - visible) if p.share_source else 0  # Mask tokens that no source token sees.
    predictor = blocks(p.depth, p.width, p.mlp_ratio, tokens, unseen=unseen, scaled=p.conditioning == "adaln")
    student = 0 if config.freeze_encoder else blocks(e.depth, e.width, e.mlp_ratio, visible)
    return round(student + predictor)


def _trained_flops(config: PretrainConfig, model: WorldModel, images: Tensor, drawn: list[int]) -> float:
    """FLOPs of one image but the teacher's, averaged over steps of which these numbers of patches are visible."""
    grid = model.encoder.grid_of(images)
    kept = [visible for visible in drawn if visible < grid[0] * grid[1]]
    masked_share = len(kept) / len(drawn)
    flops = 0.0
    if masked_share < 1:
        flops += (1 - masked_share) * _student_and_predictor(config, model, images, None)
    if kept:
        mean = round(sum(kept) / len(kept))
        flops += masked_share * _student_and_predictor(config, model, images, mean)
    return flops


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
