"""The decoding task: pixels from the frozen teacher's latents.

Of every photograph one view is drawn, transformed or not; the loss is the mean absolute
difference between the view and what the decoder makes of its encoding.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iwm.actions import SampleKey, draw_photometry, uniforms
from iwm.decoder import Decoder
from iwm.decoding.config import DecodingConfig
from iwm.photometry import IDENTITY, transform
from iwm.training.loop import Task
from iwm.world_model import WorldModel

_VIEW_STREAM = 17
_CLEAN_STREAM = 18


class DecodingTask(Task):
    """Trains a decoder on a model that stays as it is."""

    def __init__(self, config: DecodingConfig, model: WorldModel, decoder: Decoder) -> None:
        super().__init__()
        self.config = config
        self.decoder = decoder
        model.requires_grad_(False)
        self._model = [model]  # No part of the state of a run.

    def trained(self) -> list[nn.Module]:
        """The decoder."""
        return [self.decoder]

    def forward(
        self, crops: Tensor, step: int, keys: Sequence[SampleKey]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch, and `psnr` of its views, in decibels."""
        encoder = self._model[0].encoder
        with torch.no_grad():
            with torch.autocast(crops.device.type, enabled=False):
                views = self.draw_views(crops, keys)
            tokens = encoder(views)
        pixels = self.decoder(tokens, encoder.grid_of(views)).float()
        error = F.mse_loss(pixels.detach().clamp(0, 1), views)
        return F.l1_loss(pixels, views), {"psnr": -10 * torch.log10(error.clamp_min(1e-10))}

    def draw_views(self, crops: Tensor, keys: Sequence[SampleKey]) -> Tensor:
        """Views `[B, 3, S, S]` in [0, 1] of crops `[B, 3, S, S]` uint8."""
        seed = self.config.seed
        params = draw_photometry(
            self._model[0].config.actions.distribution, seed=seed, keys=keys, stream=_VIEW_STREAM
        )
        u = uniforms(seed, keys, stream=_CLEAN_STREAM, count=1)[:, 0]
        params[u < self.config.clean] = torch.tensor(IDENTITY)
        return transform(crops.float() / 255.0, params)

    def after_step(self, step: int) -> dict[str, float]:
        """Nothing follows a step."""
        return {}
