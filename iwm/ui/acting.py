"""What the tabs *Act* and *Grid* show: an action in latent space, what it retrieves, and the control.

The control is the true transformation of the pixels, which the model never sees as a query. The grid
sweeps one parameter, as the paper's figures S9 to S11 do [arXiv 2403.00504, appendix F].
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from PIL import Image

from iwm.actions import CLEAN, Action, Photometry
from iwm.images import to_pil
from iwm.latent import Latent
from iwm.ui.photo import Photo, encode_photo
from iwm.ui.places import Search, Shelf, Views
from iwm.ui.sliders import Slider
from iwm.world_model import WorldModel

NEAREST = 6
"""Pictures shown for an action."""
IN_A_ROW = 3
"""Pictures shown in a row of the grid."""
ROWS = 5


@dataclass(frozen=True, eq=False, kw_only=True)
class Acted:
    """One action on one photograph.

    Attributes:
        view: what was asked for.
        source: the photograph as the model sees it.
        true: its pixels, transformed.
        imagined: the prediction, decoded; None where the model has no decoder.
        found: what is nearest to the prediction.
    """

    view: Photometry
    source: Image.Image
    true: Image.Image
    imagined: Image.Image | None
    found: Search


def act(
    model: WorldModel, photo: Photo, view: Photometry, place: Views | Shelf, *, k: int = NEAREST
) -> Acted:
    """Act on a photograph in latent space, and look the prediction up.

    Args:
        model: what acts.
        photo: on what.
        view: how it should look.
        place: the photograph's own views, or a library.
        k: how many of the nearest to show.

    Raises:
        IncompatibleLatentError: the library is of another model.
    """
    action = Action.between(CLEAN, view)
    predicted = photo.latent if action.is_identity else model.apply_action(photo.latent, action)
    true = action.apply(photo.pixels)
    if isinstance(place, Views):
        asked = photo if action.is_identity else encode_photo(model, true, photo.name)
        found = place.asked(predicted, view, asked.latent, k)
    else:
        found = place.nearest(predicted, k)
    return Acted(
        view=view, source=photo.picture, true=to_pil(true), imagined=decoded(model, predicted), found=found
    )


def sweep(
    model: WorldModel, photo: Photo, slider: Slider, place: Views | Shelf, *, rows: int = ROWS
) -> list[Acted]:
    """One parameter from one end of its range to the other, all others untouched."""
    values = [bool(value) if slider.switch else value for value in slider.values(rows)]
    views = [dataclasses.replace(CLEAN, **{slider.name: value}) for value in values]  # type: ignore[arg-type]
    return [act(model, photo, view, place, k=IN_A_ROW) for view in views]


def decoded(model: WorldModel, latent: Latent) -> Image.Image | None:
    """What a latent stands for, in pixels; None where the model has no decoder."""
    return None if model.config.decoder is None else to_pil(model.decode(latent)[0])
