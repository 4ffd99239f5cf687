"""Source and target views of a batch of crops [arXiv 2403.00504, section 3, App. A.1].

Both start from the same crop I'. The target gets a colour jitter, the source its own jitter and
the destructive operations; a symmetric model gives the target those too, so that it learns to
apply them and not only to undo them. The action leads from source to target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iwm.actions import SampleKey, draw_photometry, uniforms
from iwm.config import ActionConfig
from iwm.photometry import IDENTITY, transform

_SOURCE_STREAM = 4
_TARGET_STREAM = 5
_CLEAN_STREAM = 9


@dataclass(frozen=True)
class Views:
    """A batch of training pairs.

    Attributes:
        source, target: pixels `[B, 3, H, W]` in [0, 1].
        params: photometry of both, `[B, 2, 7]`.
    """

    source: Tensor
    target: Tensor
    params: Tensor


def make_views(
    crops: Tensor, config: ActionConfig, *, seed: int, keys: Sequence[SampleKey], clean: float = 0.0
) -> Views:
    """Draw and apply both photometries on the crops' device.

    Args:
        crops: `[B, 3, H, W]`, uint8.
        config: the source's distribution, and whether the target's is the same.
        seed, keys: every draw is a function of the seed and its sample's (epoch, index) alone.
        clean: share of pairs whose source is the crop itself, and as large a share whose target
            is (ours): edits of untouched photographs, and their undoing.
    """
    target_distribution = (
        config.distribution if config.symmetric else config.distribution.without_destructive()
    )
    source = draw_photometry(config.distribution, seed=seed, keys=keys, stream=_SOURCE_STREAM)
    target = draw_photometry(target_distribution, seed=seed, keys=keys, stream=_TARGET_STREAM)
    if clean:
        u = uniforms(seed, keys, stream=_CLEAN_STREAM, count=1)[:, 0]
        source[u < clean] = torch.tensor(IDENTITY)
        target[(u >= clean) & (u < 2 * clean)] = torch.tensor(IDENTITY)
    params = torch.stack((source, target), dim=1).to(crops.device, non_blocking=crops.is_cuda)
    pixels = crops.float() / 255.0
    return Views(transform(pixels, source), transform(pixels, target), params)
