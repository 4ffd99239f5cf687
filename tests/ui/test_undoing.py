"""The tab *Undo*, computed."""

import pytest

from iwm.actions import CLEAN, Action, Photometry
from iwm.errors import InvalidConfigError
from iwm.ui.photo import encode_photo
from iwm.ui.places import Views
from iwm.ui.undoing import edit_photo, read_edit, undo

EDIT = Photometry(brightness=0.7, hue=0.12)


def test_the_original_is_looked_for_among_its_views_and_the_edited_one(acting_model, photo, views):
    edited = edit_photo(acting_model, photo, EDIT)
    shown = undo(acting_model, edited, EDIT, views, k=17)
    assert (shown.found.size, shown.control.size) == (17, 17)
    assert sum(hit.right for hit in shown.found.hits) == 1
    assert shown.found.hits[int(shown.found.rank) - 1].right
    predicted = acting_model.apply_action(edited.latent, Action.between(EDIT, CLEAN))
    wanted = float((predicted.tokens - photo.latent.tokens).square().sum().sqrt())
    assert next(h.distance for h in shown.found.hits if h.right) == pytest.approx(wanted, rel=1e-4)


def test_without_undoing_the_edited_one_finds_itself(acting_model, photo, views):
    edited = edit_photo(acting_model, photo, EDIT)
    control = undo(acting_model, edited, EDIT, views).control
    assert control.hits[0].caption == "the edited one"
    assert control.hits[0].picture.tobytes() == edited.picture.tobytes()
    assert control.rank > 1


def test_nothing_undone_is_the_control(acting_model, photo, views):
    shown = undo(acting_model, edit_photo(acting_model, photo, EDIT), CLEAN, views)
    assert [h.caption for h in shown.found.hits] == [h.caption for h in shown.control.hits]


def test_the_embedded_model_undoes_and_reads(tiny, photos):
    original = encode_photo(tiny, photos / "class0" / "06.jpg", "06.jpg")
    edited = edit_photo(tiny, original, EDIT)
    views = Views(tiny, original, 63)
    shown = undo(tiny, edited, EDIT, views)
    assert shown.found.rank < shown.control.rank
    reading = read_edit(tiny, edited, views)
    assert reading.edit.brightness == pytest.approx(0.7, abs=0.15)
    assert reading.words.startswith("Read by comparison with the untouched photograph: brightness x0.")


def test_reading_needs_something_to_read_from(acting_model, photo):
    with pytest.raises(InvalidConfigError, match=r"choose the untouched photograph.*iwm ui library\.lance"):
        read_edit(acting_model, photo, None)
