"""`iwm explain` and `iwm restore`."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

import iwm
from iwm.actions import CLEAN, Action, Photometry
from iwm.undoing import UndoReport
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
    assert "no action explains" not in outcome.out


@pytest.fixture
def gray_report(monkeypatch):
    """Reading that finds the same edit in every image."""
    found = Photometry(brightness=0.6, grayscale=True)
    report = UndoReport(
        photometry=found, action=Action.between(found, CLEAN), evidence=3.0, cutoff=1.5,
        chances={"grayscale": 0.9, "blur": 0.1, "solarize": 0.0}, references=20,
    )  # fmt: skip
    monkeypatch.setattr("iwm.undoing.undo", lambda model, image, references, seed: (None, report))
    return report


@pytest.mark.usefixtures("gray_report")
def test_restore_takes_back_in_pixels_what_was_read(
    command, files, edited, references, tmp_path, symmetric_folder
):
    out = tmp_path / "restored.png"
    words = ("restore", edited, "--references", references, "--model", symmetric_folder, "--out", out)
    said = command(*words)
    assert said.code == 0
    assert said.out.splitlines() == [
        "brightness x0.60, grayscale",
        "evidence 3.0 (of an edit: above 1.5); grayscale 90%, blur 10%, solarize 0%",
        "undone in pixels: brightness x0.60",
        "not undone: grayscale: the colours are gone",
        f"Wrote {out}.",
    ]
    before, restored = (np.asarray(Image.open(path).convert("RGB"), dtype=float) for path in (edited, out))
    np.testing.assert_allclose(restored, np.minimum(before / 0.6, 255), atol=1)
    gray = np.asarray(iwm.Action(grayscale=True).apply(Image.open(files[0])), dtype=float)
    assert abs(restored - gray).mean() < 0.1 * abs(before - gray).mean()


def test_restore_reads_references_that_were_encoded(
    command, files, edited, references, tmp_path, symmetric_folder
):
    bank = tmp_path / "any name"
    command("encode", references, "--model", symmetric_folder, "--out", bank)
    words = ("restore", edited, "--model", symmetric_folder, "--out", tmp_path / "a.png", "--json")
    by_bank, by_folder = (command(*words, "--references", place).json for place in (bank, references))
    assert by_bank["evidence"] == pytest.approx(by_folder["evidence"], rel=1e-3)
    assert by_bank["references"] == 20
    assert "made by another encoder" in command(*words, "--references", bank, "--model", "iwm-tiny").error


def test_restore_reads_references_of_a_library(command, edited, references, tmp_path, symmetric_folder):
    pytest.importorskip("lancedb")
    library = tmp_path / "library.lance"
    command("index", references, "--model", symmetric_folder, "--out", library)
    words = ("restore", edited, "--model", symmetric_folder, "--out", tmp_path / "a.png", "--json")
    by_library, by_folder = (command(*words, "--references", place).json for place in (library, references))
    assert by_library["references"] == 20
    assert by_library["evidence"] == pytest.approx(by_folder["evidence"], rel=0.1)  # Stored in float16.
    assert "No library at" in command(*words, "--references", tmp_path / "missing.lance").error
    other = command(*words, "--references", library, "--model", "iwm-tiny").error
    assert '"iwm-tiny"' in other


def test_explain_runs_an_exported_model(command, files, edited, symmetric_folder, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    WorldModel.from_pretrained(symmetric_folder).export(tmp_path / "served", "onnx", "fp32")
    words = ("explain", files[0], edited, "--json", "--model")
    exported = command(*words, tmp_path / "served").json
    expected = command(*words, symmetric_folder, "--solver", "cem").json
    assert exported["residual"] == pytest.approx(expected["residual"], rel=0.02)
    assert 'pass solver="cem"' in command(*words, tmp_path / "served", "--solver", "gradient").error
    refused = command("eval", "knn", "--train", ".", "--val", ".", "--model", tmp_path / "served").error
    assert "was exported for onnx, which this command cannot use" in refused


@pytest.fixture
def references(files, tmp_path):
    """A folder of twenty photographs."""
    folder = tmp_path / "references"
    folder.mkdir()
    for number in range(20):
        Image.open(files[number % 12]).rotate(7 * number).save(folder / f"{number}.png")
    return folder


def test_restore_writes_an_image_and_says_what_it_could_not_do(
    command, edited, references, tmp_path, symmetric_folder
):
    out = tmp_path / "restored.png"
    words = ("restore", edited, "--references", references, "--model", symmetric_folder, "--out", out)
    said = command(*words, "--json").json
    assert set(said) >= {"out", "undone", "lost", "words", "photometry", "evidence", "cutoff", "chances"}
    assert said["references"] == 20
    with Image.open(out) as restored, Image.open(edited) as before:
        assert restored.size == before.size
    assert "Wrote" in command(*words).words


@pytest.mark.usefixtures("gray_report")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff", ".bmp"])
def test_restore_keeps_what_the_file_says_of_itself(
    command, edited, references, tmp_path, symmetric_folder, suffix
):
    source = tmp_path / "taken.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation] = "a camera", 6
    Image.open(edited).convert("RGB").resize((40, 60)).save(source, exif=exif)
    out = tmp_path / "new folder" / f"restored{suffix}"
    words = ("restore", source, "--references", references, "--model", symmetric_folder, "--out")
    assert command(*words, out).code == 0
    with Image.open(out) as restored:
        assert restored.size == (60, 40)  # Upright.
        assert restored.getexif().get(ExifTags.Base.Orientation, 1) == 1
        assert suffix == ".bmp" or restored.getexif()[ExifTags.Base.Make] == "a camera"
    content = source.read_bytes()
    assert f"{source} is one of the images themselves; name another file" in command(*words, source).error
    assert source.read_bytes() == content
    assert sorted(out.parent.iterdir()) == [out]


@pytest.mark.usefixtures("gray_report")
def test_restore_keeps_profile_and_resolution_and_says_what_it_cannot_keep(
    command, edited, references, tmp_path, symmetric_folder
):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.open(edited).convert("RGB")
    image.save(tmp_path / "profile.jpg", icc_profile=profile, dpi=(300, 300))
    image.putalpha(128)
    image.save(tmp_path / "clear.png")
    deep = np.asarray(image.convert("L"), dtype=np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    image.convert("CMYK").save(tmp_path / "ink.jpg", icc_profile=profile)
    left_behind = {
        "profile.jpg": [], "clear.png": ["transparency, which is white now"],
        "deep.png": ["more than 8 bits a channel"], "ink.jpg": ["the colour profile of CMYK"],
    }  # fmt: skip
    words = ("--references", references, "--model", symmetric_folder, "--out", tmp_path / "out.png")
    for name, said in left_behind.items():
        assert command("restore", tmp_path / name, *words, "--json").json["left_behind"] == said
        shown = command("restore", tmp_path / name, *words).words
        assert all(f"not kept: {one}" in shown for one in said)
        with Image.open(tmp_path / "out.png") as restored:
            own = name == "profile.jpg"
            assert restored.info.get("icc_profile") == (profile if own else None)
            assert [round(value) for value in restored.info.get("dpi", ())] == ([300, 300] if own else [])


@pytest.mark.usefixtures("gray_report")
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
def test_restore_keeps_what_a_camera_wrote(
    command, files, references, tmp_path, symmetric_folder, kind, suffix
):
    source, out = tmp_path / f"taken.{kind}", tmp_path / f"restored{suffix}"
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a camera"
    camera, place = exif.get_ifd(ExifTags.IFD.Exif), exif.get_ifd(ExifTags.IFD.GPSInfo)
    camera[ExifTags.Base.DateTimeOriginal], place[ExifTags.GPS.GPSLatitudeRef] = "2020:02:03 04:05:06", "N"
    camera[ExifTags.IFD.Interop] = {1: "R98"}
    Image.open(files[0]).save(source, exif=exif.tobytes())
    words = ("restore", source, "--references", references, "--model", symmetric_folder, "--out", out)
    shown = command(*words)
    assert (shown.code, shown.err) == (0, "")
    with Image.open(out) as restored:
        kept = restored.getexif()
        assert kept[ExifTags.Base.Make] == "a camera"
        assert kept.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] == "2020:02:03 04:05:06"
        assert kept.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"


@pytest.mark.usefixtures("gray_report")
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "I;16"])
@pytest.mark.parametrize("suffix", [".tiff", ".jpg"])
def test_restore_of_a_tiff_file_leaves_how_its_pixels_were_stored(
    command, files, references, tmp_path, symmetric_folder, mode, suffix
):
    source, out = tmp_path / "taken.tif", tmp_path / f"restored{suffix}"
    exif = Image.Exif()
    exif[ExifTags.Base.Artist], exif[ExifTags.Base.Orientation] = "somebody", 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2020:02:03 04:05:06"
    image = Image.open(files[0]).resize((40, 60))
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    (deep if mode == "I;16" else image.convert(mode)).save(source, exif=exif.tobytes())
    words = ("restore", source, "--references", references, "--model", symmetric_folder, "--out", out)
    assert command(*words).code == 0
    with Image.open(out) as restored:
        restored.load()
        assert (restored.mode, restored.size) == ("RGB", (60, 40))
        kept = restored.getexif()
        assert kept[ExifTags.Base.Artist] == "somebody"
        assert kept.get(ExifTags.Base.Orientation, 1) == 1
        assert suffix == ".tiff" or ExifTags.Base.StripOffsets not in kept
        assert kept.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] == "2020:02:03 04:05:06"


def test_restore_copies_what_nothing_is_taken_back_from(
    command, monkeypatch, gray_report, edited, references, tmp_path, symmetric_folder
):
    nothing = replace(gray_report, photometry=CLEAN, action=Action())
    monkeypatch.setattr("iwm.undoing.undo", lambda model, image, references, seed: (None, nothing))
    out = tmp_path / f"copy{edited.suffix}"
    words = ("restore", edited, "--references", references, "--model", symmetric_folder, "--out", out)
    assert command(*words).code == 0
    assert out.read_bytes() == edited.read_bytes()


def test_restore_of_what_cannot_be(command, files, photos, tmp_path, symmetric_folder):
    words = ("restore", files[0], "--references", photos, "--model", symmetric_folder, "--out")
    away = ("restore", files[0], "--references", tmp_path / "away", "--out", tmp_path / "a.png")
    assert f"There is no {tmp_path / 'away'}." in command(*away).error
    few = command(*words, tmp_path / "a.png").error
    assert f"{photos} holds 12 photographs; restoring needs at least 16 untouched ones" in few
    assert "--references FOLDER" in few
    assert "end it in .jpg or .png" in command(*words, tmp_path / "a.txt").words
    assert "is a folder; name a file" in command(*words, tmp_path).error
