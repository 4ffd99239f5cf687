"""`iwm demo`: a picture, and numbers that a direct computation gives too."""

import os
import re
import sys

import pytest
from PIL import Image

import iwm
from iwm.actions import CLEAN, Photometry
from iwm.bank import distances
from iwm.demo import ACTIONS
from iwm.evaluation import mrr
from iwm.evaluation.mrr import draw_views

SIZE = 14


def _rank(model, photo, turn, row):
    """Of the view asked for, by distances of encodings, one view at a time."""
    pixels = model.preprocess.one(photo)
    actions = list(ACTIONS.values())
    params = draw_views(model, SIZE - len(actions), seed=0, index=turn)
    views = actions + [iwm.Action.between(CLEAN, Photometry.from_params(row)) for row in params]
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
    drawn = {"apply": "jitter", "undo": "full"}
    reports = [
        mrr(model, photos, bank_size=SIZE, protocol=protocol, distribution=distribution).to_dict()
        for protocol, distribution in drawn.items()
    ]
    for report, exact in zip(shown["mrr"], reports, strict=True):
        for name in ("protocol", "distribution", "images", "bank_size", "seed"):
            assert report[name] == exact[name]
        assert report["overall"]["mrr"] == pytest.approx(exact["overall"]["mrr"], abs=1e-3)
        assert report["baselines"].keys() == exact["baselines"].keys()
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert 800 < picture.width < 1200
        assert 1500 < picture.height < 2500


@pytest.mark.parametrize(
    ("folder", "drawn"),
    [
        ("model_folder", {"apply": "jitter", "undo": "full"}),
        ("symmetric_folder", {"apply": "full", "undo": "full"}),
    ],
)
def test_the_words_sum_up_the_numbers(request, command, files, tmp_path, folder, drawn):
    place, out = request.getfixturevalue(folder), tmp_path / "demo.png"
    words = ["demo", files[0], "-m", place, "--bank-size", SIZE, "--out", out]
    numbers, shown = command(*words, "--json").json, command(*words)
    assert shown.code == 0
    warned = re.findall(r"^Warning: tiny was not trained for (\w+)", shown.err, re.MULTILINE)
    assert warned[0] == "saturation"  # Its range is the paper's.
    assert len(shown.err.splitlines()) == len(warned) == len(set(warned))  # A line for each parameter.
    right = sum(row["rank"] == 1 for row in numbers["retrievals"])
    last = f"Picture: {out} ({right} of 10 actions retrieved the view asked for)"
    assert shown.out.splitlines()[-1] == last
    lines = [line.split() for line in shown.out.splitlines()]
    assert {report["protocol"]: report["distribution"] for report in numbers["mrr"]} == drawn
    for report in numbers["mrr"]:
        protocol = report["protocol"]
        title = f"{protocol}: photographs 1, views of each {SIZE}, {drawn[protocol]} distribution"
        assert title in shown.out
        assert ["all", f"{report['overall']['mrr']:.3f}"] in [line[:2] for line in lines]
    baselines = re.findall(r"baseline: ([a-z ]+?)  ", shown.out)
    assert baselines == ["floor", "wrong action", "chance", "no action"]


@pytest.mark.parametrize(
    ("photo", "out", "message"),
    [
        ("PHOTO", "demo.xyz", r"Cannot write a picture to OUT; end its name in .png, .pdf or .svg."),
        ("PHOTO", "demo", r"Cannot write a picture to OUT; end its name in .png, .pdf or .svg."),
        ("PHOTO", "broken.jpg/demo.png", r"Cannot write OUT"),
        ("PHOTO", "pictures.png", r"OUT is a folder; name a file for --out."),
        ("broken.jpg", "demo.png", r"broken.jpg as an image"),
        ("missing.jpg", "demo.png", r"No such image file: "),
        ("pictures.png", "demo.png", r"No images in "),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_what_cannot_be_shown_is_told_before_the_work(command, files, bad_photo, photo, out, message):
    folder = bad_photo.parent
    (folder / "pictures.png").mkdir()
    image = files[1] if photo == "PHOTO" else folder / photo
    error = command("demo", files[0], image, "--bank-size", 10, "-o", folder / out).error
    assert message.replace("OUT", str(folder / out)) in error
    assert sorted(path.name for path in folder.iterdir()) == ["broken.jpg", "pictures.png"]
    assert bad_photo.read_text() == "not an image"


@pytest.mark.usefixtures("no_model")
def test_a_folder_without_permission_is_told_before_the_work(command, files, monkeypatch, tmp_path):
    monkeypatch.setattr("os.access", lambda path, mode: (str(path), mode) != (str(tmp_path), os.W_OK))
    error = command("demo", files[0], "-o", tmp_path / "new" / "demo.png").error
    assert f"Cannot write {tmp_path}/new/demo.png: no permission to write in {tmp_path}." in error


def test_a_folder_stands_for_its_photographs(command, photos, files, model_folder, tmp_path):
    options = ["-m", model_folder, "--bank-size", 10, "--out", tmp_path / "demo.png", "--json"]
    chosen = [files[11], *files[:6]]
    by_folder = command("demo", files[11], photos / "class0", *options).json
    assert by_folder == command("demo", *chosen, *options).json
    assert [report["images"] for report in by_folder["mrr"]] == [7, 7]
    exact = mrr(iwm.load(model_folder), chosen, bank_size=10, distribution="jitter")
    assert by_folder["mrr"][0]["overall"]["mrr"] == pytest.approx(exact.mrr, abs=1e-3)


@pytest.mark.parametrize("name", ["br[final].png", "br[/x].png"])
def test_a_name_like_markup_is_shown_as_it_is(command, files, model_folder, tmp_path, name):
    out = tmp_path / name
    shown = command("demo", files[0], "-m", model_folder, "--bank-size", 10, "--out", out)
    assert shown.out.splitlines()[-1].startswith(f"Picture: {out} (")
    assert out.is_file()


def test_a_device_that_cannot_be_used(command, files, model_folder, tmp_path):
    words = ["demo", files[0], "-m", model_folder, "-o", tmp_path / "demo.png", "--device", "gpux"]
    assert 'Cannot use device "gpux"; try "cpu" or "auto". (' in command(*words).error
    assert not (tmp_path / "demo.png").exists()


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
