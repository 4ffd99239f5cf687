"""How much of a photograph a decoder gets back, from encodings and from predictions.

PSNR and SSIM are scikit-image's, on pixels in [0, 1]. Predictions are set against the same action
in pixels, beside two bounds: what decoding the transformed photograph's own encoding gives, which
a perfect world model would reach, and what decoding the untouched photograph gives, which is what
ignoring the action would reach.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.actions import CLEAN, Action, Photometry
from iwm.errors import InvalidConfigError, InvalidDataError
from iwm.evaluation.mrr import draw_views, target_distribution
from iwm.opening import ImageLike
from iwm.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """Of two sets of images, averaged over them.

    Attributes:
        psnr: peak signal-to-noise ratio in decibels.
        ssim: structural similarity, 1 for equal images.
    """

    psnr: float
    ssim: float


@dataclass(frozen=True, kw_only=True)
class ReconstructionReport:
    """Scores of a decoder.

    Attributes:
        encoded: decode(encode(x)) against x.
        predicted: decode(apply_action(encode(x), a)) against a(x), the action in pixels.
        transformed: decode(encode(a(x))) against a(x): a perfect world model.
        untouched: decode(encode(x)) against a(x): no action.
        images, actions, seed: what was measured.
    """

    encoded: Closeness
    predicted: Closeness
    transformed: Closeness
    untouched: Closeness
    images: int
    actions: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


@torch.no_grad()
def reconstruction(
    model: WorldModel, images: Sequence[ImageLike], *, actions: int = 4, seed: int = 0
) -> ReconstructionReport:
    """Measure a model's decoder on photographs it was not trained on.

    Args:
        model: with a decoder.
        images: any number.
        actions: random ones for each, drawn as for the mean reciprocal rank; of jitter alone for a
            model whose training targets had no more.
        seed: of the actions.

    Raises:
        WeightsUnavailableError: the model has no decoder.
        InvalidDataError: no images.
        InvalidConfigError: scikit-image is not installed.
    """
    try:
        import skimage.metrics  # noqa: F401
    except ImportError as error:
        raise InvalidConfigError('PSNR and SSIM need scikit-image: pip install "iwm[demo]"') from error
    if not images:
        raise InvalidDataError("Nothing to decode: pass at least one image.")
    model.load_decoder()
    drawn_from = target_distribution(model)
    scores: dict[str, list[tuple[float, float]]] = {
        name: [] for name in ("encoded", "predicted", "transformed", "untouched")
    }
    for index, image in enumerate(images):
        pixels = model.preprocess([image]).to(model.device)
        params = draw_views(model, actions, distribution=drawn_from, seed=seed, index=index)
        drawn = [Action.between(CLEAN, Photometry.from_params(row)) for row in params]
        views = torch.cat([action.apply(pixels) for action in drawn])
        latent = model.encode(pixels)
        seen = model.decode(latent)
        scores["encoded"] += _closeness(seen, pixels)
        scores["predicted"] += _closeness(model.decode(model.apply_action(latent, drawn)), views)
        scores["transformed"] += _closeness(model.decode(model.encode(views)), views)
        scores["untouched"] += _closeness(seen.expand_as(views), views)
    means = {name: np.mean(values, axis=0) for name, values in scores.items()}
    return ReconstructionReport(
        **{name: Closeness(psnr=float(mean[0]), ssim=float(mean[1])) for name, mean in means.items()},
        images=len(images), actions=actions, seed=seed,
    )  # fmt: skip


def _closeness(images: Tensor, references: Tensor) -> list[tuple[float, float]]:
    """PSNR and SSIM of each of `[B, 3, H, W]`; equal images count as 100 dB."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    pairs = zip(images.float().cpu().numpy(), references.float().cpu().numpy(), strict=True)
    found = []
    for image, reference in pairs:
        with np.errstate(divide="ignore"):
            psnr = peak_signal_noise_ratio(reference, image, data_range=1.0)
        ssim = structural_similarity(reference, image, data_range=1.0, channel_axis=0)
        found.append((min(float(psnr), 100.0), float(ssim)))
    return found
