"""`iwm encode`: a bank of exactly what the model encodes, from files and folders."""

import re

import pytest
import torch

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
        (["PHOTOS", "PHOTOS"], r"00\.jpg' is given twice"),
    ],
    ids=["unreadable", "missing", "empty", "twice"],
)
def test_what_cannot_be_encoded_is_named_and_nothing_written(
    command, photos, bad_photo, model_folder, tmp_path, images, message
):
    (tmp_path / "empty").mkdir()
    places = {
        "PHOTOS": photos, "BAD": bad_photo, "MISSING": tmp_path / "missing.jpg", "EMPTY": tmp_path / "empty"
    }  # fmt: skip
    out = tmp_path / "bank.safetensors"
    error = command("encode", *[places[name] for name in images], "-o", out, "-m", model_folder).error
    assert re.search(message, error)
    assert not out.exists()


def test_an_out_that_cannot_be_written(command, photos, bad_photo, model_folder):
    error = command("encode", photos, "-o", bad_photo / "bank.safetensors", "-m", model_folder).error
    assert "Cannot write" in error
    assert bad_photo.read_text() == "not an image"
