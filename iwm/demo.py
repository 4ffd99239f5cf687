"""The main job on a few photographs: act in latent space, retrieve the view asked for.

As in the paper's figure 1 [arXiv 2403.00504, section 4.3]: the world model transforms the
latent of a photograph, and the nearest entry is looked up in a bank of transformed views.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from iwm.actions import Action
from iwm.bank import Bank
from iwm.errors import InvalidConfigError
from iwm.images import ImageLike
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
        source: the photograph as the model sees it, `[3, S, S]` array in [0, 1].
        asked: the true view.
        found: the nearest views of the bank, nearest first.
        right: for each of them, whether it is the view asked for.
        rank: rank of the view asked for in the bank, from 1.
        bank_size: views in the bank.
    """

    name: str
    action: Action
    source: Pixels
    asked: Pixels
    found: list[Pixels]
    right: list[bool]
    rank: int
    bank_size: int


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
) -> Iterable[Retrieval]:
    """Apply each action to a photograph in latent space and look the prediction up.

    Photographs take turns. The bank of each holds the views of all `actions` and random ones
    of the model's training strength.

    Args:
        model: the world model.
        images: photographs.
        actions: by name, from a clean source; `ACTIONS` by default.
        bank_size: views in a bank, at least as many as actions.
        seed: of the random views.
    """
    actions = ACTIONS if actions is None else actions
    asked = list(actions.values())
    if bank_size < max(len(asked), NEAREST):
        raise InvalidConfigError(
            f"bank_size is {bank_size}; the demo needs at least {max(len(asked), NEAREST)}."
        )
    banks: dict[int, Bank] = {}
    for row, (name, action) in enumerate(actions.items()):
        turn = row % len(images)
        pixels = model.preprocess.one(images[turn])
        views = asked + Action.sample(bank_size - len(asked), seed=seed + turn)
        if turn not in banks:
            banks[turn] = Bank.from_views(model, images[turn], views)
        ranking = banks[turn].search(model.predict(pixels, action), k=bank_size).ids[0]
        nearest = [int(i) for i in ranking[:NEAREST]]
        yield Retrieval(
            name=name,
            action=action,
            source=pixels.numpy(),
            asked=action.apply(pixels).numpy(),
            found=[views[i].apply(pixels).numpy() for i in nearest],
            right=[i == row for i in nearest],
            rank=ranking.index(row) + 1,
            bank_size=bank_size,
        )
