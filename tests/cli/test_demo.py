"""`iwm demo`: a picture, and numbers that a direct computation gives too."""

import sys

import pytest
from PIL import Image

import iwm
from iwm.bank import distances
from iwm.demo import ACTIONS
from iwm.evaluation import mrr

SIZE = 14


def _rank(model, photo, turn, row):
    """Of the view asked for, by distances of encodings, one view at a time."""
    pixels = model.preprocess.one(photo)
    actions = list(ACTIONS.values())
    views = actions + iwm.Action.sample(SIZE - len(actions), seed=turn)
    asked = model.apply_action(model.encode(pixels), actions[row])
    found = [float(distances(asked.tokens, model.encode(view.apply(pixels)).tokens)) for view in views]
    return 1 + sorted(range(SIZE), key=found.__getitem__).index(row)


def test_json_in_a_fresh_process_is_what_the_model_does(fresh, files, model_folder, tmp_path):
    photos, out = [files[0], files[5]], tmp_path / "new" / "demo.png"
    shown = fresh("demo", *photos, "-m", model_folder, "--bank-size", SIZE, "--out", out, "--json").json
    model = iwm.load(model_folder)
    assert shown["picture"] == str(out)
    assert [row["action"] for row in shown["retrievals"]] == list(ACTIONS)
    assert {row["bank_size"] for row in shown["retrievals"]} == {SIZE}
    ranks = [_rank(model, photos[row % 2], row % 2, row) for row in range(len(ACTIONS))]
    assert [row["rank"] for row in shown["retrievals"]] == ranks
    assert len(set(ranks)) > 3
    reports = [mrr(model, photos, bank_size=SIZE, protocol=name).to_dict() for name in ("apply", "undo")]
    for report, exact in zip(shown["mrr"], reports, strict=True):
        assert report["protocol"] == exact["protocol"]
        assert report["overall"]["mrr"] == pytest.approx(exact["overall"]["mrr"], abs=1e-3)
        assert report["baselines"].keys() == exact["baselines"].keys()
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert 800 < picture.width < 1200
        assert 1500 < picture.height < 2500


def test_the_words_sum_up_the_numbers(command, files, model_folder, tmp_path):
    words = ["demo", files[0], "-m", model_folder, "--bank-size", SIZE, "--out", tmp_path / "demo.png"]
    numbers, shown = command(*words, "--json").json, command(*words)
    assert (shown.code, shown.err) == (0, "")
    right = sum(row["rank"] == 1 for row in numbers["retrievals"])
    last = f"Picture: {tmp_path / 'demo.png'} ({right} of 10 actions retrieved the view asked for)"
    assert shown.out.splitlines()[-1] == last
    lines = [line.split() for line in shown.out.splitlines()]
    for report in numbers["mrr"]:
        assert f"{report['protocol']}: 1 photographs, {SIZE} views each" in shown.out
        assert ["all", f"{report['overall']['mrr']:.3f}"] in [line[:2] for line in lines]
    assert shown.out.count("baseline: floor") == 2


@pytest.mark.parametrize(
    ("photo", "out", "message"),
    [
        ("PHOTO", "demo.xyz", r"Cannot write a picture to OUT; end its name in .png, .pdf or .svg."),
        ("PHOTO", "demo", r"Cannot write a picture to OUT; end its name in .png, .pdf or .svg."),
        ("PHOTO", "broken.jpg/demo.png", r"Cannot write OUT"),
        ("broken.jpg", "demo.png", r"broken.jpg as an image"),
        ("missing.jpg", "demo.png", r"No such image file: "),
    ],
)
def test_what_cannot_be_shown(command, files, bad_photo, model_folder, photo, out, message):
    folder = bad_photo.parent
    image = files[0] if photo == "PHOTO" else folder / photo
    error = command("demo", image, "-m", model_folder, "--bank-size", 10, "-o", folder / out).error
    assert message.replace("OUT", str(folder / out)) in error
    assert sorted(path.name for path in folder.iterdir()) == ["broken.jpg", "model"]
    assert bad_photo.read_text() == "not an image"


def test_a_bank_must_hold_every_action(command, files, model_folder, tmp_path):
    shown = command("demo", files[0], "-m", model_folder, "--bank-size", 9, "-o", tmp_path / "demo.png")
    assert (shown.code, shown.out) == (2, "")
    assert "Invalid value for '--bank-size'" in shown.words
    assert not (tmp_path / "demo.png").exists()


def test_without_scikit_image_it_says_what_to_install(command, monkeypatch, model_folder, tmp_path):
    monkeypatch.setitem(sys.modules, "skimage", None)
    error = command("demo", "-m", model_folder, "-o", tmp_path / "demo.png", "--json").error
    assert 'pip install "iwm[demo]"' in error
    assert "iwm demo photo.jpg" in error


def test_the_default_photographs(command, model_folder, tmp_path):
    pytest.importorskip("skimage")
    words = ["demo", "-m", model_folder, "--bank-size", 10, "-o", tmp_path / "demo.png", "--json"]
    shown = command(*words).json
    assert [report["images"] for report in shown["mrr"]] == [4, 4]
    assert len(shown["retrievals"]) == 10
