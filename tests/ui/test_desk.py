"""From events to HTML: what sessions keep, and what a user can do wrong."""

import dataclasses

import pytest

from iwm.config import PhotometryDistribution
from iwm.errors import InvalidActionError, InvalidImageError
from iwm.ui.desk import MOST_BYTES, Desk, Kept
from iwm.ui.html import NOTHING_YET
from iwm.ui.photo import encode_photo
from iwm.world_model import WorldModel

CLEAN = (1.0, 1.0, 1.0, 0.0, False, 0.0, False)
DARK = (0.6, 1.0, 1.0, 0.0, False, 0.0, False)


@pytest.fixture
def desk(acting_model, tmp_path):
    (tmp_path / "uploads").mkdir()
    return Desk(acting_model, None, tmp_path / "uploads")


@pytest.fixture
def kept(photo, views):
    return Kept(photo=photo, place=views)


def test_an_upload_is_read(desk, colours, photo, tmp_path):
    path = tmp_path / "uploads" / "colours.png"
    colours.save(path)
    opened = desk.open(str(path))
    assert opened.name == "colours.png"
    assert opened.picture.tobytes() == photo.picture.tobytes()


@pytest.mark.parametrize("words", ["secret.png", "uploads/../secret.png", "uploads/link.png", "uploads", ""])
def test_no_other_file_is(desk, colours, tmp_path, words):
    colours.save(tmp_path / "secret.png")
    (tmp_path / "uploads" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(InvalidImageError, match="did not arrive"):
        desk.open(words and str(tmp_path / words))


def test_a_file_that_is_too_large_is_not_read(desk, tmp_path):
    path = tmp_path / "uploads" / "huge.png"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(InvalidImageError, match=r"huge\.png has more than 64 MB"):
        desk.open(str(path))


def test_before_a_photograph_there_is_a_hint(desk):
    assert desk.act(None, DARK) == NOTHING_YET
    assert desk.undo(None, None, DARK) == (NOTHING_YET, "")
    assert desk.grid(None, "hue") == NOTHING_YET
    words, values = desk.find_out(None, None, CLEAN)
    assert "Choose a photograph first." in words
    assert values is None


def test_an_edited_photograph_alone_needs_its_original(desk, photo):
    words, control = desk.undo(None, photo, DARK)
    assert 'role="alert"' in words
    assert "Choose the untouched photograph at the top too" in words
    assert control == ""


def test_what_a_slider_cannot_mean_is_said(desk, kept):
    wrong = (-1.0, *CLEAN[1:])
    for shown in (
        desk.act(kept, wrong),
        desk.undo(kept, None, wrong)[0],
        desk.find_out(kept, None, wrong)[0],
    ):
        assert 'role="alert">brightness is -1.0; it must be a factor' in shown


def test_the_sliders_edit_the_photograph_where_there_is_no_edited_one(desk, kept):
    shown, _ = desk.undo(kept, None, DARK)
    assert "Undone: brightness x0.60." in shown
    assert shown != desk.undo(kept, None, (0.7, *DARK[1:]))[0]


def test_found_edits_move_the_sliders_of_edited_photographs_alone(desk, kept, acting_model, colours):
    assert desk.find_out(kept, None, DARK)[1] is None
    edited = encode_photo(acting_model, colours.point(lambda v: v // 2), "dark.png")
    words, values = desk.find_out(kept, edited, CLEAN)
    assert "Read by comparison" in words
    assert len(values) == 7


def test_sessions_do_not_share_what_they_keep(desk, kept, acting_model, colours):
    other = desk.keep(encode_photo(acting_model, colours.rotate(180), "turned.png"))
    assert desk.act(kept, DARK) == desk.act(kept, DARK) != desk.act(other, DARK)


def test_a_model_that_cannot_act_is_refused_at_once(acting_model, tmp_path):
    acting_model.config = acting_model.config.replace(tuned="all")
    with pytest.raises(InvalidActionError, match="finetuned"):
        Desk(acting_model, None, tmp_path)


def test_so_is_one_that_knows_no_actions(tiny_config, tmp_path):
    with pytest.raises(InvalidActionError, match="is invariant by construction: it knows no actions"):
        Desk(WorldModel(tiny_config(conditioning="none")), None, tmp_path)


def test_so_is_one_that_has_nothing_to_move(acting_model, tmp_path):
    untouched = PhotometryDistribution(
        jitter_probability=0.0, grayscale_probability=0.0, blur_probability=0.0, solarize_probability=0.0
    )
    actions = dataclasses.replace(acting_model.config.actions, distribution=untouched)
    acting_model.config = acting_model.config.replace(actions=actions)
    with pytest.raises(InvalidActionError, match="nothing to move"):
        Desk(acting_model, None, tmp_path)


class _Emptied:
    """A library whose photographs were removed while the page is open."""

    def __len__(self):
        return 0


def test_an_emptied_library_stays_the_place_to_search(acting_model, photo, tmp_path):
    (tmp_path / "uploads").mkdir()
    shelf = _Emptied()
    desk = Desk(acting_model, shelf, tmp_path / "uploads")
    assert desk.keep(photo).place is shelf
    assert desk.preparing == "one moment."
