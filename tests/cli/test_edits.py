"""`iwm explain` and `iwm restore`."""

import pytest
from PIL import Image

import iwm
from iwm.world_model import WorldModel


@pytest.fixture
def edited(files, tmp_path):
    """The first photograph, darker and gray."""
    path = tmp_path / "edited.png"
    iwm.Action(brightness=0.6, grayscale=True).apply(Image.open(files[0])).save(path)
    return path


def test_explain_says_what_the_report_says(command, files, edited, symmetric_folder):
    outcome = command("explain", files[0], edited, "--model", symmetric_folder, "--json")
    model = WorldModel.from_pretrained(symmetric_folder)
    _, report = model.infer_action(files[0], edited)
    assert outcome.json["before"] == str(files[0])
    assert outcome.json["photometry"] == pytest.approx(report.to_dict()["photometry"], abs=0.02)
    assert outcome.json["residual"] == pytest.approx(report.residual, rel=0.02)
    shown = command("explain", files[0], edited, "--model", symmetric_folder)
    assert shown.code == 0
    assert "confidence" in shown.words
    assert "residual" in shown.words


def test_explain_by_the_other_solver(command, files, edited, symmetric_folder):
    words = ("explain", files[0], edited, "--model", symmetric_folder, "--solver")
    assert command(*words, "cem", "--json").json["residual"] > 0
    assert 'Did you mean "gradient"' in command(*words, "gradien").error


def test_explain_of_two_scenes_warns(command, files):
    outcome = command("explain", files[0], files[5])
    assert outcome.code == 0
    assert outcome.err.startswith("Warning: no action explains the second image")


def test_restore_writes_an_image_and_says_what_it_could_not_do(
    command, files, photos, edited, tmp_path, symmetric_folder
):
    more = tmp_path / "references"
    more.mkdir()
    for number in range(20):
        Image.open(files[number % 12]).rotate(7 * number).save(more / f"{number}.png")
    out = tmp_path / "restored.png"
    words = ("restore", edited, "--references", more, "--model", symmetric_folder, "--out", out)
    said = command(*words, "--json").json
    assert set(said) >= {"out", "undone", "lost", "words", "photometry", "evidence", "chances"}
    assert said["references"] == 20
    with Image.open(out) as restored, Image.open(edited) as before:
        assert restored.size == before.size
    assert "Wrote" in command(*words).words


def test_restore_of_what_cannot_be(command, files, photos, tmp_path, symmetric_folder):
    words = ("restore", files[0], "--references", photos, "--model", symmetric_folder, "--out")
    assert "12 references; undoing needs at least 16" in command(*words, tmp_path / "a.png").error
    assert "end it in .jpg or .png" in command(*words, tmp_path / "a.txt").words
    assert "is a folder; name a file" in command(*words, tmp_path).error
