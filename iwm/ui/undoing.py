"""What the tab *Undo* shows: an edited photograph, its edit undone in latent space, and the original found.

The control is the search without undoing: how near the original is to the edited photograph itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from iwm.actions import CLEAN, Action, Photometry
from iwm.edits import in_words
from iwm.errors import InvalidConfigError
from iwm.ui.acting import NEAREST, decoded
from iwm.ui.photo import Photo, encode_photo
from iwm.ui.places import Search, Shelf, Views
from iwm.world_model import WorldModel


@dataclass(frozen=True, eq=False, kw_only=True)
class Undone:
    """An edit, undone.

    Attributes:
        edit: what is said to have been done.
        edited: the edited photograph as the model sees it.
        imagined: the prediction, decoded; None where the model has no decoder.
        found: what is nearest to the prediction.
        control: what is nearest to the edited photograph itself.
    """

    edit: Photometry
    edited: Image.Image
    imagined: Image.Image | None
    found: Search
    control: Search


@dataclass(frozen=True, kw_only=True)
class Reading:
    """An edit that the model has read.

    Attributes:
        edit: what seems to have been done.
        words: the same for people, with how sure the model is.
    """

    edit: Photometry
    words: str


def edit_photo(model: WorldModel, photo: Photo, edit: Photometry) -> Photo:
    """A photograph with its pixels transformed."""
    pixels = Action.between(CLEAN, edit).apply(photo.pixels)
    return encode_photo(model, pixels, photo.name)


def undo(
    model: WorldModel, edited: Photo, edit: Photometry, place: Views | Shelf, *, k: int = NEAREST
) -> Undone:
    """Undo an edit that is known, and look the prediction up.

    Args:
        model: what acts.
        edited: the edited photograph.
        edit: what was done to it.
        place: the original's views, or a library.
        k: how many of the nearest to show.

    Raises:
        IncompatibleLatentError: the library is of another model.
    """
    action = Action.between(edit, CLEAN)
    predicted = edited.latent if action.is_identity else model.apply_action(edited.latent, action)
    if isinstance(place, Views):
        found, control = (place.original(query, edited, k) for query in (predicted, edited.latent))
    else:
        found, control = (place.nearest(query, k) for query in (predicted, edited.latent))
    return Undone(
        edit=edit, edited=edited.picture, imagined=decoded(model, predicted), found=found, control=control
    )


def read_edit(model: WorldModel, edited: Photo, place: Views | Shelf | None) -> Reading:
    """Find out what was done: from a library's other photographs, or by comparison with the original.

    Raises:
        InvalidConfigError: neither is there.
        InvalidDataError: a library of too few photographs.
        InvalidActionError: a model that knows no actions.
    """
    if place is None:
        raise InvalidConfigError(
            "There is nothing to read the edit from: choose the untouched photograph at the top of the page, or "
            "start the page with a library (iwm ui library.lance)."
        )
    if isinstance(place, Shelf):
        report = place.reader().read(model, edited.latent)[0]
        return Reading(
            edit=report.photometry,
            words=f"Read from this picture alone: {in_words(report.photometry)}. Learned from "
            f"{report.references} photographs of the library; it may be wrong.",
        )
    _, pair = model.infer_action(place.photo.latent, edited.latent)
    words = f"Read by comparison with the untouched photograph: {in_words(pair.action)}"
    words += (
        f", confidence {pair.confidence:.0%}."
        if pair.same_scene
        else "; but the two seem to differ in scene."
    )
    return Reading(edit=pair.action.target, words=words)
