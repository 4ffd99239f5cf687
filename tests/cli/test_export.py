"""`iwm export`."""

import pytest

import iwm


def test_a_torch_export_loads(command, model_folder, tmp_path):
    out = tmp_path / "out"
    said = command(
        "export", "--model", model_folder, "--out", out, "--format", "torch", "--json"
    ).json  # fmt: skip
    assert set(said["bytes"]) == {"README.md", "config.json", "model.safetensors"}
    assert iwm.load(out).space == iwm.load(model_folder).space


def test_an_onnx_export_loads(command, model_folder, photos, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path / "out"
    outcome = command(
        "export", "--model", model_folder, "--out", out, "--format", "onnx", "--precision", "int8",
        "--calibration", photos,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert f'Run it: iwm.load("{out}", backend="onnx")' in outcome.out
    assert iwm.load(out, backend="onnx").encode(sorted(photos.rglob("*.jpg"))[:2]).tokens.shape == (2, 16, 48)


def test_words_that_are_no_format(command, model_folder, tmp_path):
    words = ("export", "--model", model_folder, "--out", tmp_path / "out")
    assert 'Did you mean "openvino"' in command(*words, "--format", "openvin").error
    assert 'Did you mean "fp16"' in command(*words, "--precision", "fp61").error


def test_calibration_that_does_not_exist(command, model_folder, tmp_path):
    words = ("export", "--model", model_folder, "--out", tmp_path / "out", "--precision", "int8")
    assert "No such folder: nowhere" in command(*words, "--calibration", "nowhere").error


def test_a_run_is_not_exported_into_itself(command, model_folder):
    before = sorted(path.name for path in model_folder.iterdir())
    outcome = command("export", "--model", model_folder, "--out", model_folder, "--format", "torch")
    assert "holds a model (model.safetensors)" in outcome.error
    assert sorted(path.name for path in model_folder.iterdir()) == before
