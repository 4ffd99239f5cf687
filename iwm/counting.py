"""Parameters of networks, counted from their sizes in closed form, before anything is built.

A config may be a stranger's: what it asks for must be known without allocating it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iwm.config import (
        AdapterConfig,
        DecoderConfig,
        EncoderConfig,
        PredictorConfig,
        TaskConfig,
        WorldModelConfig,
    )


def count_encoder(config: EncoderConfig) -> int:
    """Parameters of an encoder."""
    width = config.width
    positions = config.grid**2 * width if config.positions == "learned" else 0
    return (
        config.depth * _block(width, config.mlp_ratio) + 3 * config.patch_size**2 * width + width + positions
    )


def count_predictor(config: PredictorConfig, encoder_width: int, action_size: int) -> int:
    """Parameters of a predictor over latents of `encoder_width`, for action vectors of `action_size`."""
    width = config.width
    total = 2 * encoder_width * width + width + encoder_width  # Linear in and out.
    total += width + 2 * width  # Mask token, final norm.
    block = _block(width, config.mlp_ratio)
    if config.conditioning == "feature":
        total += (width + action_size) * width + 2 * width**2 + 3 * width
    elif config.conditioning == "sequence":
        total += 2 * action_size * width
    elif config.conditioning == "adaln":
        total += action_size * width + width**2 + 2 * width
        block += 6 * width**2 + 6 * width - 4 * width  # Modulation; its norms have no weights.
    return total + config.depth * block


def count_adapter(config: AdapterConfig, model: WorldModelConfig, action_size: int) -> int:
    """Parameters of an adapter on a model: its own predictor, tokens and heads."""
    width = (config.predictor or model.predictor).width
    total = sum(count_head(task, read_width(config, task, model)) for task in config.tasks.values())
    if config.reads == "encoder":
        return total
    total += count_predictor(config.predictor, model.encoder.width, action_size) if config.predictor else 0
    total += width if config.output == "token" else 0
    return total + (len(config.tasks) * width if len(config.tasks) > 1 else 0)


def count_statistics(config: AdapterConfig, model: WorldModelConfig) -> int:
    """Values of an adapter's batch norms that are stored beside its parameters."""
    total = 0
    for task in config.tasks.values():
        width = read_width(config, task, model)
        if task.head == "upernet":
            total += 2 * (width + 12 * upernet_channels(task, width))
        elif task.batch_norm:
            total += 2 * width
    return total


def read_width(config: AdapterConfig, task: TaskConfig, model: WorldModelConfig) -> int:
    """Width of the tokens that a task's head reads: those between the blocks for segmentation."""
    if config.reads == "predictor" and task.kind == "segmentation":
        return (config.predictor or model.predictor).width
    return model.encoder.width


def count_head(task: TaskConfig, width: int) -> int:
    """Parameters of a head that reads tokens of `width`."""
    classes = len(task.labels)
    if task.head == "linear":
        return (width + 1) * classes
    if task.head == "attentive":  # Query, norm; keys and values, linear out; classes.
        return 3 * width + 2 * width * (width + 1) + width * (width + 1) + (width + 1) * classes
    c = upernet_channels(task, width)
    scaled = 3 * (4 * width**2 + width) + 2 * width  # Three deconvolutions and a norm.
    pooled = 4 * (width * c + 2 * c) + 9 * (width + 4 * c) * c + 2 * c
    merged = 3 * (width * c + 2 * c) + 3 * (9 * c**2 + 2 * c) + 9 * 4 * c**2 + 2 * c
    return scaled + pooled + merged + (c + 1) * classes


def upernet_channels(task: TaskConfig, width: int) -> int:
    """Channels inside an UperNet head: by default 512 as in the original, fewer for narrow tokens."""
    return task.channels or min(512, width)


def count_decoder(config: DecoderConfig, model: WorldModelConfig) -> int:
    """Parameters of a decoder of a model's latents."""
    width = config.width
    factors = decoder_factors(model.encoder.patch_size)
    channels = decoder_channels(width, len(factors))
    total = (model.encoder.width + 1) * width + config.depth * _block(width, 4.0) + 2 * width
    for before, after, factor in zip(channels[:-1], channels[1:], factors, strict=True):
        spread = after * factor**2
        total += 9 * before * spread + spread + 9 * after**2 + after
    return total + 9 * channels[-1] * 3 + 3


def decoder_factors(patch_size: int) -> list[int]:
    """How a decoder gets from patches to pixels: the prime factors of the patch, largest first."""
    factors, rest, factor = [], patch_size, 2
    while rest > 1:
        while rest % factor == 0:
            factors.append(factor)
            rest //= factor
        factor += 1
    return factors[::-1]


def decoder_channels(width: int, stages: int) -> list[int]:
    """Channels before and after every stage: halved each time, 32 at least, or the width."""
    return [width] + [min(width, max(32, width >> stage + 1)) for stage in range(stages)]


def _block(width: int, mlp_ratio: float) -> int:
    """Attention, MLP and two norms."""
    hidden = int(width * mlp_ratio)
    return 4 * width**2 + 4 * width + 2 * width * hidden + hidden + width + 4 * width
