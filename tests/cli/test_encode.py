"""`iwm encode`: a bank of exactly what the model encodes, from files and folders."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import iwm


def test_a_folder_in_a_fresh_process(fresh, photos, files, model_folder, tmp_path):
    out = tmp_path / "new" / "bank.safetensors"
    done = fresh("encode", photos, "--out", out, "--model", model_folder)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Wrote 12 latents of 16 x 48 to {out} (")
    expression = re.search(r"Search them: (iwm\.Bank\.load\(.+?\))\.search\(latent\)\n", done.out)[1]
    bank = eval(expression, {"iwm": iwm})
    assert bank.ids == [str(path) for path in files]
    model = iwm.load(model_folder)
    assert bank.latents.space == model.space
    torch.testing.assert_close(bank.latents.tokens, model.encode(files).tokens, rtol=1e-4, atol=1e-4)


def test_files_and_folders_keep_the_order_given(command, photos, files, model_folder, tmp_path):
    out = tmp_path / "bank.safetensors"
    wanted = [files[7], *files[:6], files[9]]
    words = ["encode", files[7], photos / "class0", files[9], "--out", out, "--model", model_folder]
    shown = command(*words, "--batch-size", 3, "--json").json
    bank = iwm.Bank.load(out)
    model = iwm.load(model_folder)
    assert bank.ids == [str(path) for path in wanted]
    torch.testing.assert_close(bank.latents.tokens, model.encode(wanted).tokens, rtol=1e-5, atol=1e-5)
    assert shown == {"out": str(out), "images": 8, "tokens": [8, 16, 48], "space": model.space}


def test_half_stores_float16(command, photos, files, model_folder, tmp_path):
    sizes = []
    for options, dtype in (([], torch.float32), (["--half"], torch.float16)):
        out = tmp_path / f"{dtype}.safetensors"
        assert command("encode", photos, "-o", out, "-m", model_folder, *options).code == 0
        tokens = iwm.Bank.load(out).latents.tokens
        assert tokens.dtype == dtype
        assert torch.equal(tokens, iwm.load(model_folder).encode(files).tokens.to(dtype))
        sizes.append(out.stat().st_size)
    assert sizes[0] - sizes[1] == pytest.approx(12 * 16 * 48 * 2, abs=64)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["PHOTOS", "BAD"], r"Cannot read .*broken\.jpg as an image"),
        (["MISSING"], r"No such image file: .*missing\.jpg"),
        (["EMPTY"], r"No images in .*empty; looked for .*\.jpg"),
        (["HIDDEN"], r"No images in .*\.thumbs-only; looked for .*\.jpg"),
    ],
    ids=["unreadable", "missing", "empty", "hidden"],
)
def test_what_cannot_be_encoded_is_named_and_nothing_written(
    command, photos, bad_photo, model_folder, tmp_path, images, message
):
    for folder in ("empty", ".thumbs-only/.thumbs"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(photos / "class0" / "00.jpg", tmp_path / ".thumbs-only" / ".thumbs")
    places = {
        "PHOTOS": photos, "BAD": bad_photo, "MISSING": tmp_path / "missing.jpg", "EMPTY": tmp_path / "empty",
        "HIDDEN": tmp_path / ".thumbs-only",
    }  # fmt: skip
    out = tmp_path / "bank.safetensors"
    error = command("encode", *[places[name] for name in images], "-o", out, "-m", model_folder).error
    assert re.search(message, error)
    assert not out.exists()


@pytest.mark.parametrize("half", [False, True])
def test_what_cannot_be_read_in_a_folder_is_skipped_with_a_warning(
    command, mixed, files, model_folder, tmp_path, half
):
    out = tmp_path / "bank.safetensors"
    words = ["encode", files[5], mixed, "-o", out, "-m", model_folder, "--batch-size", 2, "--json"]
    shown = command(*words, *["--half"] * half)
    assert shown.json["images"] == 3
    bad = re.escape(str(mixed / "br[bold].jpg"))
    assert re.fullmatch(rf"Warning: skipped: Cannot read {bad} as an image: .+\n", shown.err)
    bank = iwm.Bank.load(out)
    assert bank.ids == [str(path) for path in (files[5], mixed / "a.jpg", mixed / "c.jpg")]
    exact = iwm.load(model_folder).encode([files[5], *files[:2]]).tokens
    tolerance = 1e-2 if half else 1e-5
    torch.testing.assert_close(bank.latents.tokens.float(), exact, rtol=tolerance, atol=tolerance)


def test_a_folder_where_nothing_can_be_read(command, mixed, model_folder, tmp_path):
    for name in ("a.jpg", "c.jpg"):
        (mixed / name).write_text("not an image")
    shown = command("encode", mixed, "-o", tmp_path / "bank.safetensors", "-m", model_folder)
    *warnings, error = shown.err.splitlines()
    assert (shown.code, shown.out) == (1, "")
    assert error == "Error: None of the 3 images can be read."
    for warning, name in zip(warnings, ("a.jpg", "br[bold].jpg", "c.jpg"), strict=True):
        assert warning.startswith(f"Warning: skipped: Cannot read {mixed / name} as an image: ")
    assert not (tmp_path / "bank.safetensors").exists()


@pytest.mark.parametrize(
    "images", [["FILE", "PHOTOS"], ["PHOTOS", "FILE"], ["OTHER", "FILE", "FILE"]], ids=str
)
@pytest.mark.usefixtures("no_model")
def test_an_image_given_twice_is_told_before_the_work(command, photos, files, tmp_path, images):
    places = {"PHOTOS": photos, "FILE": files[4], "OTHER": files[5]}
    error = command("encode", *[places[name] for name in images], "-o", tmp_path / "a.safetensors").error
    assert error == f"Error: {files[4]} is given twice.\n"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("broken.jpg/bank.safetensors", "Cannot write OUT"),
        ("folder", "OUT is a folder; name a file for --out."),
        ("locked/new/a.safetensors", "Cannot write OUT: no permission to write in PLACE/locked."),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_an_out_that_cannot_be_written_is_told_before_the_work(
    command, monkeypatch, photos, bad_photo, out, message
):
    folder = bad_photo.parent
    for name in ("folder", "locked"):
        (folder / name).mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: (Path(path).name, mode) != ("locked", os.W_OK))
    error = command("encode", photos, "-o", folder / out).error
    assert message.replace("OUT", str(folder / out)).replace("PLACE", str(folder)) in error
    assert bad_photo.read_text() == "not an image"


@pytest.mark.parametrize("name", ["br[final].safetensors", "br[/x].safetensors"])
def test_a_name_like_markup_is_shown_as_it_is(command, files, model_folder, tmp_path, name):
    out = tmp_path / name
    written, search = command("encode", files[0], "-o", out, "-m", model_folder).out.splitlines()
    assert written.startswith(f"Wrote 1 latents of 16 x 48 to {out} (")
    assert search == f'Search them: iwm.Bank.load("{out}").search(latent)'
    assert iwm.Bank.load(out).ids == [str(files[0])]


def test_an_output_below_a_file_is_refused_before_the_work(command, photos, no_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.jpg")
    assert "photo.jpg is a file, not a folder" in command("encode", photos, "--out", "photo.jpg/x").error


def test_a_folder_may_hold_links_to_its_own_photographs(command, files, model_folder, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(files[0], folder / "a.jpg")
    (folder / "b.jpg").symlink_to("a.jpg")
    words = ("encode", folder, "--out", tmp_path / "x.safetensors", "--model", model_folder, "--json")
    assert command(*words).json["images"] == 1


def test_names_that_the_terminal_cannot_show(environment, files, model_folder, tmp_path):
    words = ("encode", str(files[0]), "--out", "\u2603.safetensors", "--model", str(model_folder))
    narrow = environment | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(
        [sys.executable, "-m", "iwm", *words], env=narrow, cwd=tmp_path, capture_output=True, check=True
    )
    assert rb"to \u2603.safetensors (" in done.stdout


def test_the_same_photograph_by_two_names_is_found_out(command, files, no_model, tmp_path):
    twin = tmp_path / "twin.jpg"
    twin.symlink_to(files[0])
    words = command("encode", files[0], twin, "--out", tmp_path / "x.safetensors").error
    assert f"{twin} is given twice" in words
