"""The example scripts, as a user runs them, on the model inside the package."""

import importlib.util
import os
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from quick_processes import run_quickly

import iwm
from iwm.undoing import EditReader, UndoReport
from iwm.zoo import find_entry

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = pytest.mark.skipif(
    not EXAMPLES.is_dir() or not find_entry("iwm-tiny").folder.is_dir(), reason="needs a source folder"
)
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs OpenVINO")


def _run(script, *words):
    environment = os.environ | {
        "PYTHONPATH": str(Path(iwm.__file__).parent.parent),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    return run_quickly(EXAMPLES / script, *words, env=environment, timeout=300)


@pytest.fixture
def photos(tmp_path):
    """Five photographs; of the first there is a gray twin."""
    for i in range(5):
        coarse = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((160, 128), Image.Resampling.BICUBIC)
        picture.save(tmp_path / f"{i}.jpg", quality=95)
        if i == 0:
            picture.convert("L").save(tmp_path / "gray.jpg", quality=95)
    return tmp_path


def test_retrieve_finds_what_was_asked_for(photos):
    done = _run("retrieve.py", photos / "gray.jpg", photos)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[::4] == [f"gray.jpg {how}:" for how in ("darker", "in grayscale", "with another hue")]
    hits = [line.split(maxsplit=1) for line in lines[5:8]]
    distances = [float(distance) for distance, _ in hits]
    assert hits[0][1] == str(photos / "gray.jpg")
    assert distances == sorted(distances)
    model = iwm.load()
    predicted = model.predict(photos / "gray.jpg", iwm.Action(grayscale=True))
    nearest = iwm.Bank.from_images(model, sorted(photos.glob("*.jpg"))).search(predicted, k=3)
    assert [path for _, path in hits] == nearest.ids[0]
    assert distances == pytest.approx(nearest.distances[0].tolist(), abs=0.02)


@pytest.mark.parametrize(
    ("script", "required"),
    [
        ("retrieve.py", "photo, folder"),
        ("explain_edit.py", "before, after"),
        ("restore.py", "references, out, photos"),
        ("serve_openvino.py", "folder, photo"),
        ("classify.py", "model, photos"),
        ("finetune_on_my_photos.py", "folder, out"),
    ],
)
def test_examples_say_how_they_are_called(script, required):
    done = _run(script)
    assert done.returncode == 2
    assert f"the following arguments are required: {required}" in done.stderr


def test_retrieve_searches_every_kind_of_image_in_a_folder(photos):
    folder = photos / "folder"
    (folder / "sub").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.webp", "sub/c.JPG")):
        Image.open(photos / f"{i}.jpg").save(folder / name)
    done = _run("retrieve.py", photos / "0.jpg", folder)
    assert (done.returncode, done.stderr) == (0, "")
    found = {line.split(maxsplit=1)[1] for line in done.stdout.splitlines()[1:4]}
    assert found == {str(folder / name) for name in ("a.png", "b.webp", "sub/c.JPG")}


@pytest.mark.parametrize(
    ("script", "words", "named"),
    [
        ("retrieve.py", ["0.jpg", "empty"], "empty"),
        ("retrieve.py", ["0.jpg", "damaged"], "damaged/bad.jpg"),
        ("explain_edit.py", ["0.jpg", "missing.jpg"], "missing.jpg"),
        ("restore.py", ["empty", "out", "0.jpg"], "empty"),
        ("restore.py", ["damaged", "out", "0.jpg"], "damaged/bad.jpg"),
        pytest.param("serve_openvino.py", ["damaged", "0.jpg"], "damaged/export.json", marks=needs_openvino),
        ("classify.py", ["missing", "0.jpg"], "missing"),
        ("finetune_on_my_photos.py", ["empty", "out"], "empty"),
    ],
)
def test_what_cannot_be_used_is_one_line(photos, script, words, named):
    (photos / "empty").mkdir()
    (photos / "damaged").mkdir()
    for name in ("bad.jpg", "export.json"):
        (photos / "damaged" / name).touch()
    done = _run(script, *(photos / word for word in words))
    assert done.returncode == 1
    assert re.fullmatch(rf"Error: .*{photos / named}.*\n", done.stderr), done.stderr


def test_a_photograph_that_cannot_be_restored_is_named(photos, monkeypatch):
    """In this process, with nothing learned."""
    (photos / "bad.jpg").touch()
    monkeypatch.setattr(EditReader, "fit", lambda model, references: len(references))
    monkeypatch.setattr(sys, "argv", ["restore.py", *map(str, (photos, photos / "out", photos / "bad.jpg"))])
    with pytest.raises(SystemExit, match=rf"^Error: Cannot read {photos / 'bad.jpg'} as an image"):
        runpy.run_path(str(EXAMPLES / "restore.py"), run_name="__main__")


def test_restore_does_not_write_where_the_photographs_are(photos):
    before = (photos / "1.jpg").read_bytes()
    done = _run("restore.py", photos, photos, photos / "1.jpg")
    assert (done.returncode, "holds the photographs themselves" in done.stderr) == (2, True)
    assert (photos / "1.jpg").read_bytes() == before


def test_explain_edit_repeats_the_edit_in_pixels(photos):
    edit = iwm.Action(brightness=0.7, grayscale=True)
    edit.apply(Image.open(photos / "1.jpg")).save(photos / "edited.png")
    done = _run("explain_edit.py", photos / "1.jpg", photos / "edited.png")
    assert (done.returncode, done.stderr) == (0, "")
    words, residual, *_, pixels = done.stdout.splitlines()
    assert "grayscale" in words
    assert residual.startswith("residual 0.")
    first, left = map(float, re.findall(r"\d\.\d{3}", pixels))
    assert left < 0.5 * first


def test_restore_takes_back_what_was_read(photos, tmp_path, monkeypatch, capsys):
    """In this process, with a reader that finds the same edit in every photograph."""
    found = iwm.Photometry(brightness=0.6, grayscale=True)
    report = UndoReport(
        photometry=found, action=iwm.Action.between(found, iwm.Photometry()), evidence=3.0, cutoff=1.5,
        chances={}, references=20,
    )  # fmt: skip
    monkeypatch.setattr(EditReader, "fit", lambda model, references: len(references))
    monkeypatch.setattr(iwm.WorldModel, "undo", lambda model, photo, reader: (None, report))
    words = [photos, tmp_path / "out", photos / "1.jpg", photos / "gray.jpg"]
    monkeypatch.setattr(sys, "argv", ["restore.py", *map(str, words)])
    runpy.run_path(str(EXAMPLES / "restore.py"), run_name="__main__")
    for name in ("1.jpg", "gray.jpg"):
        before, after = (
            np.asarray(Image.open(folder / name).convert("RGB"), float)
            for folder in (photos, tmp_path / "out")
        )
        assert abs(after - np.minimum(before / 0.6, 255)).mean() < 4  # JPEG again.
    lines = [
        (
            f"{name}: brightness x0.60, grayscale, evidence 3.0 (of an edit: above 1.5)",
            "  not undone: grayscale: the colours are gone",
        )
        for name in ("1.jpg", "gray.jpg")
    ]
    assert capsys.readouterr().out.splitlines() == [line for pair in lines for line in pair]


def test_restore_learns_from_references(photos, tmp_path):
    references = tmp_path / "references"
    references.mkdir()
    for i in range(20):
        coarse = np.random.default_rng(100 + i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((128, 128), Image.Resampling.BICUBIC).save(references / f"{i}.png")
    done = _run("restore.py", references, tmp_path / "out", photos / "1.jpg", photos / "gray.jpg")
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["1.jpg", "gray.jpg"]
    assert done.stdout.startswith("1.jpg: ")
    assert "\ngray.jpg: " in done.stdout


@needs_openvino
def test_serving_agrees_with_pytorch(photos, tmp_path):
    done = _run("serve_openvino.py", tmp_path / "served", photos / "1.jpg")
    assert done.returncode == 0, done.stderr
    cosine = float(re.search(r"cosine (\d\.\d+)", done.stdout)[1])
    assert cosine > 0.999
    assert re.search(r"encoding: PyTorch [\d.]+ ms, OpenVINO [\d.]+ ms", done.stdout)
    assert (tmp_path / "served" / "export.json").is_file()


def test_finetuning_on_own_photos_gives_a_model_that_classifies_them(tmp_path):
    for colour, value in {"red": (200, 40, 40), "blue": (40, 40, 200)}.items():
        (tmp_path / "photos" / colour).mkdir(parents=True)
        for i in range(20):
            noise = np.random.default_rng(i).integers(-40, 40, (96, 96, 3))
            picture = np.clip(np.array(value) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / "photos" / colour / f"{i}.jpg")
    words = ["finetune_on_my_photos.py", tmp_path / "photos", tmp_path / "model", "--steps", "12"]
    done = _run(*words)
    assert done.returncode == 0, done.stderr
    assert re.search(r"mine +accuracy [\d.]+% of 4 images", done.stdout)
    assert re.search(r"(red|blue) [\d.]+%, (red|blue) [\d.]+%", done.stdout.splitlines()[-1])

    reds = sorted((tmp_path / "photos" / "red").iterdir())[:2]
    named = _run("classify.py", tmp_path / "model", *reds)
    assert named.returncode == 0, named.stderr
    assert [line.split()[:3] for line in named.stdout.splitlines()] == [
        [f"{p.name},", "mine:", "red"] for p in reds
    ]


def test_classifying_needs_a_task(photos, tiny_config, tmp_path):
    torch.manual_seed(0)
    iwm.WorldModel(tiny_config()).save_pretrained(tmp_path / "model")
    done = _run("classify.py", tmp_path / "model", photos / "0.jpg")
    assert done.returncode == 2
    assert "no classification task" in done.stderr
