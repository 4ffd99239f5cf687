"""Latents averaged over actions [arXiv 2403.00504, appendix H, table S6].

z_inv = 1/N sum_i p(f(x), A_i): what is predicted of an image under N random actions, averaged. The
encoder runs once; the world model N times.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from iwm.actions import draw_photometry
from iwm.encoder import normalize_tokens
from iwm.photometry import IDENTITY
from iwm.world_model import WorldModel

_STREAM = 17


@torch.no_grad()
def marginalised(model: WorldModel, tokens: Tensor, count: int, seed: int, indices: Sequence[int]) -> Tensor:
    """Predictions under random actions, averaged, `[B, N, D]`.

    Args:
        model: whose world model predicts; it must still fit its encoder.
        tokens: encodings of clean images `[B, N, D]`.
        count: actions an image.
        seed, indices: every action is a function of the seed, its image's index and its number.
    """
    device = tokens.device
    side = model.preprocess.size // model.config.encoder.patch_size
    actions = model.config.actions
    drawn_from = actions.distribution if actions.symmetric else actions.distribution.without_destructive()
    total = torch.zeros_like(tokens)
    for number in range(count):
        keys = [(index, number) for index in indices]
        target = draw_photometry(drawn_from, seed=seed, keys=keys, stream=_STREAM)
        params = torch.stack((torch.tensor(IDENTITY).expand_as(target), target), dim=1)
        vectors = model.encode_photometry(params.to(device))
        total += normalize_tokens(model.predictor(tokens, vectors, (side, side)).float())
    return total / count
