"""What `iwm pretrain` refuses, and `--dry-run` as well: said in one line, and nothing is written."""

import json
import re
import sys

import pytest
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer


@pytest.fixture
def words(photos, pretrain_words, tmp_path):
    """A command that would train three steps into a new folder."""
    out = tmp_path / "run"
    return ["pretrain", "--recipe", "iwm-tiny", "--data", photos, "--out", out, "--steps", 3, *pretrain_words]


@pytest.fixture
def encoder(tmp_path):
    """A file of an encoder that fits."""
    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, class_token=False, global_pool="avg"
    )
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    return tmp_path / "vit.safetensors"


REFUSALS = {
    "size": (
        ["--model.encoder.image_size", 30],
        r"encoder\.image_size 30 is not divisible by patch_size 8; use 24, for preprocess\.size too\.",
    ),
    "input": (
        ["--model.preprocess.size", 30],
        r"preprocess\.size 30 is not divisible by encoder\.patch_size \(8\); use 24\.",
    ),
    "sizes": (
        ["--model.preprocess.size", 24, "--model.preprocess.resize", 24],
        r"model\.preprocess\.size is 24 and model\.encoder\.image_size 32; .* set both\.",
    ),
    "pieces": (
        ["--accumulate", 3],
        r"batch_size 4 cannot be shared evenly by 1 processes in 3 pieces each; use a multiple of 3\.",
    ),
    "device": (["--device", "cpux"], r'Cannot use device "cpux"; try "cpu" or "auto"\. .*'),
    "encoder": (
        ["--init-encoder", "gone.safetensors"],
        r"No encoder at gone\.safetensors\. Name a safetensors file, or timm:<name>\.",
    ),
    "wandb": (["--wandb", "project"], r".*wandb.*Install it: pip install 'iwm\[train\]', or wandb\."),
    "two streams": (["--data", "hf:"], r"--data takes one stream alone, .*"),
    "choice": (
        ["--data.on_unreadable", "fial"],
        r"data\.on_unreadable is 'fial': .*'skip' or 'fail'\. Did you mean \"fail\"\?",
    ),
}


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["start", "dry run"])
@pytest.mark.parametrize("name", REFUSALS)
def test_a_start_and_a_dry_run_refuse_the_same(command, monkeypatch, words, tmp_path, name, dry):
    monkeypatch.setitem(sys.modules, "wandb", None)
    options, message = REFUSALS[name]
    error = command(*words, *options, *dry).error
    assert re.fullmatch(rf"Error: {message}\n", error), error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["start", "dry run"])
def test_a_run_that_cannot_go_on(command, words, tmp_path, dry):
    """Its checkpoint is of other images, or of more steps than are asked for."""
    assert command(*words).code == 0
    (tmp_path / "more").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "more" / "more.png")
    files = [path for path in (tmp_path / "run").iterdir() if path.name != ".lock"]
    before = [path.stat().st_mtime_ns for path in files]
    error = command(*words, "--data", tmp_path / "more", *dry).error
    assert re.search(r"run was trained on 12 images .*, --data now holds 13 images", error), error
    error = command(*words, "--steps", 2, "--resume", *dry).error
    assert "run has done 3 steps already; ask for more than that, not 2." in error
    assert before == [path.stat().st_mtime_ns for path in files]


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["start", "dry run"])
def test_an_encoder_that_does_not_fit(command, words, encoder, tmp_path, dry):
    words += ["--init-encoder", encoder, "--model.predictor.mlp_ratio", 2, *dry]
    error = command(*words, "--model.encoder.depth", 2).error
    assert "does not fit the encoder: blocks.1." in error
    assert error.endswith("Its sizes: --model.encoder.depth 1\n")
    assert list(tmp_path.iterdir()) == [encoder]
    assert not dry or command(*words).code == 0


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["start", "dry run"])
@pytest.mark.parametrize(
    "content", [{}, {"notes.txt": "words", ".hidden.jpg": "words"}], ids=["empty", "words"]
)
def test_a_folder_without_images_is_named(command, words, tmp_path, content, dry):
    folder = tmp_path / "no images"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    error = command(*words, "--data", folder, *dry).error
    assert error.startswith(f"Error: No images in {folder}; looked for .bmp, ")
    missing = command(*words, "--data", tmp_path / "gone", *dry).error
    assert missing == f"Error: No such folder: {tmp_path / 'gone'}\n"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("name", ["hf:", "hf:a:b:c:d"])
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["start", "dry run"])
def test_a_stream_without_a_name(command, words, tmp_path, name, dry):
    words[words.index("--data") + 1] = name
    assert command(*words, *dry).error == (
        f"Error: {name} names no dataset of the Hub; write hf:org/name, hf:org/name:split or "
        "hf:org/name:split:column.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_what_the_processes_cannot_share(command, monkeypatch, words):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "batch_size 4 cannot be shared evenly by 3 processes" in command(*words, "--dry-run").error
    assert "(3 processes, accumulate 1)" in command(*words, "--dry-run", "--batch-size", 6).out


def test_a_dry_run_refuses_a_folder_of_another_run(command, words):
    assert command(*words, "--resume", "--dry-run").error.endswith("leave --resume out to start one.\n")
    assert command(*words).code == 0
    assert command(*words, "--dry-run").code == 0
    changes = ["--seed", 5, "--batch-size", 2, "--optim.lr", 1e-4, "--optim.clip", 0, "--clean", 0.1]
    changes += ["--model.predictor.depth", 2, "--masks.unmasked", 0.5, "--precision", "bf16"]
    for dry in ([], ["--dry-run"]):
        error = command(*words, *changes, *dry).error
        for difference in (
            "batch_size was 4, now 2", "clean was 0.3, now 0.1", "masks.unmasked was 0.2, now 0.5",
            "model.predictor.depth was 1, now 2", "optim.clip was 3.0, now 0.0", "optim.lr was 0.0014, now 0.0001",
            "precision was 'float32', now 'bf16'", "seed was 0, now 5",
        ):  # fmt: skip
            assert difference in error
        assert error.count(" was ") == 8


def test_unreadable_images_are_skipped_and_told_or_end_the_run(fresh, words, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (20, 20), (60 * i, 90, 200)).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes((folder / "2.png").read_bytes()[:40])
    words[words.index("--data") + 1] = folder
    failed = fresh(*words, "--data.on-unreadable", "fail", "--data.workers", 1)
    assert (failed.code, failed.out) == (1, "")
    assert re.fullmatch(
        rf"Error: Cannot read {folder / '3.png'} as an image: .+ --data\.on_unreadable skip\n", failed.err
    )
    done = fresh(*words, "--log-every", 1)
    assert done.code == 0, done.err
    assert done.err.count(f"skipped: Cannot read {folder / '3.png'} as an image") == 1
    assert "3 of the 12 images drawn could not be read" in done.err
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["unreadable"] for line in lines] == [1, 2, 3]
