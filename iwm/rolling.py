"""Several predictions in a row, and the mean of many.

A prediction lives in the space of encodings, so that it can be acted on again; every step adds
its own error. `invariant` averages over actions instead [arXiv 2403.00504, appendix H].
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from iwm.actions import CLEAN, Action, Photometry, draw_photometry
from iwm.encoder import normalize_tokens
from iwm.errors import InvalidActionError
from iwm.fields import require_count
from iwm.latent import Latent

if TYPE_CHECKING:
    from iwm.world_model import WorldModel


def roll(model: WorldModel, latent: Latent, actions: Sequence[Action]) -> list[Latent]:
    """Latents after each of several actions, every prediction being the next one's source.

    Args:
        model: what acts.
        latent: B latents; each goes through all actions.
        actions: in order. An action with a clean source is applied on top of those before it;
            where the state so far is known and the two make one photometry (`Action.then`), the
            model is told the true source instead of a clean one.

    Raises:
        InvalidActionError: no action, or something that is none.
    """
    latents = []
    for action in chain(_listed(actions)):
        latent = model.apply_action(latent, action)
        latents.append(latent)
    return latents


def chain(actions: Sequence[Action]) -> list[Action]:
    """The same steps, each from where the one before it ended, as far as that can be said.

    >>> chain([Action(brightness=0.5), Action(hue=0.1)])[1]
    Action.between(Photometry(brightness=0.5), Photometry(brightness=0.5, hue=0.1))
    """
    steps: list[Action] = []
    for action in actions:
        if steps and isinstance(action, Action) and action.source.is_clean:
            # Where there is no single photometry, the model takes what it sees for a clean image.
            with contextlib.suppress(InvalidActionError):
                action = Action.between(steps[-1].target, steps[-1].then(action).target)
        steps.append(action)
    return steps


@torch.no_grad()
def invariant(
    model: WorldModel, latent: Latent, n: int = 16, actions: Iterable[Action] | None = None, seed: int = 0
) -> Latent:
    """The mean prediction over many actions, normalised like every latent [app. H].

    Args:
        model: what acts.
        latent: B latents.
        n: actions that are drawn as training draws its targets; every latent gets the same.
        actions: take these instead.
        seed: of the draw.

    Returns:
        B latents. Marginalised like this, a latent keeps what it says about the image: the paper
        finds the clean image nearest to it, and no gain in classification [table S6].

    Raises:
        InvalidActionError: `actions` is empty, or holds something that is none.
        InvalidConfigError: `n` is less than 1.
    """
    if actions is None:
        require_count("n", n)
        config = model.config.actions
        drawn_from = config.distribution if config.symmetric else config.distribution.without_destructive()
        rows = draw_photometry(drawn_from, seed=seed, keys=[(0, i) for i in range(n)])
        actions = [Action.between(CLEAN, Photometry.from_params(row)) for row in rows]
    actions = _listed(actions)
    means = [model.apply_action(one, actions).tokens.mean(dim=0, keepdim=True) for one in latent]
    if not means:
        raise InvalidActionError("Nothing to do: pass at least one latent.")
    return Latent(normalize_tokens(torch.cat(means)), latent.grid, latent.space)


def _listed(actions: object) -> list[Action]:
    """What was passed as several actions, checked to be some."""
    listed = list(actions) if isinstance(actions, Iterable) else []
    if not listed or not all(isinstance(action, Action) for action in listed):
        raise InvalidActionError(
            "Expected a list of at least one iwm.Action; write [iwm.Action(brightness=1.4)]."
        )
    return listed
