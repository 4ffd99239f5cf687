"""`iwm pretrain-decoder` and `iwm eval decoder`."""

import shlex

import pytest

import iwm
from iwm.evaluation.reconstruction import reconstruction
from iwm.model_folder import read_config

WORDS = ("--steps", 3, "--batch-size", 4, "--width", 32, "--depth", 1, "--heads", 2, "--data.workers", 0)


def test_train_and_measure(command, photos, files, model_folder, tmp_path):
    out = tmp_path / "run"
    words = (
        "pretrain-decoder",
        "-m",
        model_folder,
        "--data",
        photos,
        "--out",
        out,
        *WORDS,
        "--license",
        "CC0",
    )
    done = command(*words)
    assert done.code == 0, done.err
    assert f'iwm.load("{out}").decode(latent)' in done.out
    described = read_config(out).decoder
    typed = shlex.split(described.recipe["command"])
    assert typed[:6] == ["iwm", "pretrain-decoder", "--model", str(model_folder), "--data", str(photos)]
    assert typed[-2:] == ["--license", "CC0"]
    assert (described.recipe["steps"], described.width, described.license) == (3, 32, "CC0")
    again = command(*typed[1:])
    assert (again.code, read_config(out).decoder.provenance["steps"]) == (0, 3)
    shown = command(
        "eval", "decoder", "-m", out, "--data", photos, "--images", 2, "--actions", 2, "--json", "--record"
    ).json
    report = reconstruction(iwm.load(out), [files[0], files[6]], actions=2)
    assert shown["predicted"] == pytest.approx(report.to_dict()["predicted"])
    assert read_config(out).metrics["decoder-2x2"] == shown
    printed = command("eval", "decoder", "-m", out, "--data", photos, "--images", 2, "--actions", 2)
    assert "baseline: no action" in printed.out


def test_words_that_do_not_fit(command, photos, model_folder, tmp_path):
    words = ("pretrain-decoder", "-m", model_folder, "--data", photos, "--out", tmp_path / "run")
    assert 'No option --widht. Did you mean "--width"' in command(*words, "--widht", 3).error
    assert "has no decoder" in command("eval", "decoder", "-m", model_folder, "--data", photos).error
    assert not (tmp_path / "run").exists()
