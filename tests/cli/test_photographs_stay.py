"""No command replaces a photograph that it reads, or a file that may be one with something else."""

import shutil

import pytest


@pytest.fixture
def mine(photos, tmp_path):
    """A folder of photographs that may be lost."""
    return shutil.copytree(photos, tmp_path / "mine")


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "PHOTO", "--out", "PHOTO"],
        ["demo", "FOLDER", "--out", "PHOTO"],
        ["figure", "sweep", "PHOTO", "--parameter", "hue", "--out", "PHOTO"],
        ["figure", "retrieval", "FOLDER", "--out", "PHOTO"],
        ["restore", "PHOTO", "--references", "FOLDER", "--out", "LINK"],
        ["search", "FOLDER", "--image", "OTHER", "--sheet", "PHOTO"],
        ["search", "LIBRARY", "--image", "PHOTO", "--sheet", "PHOTO"],
    ],
)
@pytest.mark.usefixtures("no_model")
def test_a_picture_does_not_replace_what_is_read(command, files, mine, tmp_path, words):
    photo = next(mine.rglob("*.jpg"))
    png = photo.rename(photo.with_suffix(".png"))  # Every command writes these, whatever is inside.
    (tmp_path / "link.png").symlink_to(png)
    (tmp_path / "library.lance").mkdir()
    places = {
        "PHOTO": png, "FOLDER": mine, "LINK": tmp_path / "link.png", "OTHER": files[0],
        "LIBRARY": tmp_path / "library.lance",
    }  # fmt: skip
    before = png.read_bytes()
    shown = command(*(places.get(word, word) for word in words))
    option = words[-2]
    assert (
        shown.error
        == f"Error: {places[words[-1]]} is one of the images themselves; name another file for {option}.\n"
    )
    assert png.read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ["restore", "OTHER", "--references", "FOLDER", "--out", "PHOTO"],
        ["restore", "OTHER", "--references", "LIBRARY", "--out", "PHOTO"],
        ["search", "LIBRARY", "--image", "OTHER", "--sheet", "PHOTO"],
        ["search", "LIBRARY", "--image", "OTHER", "--sheet", "LINK"],
    ],
)
def test_a_picture_does_not_replace_references_or_what_a_library_holds(
    command, monkeypatch, files, mine, tmp_path, words, model_folder
):
    photo = next(mine.rglob("*.jpg"))
    (tmp_path / "link.jpg").symlink_to(photo)
    places = {
        "PHOTO": photo, "FOLDER": mine, "OTHER": files[0], "LIBRARY": tmp_path / "library.lance",
        "LINK": tmp_path / "link.jpg",
    }  # fmt: skip
    assert command("index", mine, "--out", places["LIBRARY"], "--model", model_folder).code == 0
    before = photo.read_bytes()
    monkeypatch.chdir(mine)
    shown = command(*(places.get(word, word) for word in words))
    assert shown.error.startswith(f"Error: {places[words[-1]]} is one of the images themselves; name another")
    assert photo.read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ["encode", "FOLDER", "--out", "PHOTO"],
        ["index", "FOLDER", "--out", "LIBRARY", "--report", "PHOTO"],
        ["eval", "probe", "--train", "FOLDER", "--val", "FOLDER", "--answers", "PHOTO"],
    ],
)
@pytest.mark.usefixtures("no_model")
def test_what_is_no_image_is_not_called_like_one(command, mine, tmp_path, words):
    photo = next(mine.rglob("*.jpg"))
    places = {"PHOTO": photo, "FOLDER": mine, "LIBRARY": tmp_path / "library.lance"}
    before = photo.read_bytes()
    error = command(*(places.get(word, word) for word in words)).error
    assert error == f"Error: {photo} is called like an image; name another file for {words[-2]}.\n"
    assert photo.read_bytes() == before
    assert not (tmp_path / "library.lance").exists()
