"""Where pages look things up: a library's photographs and their thumbnails."""

import importlib.util
import os
import shutil

import pytest
from PIL import Image

import iwm
from iwm.actions import Action
from iwm.errors import IncompatibleLatentError, InvalidDataError
from iwm.ui.acting import act
from iwm.ui.photo import encode_photo
from iwm.ui.places import Shelf, thumbnail
from iwm.ui.sliders import photometry_of
from iwm.ui.undoing import read_edit, undo
from iwm.world_model import WorldModel

DARK = photometry_of([0.6, 1, 1, 0, False, 0, False])
needs_lancedb = pytest.mark.skipif(
    importlib.util.find_spec("lancedb") is None, reason='pip install "iwm[retrieval]"'
)


@pytest.fixture
def folder(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def index(acting_model, folder, tmp_path):
    index = iwm.Index.create(tmp_path / "library.lance", acting_model)
    index.update(acting_model, folder)
    return index


@needs_lancedb
def test_a_library_shows_what_it_finds_by_name_alone(acting_model, index, folder):
    shelf = Shelf(index, acting_model)
    photo = encode_photo(acting_model, folder / "class0" / "06.jpg", "06.jpg")
    shown = act(acting_model, photo, DARK, shelf, k=4)
    query = acting_model.apply_action(photo.latent, Action(brightness=0.6))
    expected = index.search(query, 4)
    assert [hit.caption for hit in shown.found.hits] == [str(path)[-6:] for path in expected.ids[0]]
    assert [hit.distance for hit in shown.found.hits] == pytest.approx(expected.distances[0].tolist())
    assert (shown.found.size, shown.found.rank) == (12, None)
    assert {hit.picture.size for hit in shown.found.hits} == {(192, 192)}
    undone = undo(acting_model, photo, photometry_of([None] * 7), shelf)
    assert undone.found.hits[0].caption == "06.jpg"


@needs_lancedb
def test_reading_needs_enough_photographs(acting_model, index, photo):
    with pytest.raises(InvalidDataError, match="12 references; undoing needs at least 16"):
        read_edit(acting_model, photo, Shelf(index, acting_model))


@needs_lancedb
def test_libraries_that_cannot_be_shown(acting_model, tiny_config, index, tmp_path):
    other = WorldModel(tiny_config().replace(name="another"))
    with pytest.raises(IncompatibleLatentError, match=r'"tiny".*"another"|"another".*"tiny"'):
        Shelf(index, other)
    empty = iwm.Index.create(tmp_path / "empty.lance", acting_model)
    with pytest.raises(
        InvalidDataError, match=r"empty; add photographs first: iwm index PHOTOS --out .*empty\.lance"
    ):
        Shelf(empty, acting_model)


def test_a_thumbnail_is_the_middle_of_a_photograph(tmp_path):
    picture = Image.new("RGB", (400, 200), "red")
    picture.paste("blue", (100, 0, 300, 200))
    picture.save(tmp_path / "a.png")
    small = thumbnail(str(tmp_path / "a.png"))
    assert small.size == (192, 192)
    (_, most_red), green, (least_blue, _) = small.getextrema()
    assert green == (0, 0)
    assert most_red <= 8  # Resampling takes in a little from beyond the edge.
    assert least_blue >= 247


def test_a_photograph_that_is_gone_has_none_until_it_is_back_and_changes_are_seen(tmp_path):
    path = tmp_path / "gone.png"
    assert thumbnail(str(path)) is None
    Image.new("RGB", (200, 200), "red").save(path)
    assert thumbnail(str(path)).getpixel((5, 5)) == (255, 0, 0)
    Image.new("RGB", (200, 200), "blue").save(path)
    os.utime(path, ns=(1, 1))
    assert thumbnail(str(path)).getpixel((5, 5)) == (0, 0, 255)
