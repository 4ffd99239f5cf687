"""The main job on a few photographs: act in latent space, retrieve the view asked for.

As in the paper's figure 1 [arXiv 2403.00504, section 4.3]: the world model transforms the
latent of a photograph, and the nearest entry is looked up in a bank of transformed views.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from torch import Tensor

from iwm.actions import CLEAN, Action, Photometry
from iwm.bank import Bank
from iwm.errors import InvalidConfigError
from iwm.evaluation.mrr import draw_views
from iwm.opening import ImageLike
from iwm.world_model import WorldModel

Pixels: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"

NEAREST = 3
"""Retrieved views shown per action."""

ACTIONS: dict[str, Action] = {
    "brighter": Action(brightness=1.4),
    "darker": Action(brightness=0.6),
    "more contrast": Action(contrast=1.4),
    "less colour": Action(saturation=0.65),
    "hue shifted": Action(hue=0.15),
    "grayscale": Action(grayscale=True),
    "solarized": Action(solarize=True),
    "blurred": Action(blur=1.5),
    "darker, hue shifted": Action(brightness=0.7, hue=-0.15),
    "flat and yellower": Action(contrast=0.6, hue=0.06),
}
"""What the demo asks for, by what to call it."""


@dataclass(frozen=True)
class Retrieval:
    """One action on one photograph, and what was found.

    Attributes:
        name: what to call the action.
        action: the action.
        source: the view that is acted on, as the model sees it, `[3, S, S]` array in [0, 1].
        asked: the true view.
        found: the nearest views of the bank, nearest first.
        right: for each of them, whether it is the view asked for.
        rank: rank of the view asked for in the bank, from 1.
        bank_size: views in the bank.
        photometries: of `found`.
        distances: of `found` to the prediction.
    """

    name: str
    action: Action
    source: Pixels
    asked: Pixels
    found: list[Pixels]
    right: list[bool]
    rank: int
    bank_size: int
    photometries: list[Photometry] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)


def photographs() -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """Four public-domain photographs that scikit-image ships: astronaut, cat, coffee, rocket.

    Raises:
        InvalidConfigError: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise InvalidConfigError(
            'The default photographs come with scikit-image: pip install "iwm[demo]". Or name your own: iwm demo photo.jpg'
        ) from error
    return [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]


def retrieve(
    model: WorldModel,
    images: Sequence[ImageLike],
    actions: dict[str, Action] | None = None,
    *,
    bank_size: int = 256,
    seed: int = 0,
) -> Iterator[Retrieval]:
    """Apply each action to a photograph in latent space and look the prediction up.

    Photographs take turns. The bank of each holds the views that all `actions` lead to, those that
    they start from where these are not clean, and random ones, drawn as for `iwm.evaluation.mrr`.

    Args:
        model: the world model.
        images: photographs, at least one.
        actions: by name; `ACTIONS` by default.
        bank_size: views in a bank, at least as many as those of the actions.
        seed: of the random views.

    Raises:
        InvalidConfigError: no images, or a bank that is too small.
    """
    actions = ACTIONS if actions is None else actions
    own = _own_views(actions)
    least = max(len(own), NEAREST)
    if bank_size < least:
        raise InvalidConfigError(f"bank_size is {bank_size}; it must be at least {least}.")
    if not images:
        raise InvalidConfigError("The demo needs at least one photograph.")
    return _retrieve(model, images, actions, own, bank_size, seed)


def _own_views(actions: dict[str, Action]) -> list[Photometry]:
    """Where the actions lead, then the transformed views they start from; every view once."""
    starts = (action.source for action in actions.values() if not action.source.is_clean)
    return list(dict.fromkeys([*(action.target for action in actions.values()), *starts]))


def _retrieve(
    model: WorldModel,
    images: Sequence[ImageLike],
    actions: dict[str, Action],
    own: list[Photometry],
    bank_size: int,
    seed: int,
) -> Iterator[Retrieval]:
    prepared: dict[int, tuple[Tensor, list[Action], Bank]] = {}
    for row, (name, action) in enumerate(actions.items()):
        turn = row % len(images)
        if turn not in prepared:
            pixels = model.preprocess.one(images[turn])
            params = draw_views(model, bank_size - len(own), seed=seed, index=turn)
            photometries = own + [Photometry.from_params(p) for p in params]
            views = [Action.between(CLEAN, photometry) for photometry in photometries]
            prepared[turn] = pixels, views, Bank.from_views(model, pixels, views)
        pixels, views, bank = prepared[turn]
        source = Action.between(CLEAN, action.source).apply(pixels)
        hits = bank.search(model.predict(source, action), k=bank_size)
        ranking = [int(i) for i in hits.ids[0]]
        nearest, asked = ranking[:NEAREST], own.index(action.target)
        yield Retrieval(
            name=name,
            action=action,
            source=source.cpu().numpy(),
            asked=views[asked].apply(pixels).cpu().numpy(),
            found=[views[i].apply(pixels).cpu().numpy() for i in nearest],
            right=[i == asked for i in nearest],
            rank=ranking.index(asked) + 1,
            bank_size=bank_size,
            photometries=[views[i].target for i in nearest],
            distances=hits.distances[0, :NEAREST].tolist(),
        )
