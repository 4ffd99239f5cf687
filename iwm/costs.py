"""How far predictions land from a latent: what reading an edit minimises, and what it may take of memory.

Shape legend: P pairs, H hypotheses of one pair, N patches, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from iwm.encoder import normalize_tokens
from iwm.photometry import IDENTITY

if TYPE_CHECKING:
    from iwm.latent import Latent
    from iwm.predictor import Predictor
    from iwm.world_model import WorldModel

Cost = Callable[[Tensor], Tensor]
"""From photometries `[P, H, 7]` to costs `[P, H]`, differentiable where a gradient is asked for."""

BATCH = 64
"""Predictions at a time, at most; more are no faster."""
GRADIENT_BYTES = 1 << 30
"""Of the activations that predictions keep for a gradient."""


def latent_cost(model: WorldModel, before: Latent, after: Latent) -> Cost:
    """Mean squared distance between predictions and latents, for P pairs.

    A model that was trained to apply every operation predicts `after` from `before`. One whose
    targets had jitter alone was trained to undo the destructive ones: it predicts `before` from
    `after`. Gradients reach the photometries alone, not the model's weights.
    """
    forward = model.config.actions.symmetric
    source, target = (before, after) if forward else (after, before)
    like = model._like
    tokens, wanted = _plain(source.tokens.to(like)), _plain(target.tokens.float().to(like.device))
    clean = torch.tensor(IDENTITY, device=like.device)
    predictor = _frozen(model.predictor)

    def cost(params: Tensor) -> Tensor:
        rows = params.flatten(0, 1).to(like.device)
        views = [clean.expand_as(rows), rows]
        vectors = model.encode_photometry(torch.stack(views if forward else views[::-1], dim=1))
        sources = tokens if len(tokens) == 1 else tokens.repeat_interleave(params.shape[1], 0)
        predicted = normalize_tokens(predictor(sources, vectors, source.grid)).float()
        difference = predicted.view(*params.shape[:2], *wanted.shape[1:]) - wanted.unsqueeze(1)
        costs: Tensor = difference.square().mean(dim=(2, 3))
        return costs

    return cost


def predictions_at_a_time(model: WorldModel, patches: int) -> int:
    """Predictions of N patches whose activations, kept for the gradient, stay within `GRADIENT_BYTES`."""
    predictor = model.config.predictor
    length = predictor.tokens_for_an_action(patches)
    attended_to = patches * (2 if predictor.layout == "append" else 1)
    # A block keeps about ten tensors of its width, the hidden layer twice, and three attention maps.
    of_width = predictor.width * (10.0 + 2.0 * predictor.mlp_ratio)
    block = length * (of_width + 3.0 * model.config.encoder.heads * attended_to)
    size = block * predictor.depth * model._like.element_size()
    return min(max(int(GRADIENT_BYTES / size), 1), BATCH)


def _frozen(predictor: Predictor) -> Predictor:
    """A twin on the same memory whose weights ask for no gradient; the model's own stay as they are."""
    weights = {id(p): nn.Parameter(_plain(p.detach()), requires_grad=False) for p in predictor.parameters()}
    return copy.deepcopy(predictor, dict(weights))


def _plain(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one made in inference mode, which no gradient can pass."""
    return tensor.clone() if tensor.is_inference() else tensor
