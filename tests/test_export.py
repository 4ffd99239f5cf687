"""Exports: the same numbers as PyTorch, any batch, and folders that cannot be run."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import iwm
from iwm import runtimes
from iwm.actions import Action
from iwm.adapter import Adapter
from iwm.config import AdapterConfig, DecoderConfig, TaskConfig
from iwm.decoder import Decoder
from iwm.errors import (
    IncompatibleLatentError,
    IncompatibleWeightsError,
    InvalidConfigError,
    InvalidImageError,
    MissingBackendError,
    SaveError,
    UnknownModelError,
    WeightsUnavailableError,
)
from iwm.evaluation import mrr
from iwm.model_folder import EXPORT_FILE
from iwm.world_model import WorldModel

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ACTIONS = [Action(brightness=0.8), Action(hue=0.1, blur=1.0), Action(grayscale=True)]
TOLERANCE = {"fp32": 2e-4, "fp16": 0.08, "int8": 0.5}
"""Largest difference of a feature, whose variance is 1."""
LEAST_COSINE = {"fp32": 0.999999, "fp16": 0.999, "int8": 0.99}


def small(make_config, layout="inplace", conditioning="adaln", **changes):
    torch.manual_seed(0)
    model = WorldModel(make_config(layout, conditioning, **changes))
    for name, weights in model.named_parameters():
        torch.nn.init.normal_(weights, std=0.3 if "action" in name or "modulation" in name else 0.15)
    return model


@pytest.fixture(scope="module")
def model(tiny_config):
    return small(tiny_config)


def test_an_exported_model_can_be_copied(folder):
    served = iwm.load(folder("onnx", "fp32"), backend="onnx")
    assert copy.copy(served).space == served.space


@pytest.mark.parametrize("backend", ["openvino", "onnx"])
def test_an_exported_model_travels_to_other_processes(folder, backend):
    served = iwm.load(folder(backend, "fp32"), backend=backend)
    served.default_task = "x"
    again, image = pickle.loads(pickle.dumps(served)), torch.rand(1, 3, 32, 32)
    assert torch.equal(again.encode(image).tokens, served.encode(image).tokens)
    assert (again.space, again.default_task) == (served.space, "x")


@pytest.mark.parametrize("backend", ["openvino", "onnx"])
def test_threads_get_their_own_latents(model, folder, backend):
    served = iwm.load(folder(backend, "fp32"), backend=backend)
    images = torch.rand(32, 3, 32, 32)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: served.encode(image).tokens, [*images] * 4))
    expected = model.encode(images).tokens
    for place, tokens in enumerate(found):
        torch.testing.assert_close(tokens[0], expected[place % 32], atol=TOLERANCE["fp32"], rtol=0)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """`folder("onnx", "int8")`: an export, made once."""
    made = {}

    def make(backend, precision):
        key = backend, precision
        if key not in made:
            made[key] = tmp_path_factory.mktemp("export") / f"{backend}-{precision}"
            model.export(made[key], backend, precision)
        return made[key]

    return make


def close(found, expected, precision):
    assert (found.tokens - expected.tokens).abs().max() < TOLERANCE[precision]
    cosines = F.cosine_similarity(found.tokens.flatten(1), expected.tokens.flatten(1))
    assert cosines.min() > LEAST_COSINE[precision]
    assert (found.grid, found.space) == (expected.grid, expected.space)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("backend", ["openvino", "onnx"])
def test_exports_give_the_numbers_of_pytorch(model, folder, backend, precision):
    exported = iwm.load(folder(backend, precision), backend=backend)
    for batch in (1, 3):
        images = F.interpolate(torch.rand(batch, 3, 5, 5), size=32, mode="bicubic").clamp(0, 1)
        latent = model.encode(images)
        close(exported.encode(images), latent, precision)
        close(exported.apply_action(latent, ACTIONS[0]), model.apply_action(latent, ACTIONS[0]), precision)
    close(exported.apply_action(latent, ACTIONS), model.apply_action(latent, ACTIONS), precision)
    close(exported.apply_action(latent[1], ACTIONS), model.apply_action(latent[1], ACTIONS), precision)


def test_smaller_numbers_make_smaller_files(folder):
    for backend in ("openvino", "onnx"):
        sizes = [
            sum(path.stat().st_size for path in folder(backend, precision).glob("*.[bo]*"))
            for precision in ("fp32", "fp16")
        ]
        assert sizes[1] < 0.75 * sizes[0]


@pytest.mark.parametrize(
    ("layout", "conditioning", "shared"),
    [
        ("append", "feature", False),
        ("append", "feature", True),
        ("append", "adaln", True),
        ("inplace", "sequence", False),
        ("inplace", "none", False),
    ],
)
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_every_kind_of_predictor_is_exported(tiny_config, tmp_path, layout, conditioning, shared, format):  # noqa: A002
    model = small(tiny_config, layout, conditioning, share_source=shared)
    model.export(tmp_path / "out", format, "fp32")
    exported = iwm.load(tmp_path / "out", backend=format)
    for photographs in (1, len(ACTIONS)):
        latent = model.encode(torch.rand(photographs, 3, 32, 32))
        close(exported.apply_action(latent, ACTIONS), model.apply_action(latent, ACTIONS), "fp32")


def test_what_takes_a_model_takes_an_export(model, folder):
    exported = iwm.load(folder("openvino", "fp32"), backend="openvino")
    images = list(torch.rand(2, 3, 32, 32))
    assert mrr(exported, images, bank_size=4).mrr == pytest.approx(mrr(model, images, bank_size=4).mrr)
    torch.testing.assert_close(exported.embed(images), model.embed(images), atol=1e-4, rtol=0)
    bank = iwm.Bank.from_images(model, images)
    assert (
        bank.search(exported.predict(images[0], Action()), k=1).ids
        == bank.search(model.predict(images[0], Action()), k=1).ids
    )
    _, report = exported.infer_action(images[0], images[0], solver="cem")
    assert report.residual == 0.0
    with pytest.raises(InvalidConfigError, match='has no gradients; pass solver="cem"'):
        exported.infer_action(images[0], images[1])


def with_tasks(make_config):
    """One predictor for two tasks, read by one token; and a probe of the encoder."""
    model = small(make_config)
    labels = {"animals": ("cat", "dog", "owl"), "weather": ("sun", "rain")}
    tasks = {
        name: TaskConfig(kind="classification", labels=words, head="linear") for name, words in labels.items()
    }
    predictor = model.config.predictor
    both = AdapterConfig(tasks=tasks, space=model.space, predictor=predictor, output="token")
    probe = TaskConfig(kind="classification", labels=("in", "out"), head="attentive")
    probed = AdapterConfig(tasks={"place": probe}, space=model.space, reads="encoder")
    for name, config in (("both", both), ("probe", probed)):
        adapter = Adapter(config, model.config)
        for weights in adapter.parameters():
            torch.nn.init.normal_(weights, std=0.3)
        model.add_adapter(name, adapter)
    return model


@pytest.mark.parametrize(
    ("backend", "precision", "tolerance"),
    [
        ("openvino", "fp32", 1e-4),
        ("openvino", "fp16", 0.02),
        ("openvino", "int8", 0.1),
        ("onnx", "fp32", 1e-4),
        ("onnx", "fp16", 0.002),
        ("onnx", "int8", 0.1),
    ],
)
def test_tasks_are_exported(tiny_config, tmp_path, backend, precision, tolerance):
    model = with_tasks(tiny_config)
    labels = {task: described.labels for task, described in model.config.tasks.items()}
    model.export(tmp_path, backend, precision)
    exported = iwm.load(tmp_path, backend=backend, task="weather")
    images = torch.rand(3, 3, 32, 32)
    for task in ("animals", "weather", "place"):
        # In the order of the classes: two that are about as likely may change places.
        found, expected = (in_order(m.classify(images, task), labels[task]) for m in (exported, model))
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    assert exported.classify(images).task == "weather"
    assert exported.labels("animals") == labels["animals"]
    (tmp_path / ("task-place.xml" if backend == "openvino" else "task-place.onnx")).unlink()
    with pytest.raises(WeightsUnavailableError, match=r"No task-place\."):
        iwm.load(tmp_path, backend=backend).classify(images, "place")
    for call in (exported.load_decoder, lambda: exported.segment(images)):
        with pytest.raises(InvalidConfigError, match="not exported"):
            call()


def in_order(found, labels):
    """Probabilities `[B, K]`, class by class."""
    rows = [
        dict(zip(names, row, strict=True))
        for names, row in zip(found.labels, found.probabilities.tolist(), strict=True)
    ]
    return torch.tensor([[row[label] for label in labels] for row in rows])


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_only_int8_is_calibrated(model, tmp_path, precision):
    with pytest.raises(InvalidConfigError, match=f"ranges of int8, and {precision} has none"):
        model.export(tmp_path / "out", "onnx", precision, calibration=[tmp_path])
    assert not (tmp_path / "out").exists()


def test_calibration_on_photographs(model, photos, tmp_path):
    model.export(tmp_path / "out", "onnx", "int8", calibration=sorted(photos.rglob("*.jpg")))
    images = sorted(photos.rglob("*.jpg"))
    served = iwm.load(tmp_path / "out", backend="onnx").encode(images)
    close(served, model.encode(images), "int8")
    model.export(tmp_path / "noise", "onnx", "int8")
    assert not torch.equal(served.tokens, iwm.load(tmp_path / "noise", backend="onnx").encode(images).tokens)


def test_weights_of_large_graphs_are_left_nowhere(model, tmp_path, monkeypatch):
    monkeypatch.setattr("iwm.export._LARGE", 0)
    for precision in ("fp32", "fp16", "int8"):
        model.export(tmp_path / precision, "onnx", precision)
        files = {path.name for path in (tmp_path / precision).iterdir()}
        assert ("encoder.onnx.data" in files) == (precision == "fp32")
        images = torch.rand(2, 3, 32, 32)
        close(iwm.load(tmp_path / precision, backend="onnx").encode(images), model.encode(images), precision)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16)])
def test_a_torch_export_is_a_model_folder(model, tmp_path, precision, dtype):
    model.export(tmp_path / "out", "torch", precision)
    again = iwm.load(tmp_path / "out")
    for name, weights in again.state_dict().items():
        assert torch.equal(weights, model.state_dict()[name].to(dtype).float())


def test_a_full_torch_export_keeps_what_heads_and_decoder_know(tiny_config, tmp_path):
    model = with_tasks(tiny_config)
    decoder = Decoder(DecoderConfig(space=model.space, width=16, depth=1, heads=2), model.config)
    model.add_decoder(decoder)
    model.export(tmp_path, "torch", "fp32")
    again = iwm.load(tmp_path)
    again.load_decoder()
    for name in model.config.adapters:
        again.load_adapter(name)
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, weights in again.state_dict().items():
        assert torch.equal(weights, model.state_dict()[name]), name


@pytest.mark.parametrize("backend", ["openvino", "onnx", "torch"])
def test_a_model_is_never_written_over(model, tmp_path, backend):
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = iwm.load(tmp_path)
    with pytest.raises(SaveError, match=r"holds a model \(model\.safetensors\).*export to another folder"):
        again.export(tmp_path, backend, "fp32")
    (tmp_path / "model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(SaveError, match=r"holds a model \(config\.json\)"):
        again.export(tmp_path, backend, "fp32")
    (tmp_path / "elsewhere").rename(tmp_path / "model.safetensors")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_export_that_fails_leaves_the_one_before(model, folder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(folder("onnx", "fp32"), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "bad.jpg").write_text("not an image")
    with pytest.raises(InvalidImageError, match=r"bad\.jpg"):
        model.export(out, "onnx", "int8", calibration=[tmp_path / "bad.jpg"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_folders_that_cannot_be_written(model, tmp_path, monkeypatch):
    def refuse(*words, **options):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"Cannot write .*file"):
        model.export(tmp_path / "file", "torch")
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(SaveError, match=r"Cannot write .*out: .*Permission denied"):
        model.export(tmp_path / "out", "torch")


def test_an_export_replaces_another(model, tmp_path):
    model.export(tmp_path, "onnx", "fp32")
    model.export(tmp_path, "torch", "fp32")
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}


def test_exports_stay_as_they_are(folder, tmp_path):
    exported = iwm.load(folder("onnx", "fp32"), backend="onnx")
    assert exported.to("cpu") is exported.float() is exported
    for change in (
        lambda: exported.to(torch.float16),
        lambda: exported.to("meta"),
        lambda: exported.save_pretrained(tmp_path),
        lambda: exported.export(tmp_path / "again", "onnx"),
    ):
        with pytest.raises(InvalidConfigError, match="export"):
            change()
    with pytest.raises(IncompatibleLatentError, match="acts on grids of 4 x 4, not 2 x 2"):
        exported.predictor(torch.rand(1, 4, 48), torch.rand(1, 14), (2, 2))


def test_options_that_no_export_has(model, tmp_path):
    with pytest.raises(InvalidConfigError, match=r'No format is called "onx"\. Did you mean "onnx"'):
        model.export(tmp_path, "onx")
    with pytest.raises(InvalidConfigError, match=r'No precision is called "int4"\. Did you mean "int8"'):
        model.export(tmp_path, "onnx", "int4")
    with pytest.raises(InvalidConfigError, match="PyTorch runs no int8 folder"):
        model.export(tmp_path, "torch", "int8")
    half = WorldModel(model.config).to(torch.float16)
    with pytest.raises(InvalidConfigError, match=r"The model is float16 on cpu; load it for the export"):
        half.export(tmp_path, "onnx")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_run(model, folder, tmp_path):
    good = folder("onnx", "fp32")
    with pytest.raises(IncompatibleWeightsError, match='exported for onnx; load it with backend="onnx"'):
        iwm.load(good, backend="openvino")
    with pytest.raises(IncompatibleWeightsError, match='exported for onnx; load it with backend="onnx"'):
        iwm.load(good)
    with pytest.raises(UnknownModelError, match=r'"iwm-tiny" is none\. Write one first: iwm\.load'):
        iwm.load("iwm-tiny", backend="onnx")
    with pytest.raises(InvalidConfigError, match=r'No backend is called "onx"\. Did you mean "onnx"'):
        iwm.load(good, backend="onx")
    with pytest.raises(InvalidConfigError, match="leave out pretrained, dtype"):
        iwm.load(good, backend="onnx", dtype=torch.float16)
    model.save_pretrained(tmp_path / "plain")
    with pytest.raises(WeightsUnavailableError, match=r"holds no export\. Write one with"):
        iwm.load(tmp_path / "plain", backend="onnx")
    shutil.copytree(good, tmp_path / "part")
    (tmp_path / "part" / "encoder.onnx").unlink()
    with pytest.raises(WeightsUnavailableError, match=r"No encoder\.onnx in"):
        iwm.load(tmp_path / "part", backend="onnx")
    (tmp_path / "part" / "encoder.onnx").write_bytes(b"not a graph")
    with pytest.raises(IncompatibleWeightsError, match="ONNX Runtime cannot run"):
        iwm.load(tmp_path / "part", backend="onnx")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"format": 99},
            r"exported by iwm .* in format 99; this iwm reads format 1\. Export the model again",
        ),
        ({"backend": "coreml"}, "cannot be read: unknown backend coreml. Export again"),
        ({"space": None, "format": None}, "in format None"),
    ],
)
def test_folders_of_another_version(folder, tmp_path, change, words):
    shutil.copytree(folder("onnx", "fp32"), tmp_path / "old")
    file = tmp_path / "old" / EXPORT_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(IncompatibleWeightsError, match=words):
        iwm.load(tmp_path / "old", backend="onnx")
    file.write_text("[1]")
    with pytest.raises(IncompatibleWeightsError, match="cannot be read"):
        iwm.load(tmp_path / "old", backend="onnx")


def test_runtimes_that_are_not_installed(model, folder, tmp_path, monkeypatch):
    folders = {backend: folder(backend, "fp32") for backend in ("openvino", "onnx")}
    monkeypatch.setattr(
        runtimes, "_core", runtimes._core.__wrapped__
    )  # As in a process that has not used it.
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingBackendError, match=r'pip install "iwm\[openvino\]"'):
        iwm.load(folders["openvino"], backend="openvino")
    with pytest.raises(MissingBackendError, match=r'pip install "iwm\[onnx\]"'):
        iwm.load(folders["onnx"], backend="onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'needs the package openvino: pip install "iwm\[openvino\]"'):
        model.export(tmp_path / "out", "openvino")
    assert not (tmp_path / "out").exists()


SIGNALS = """
import gc, os, signal, sys
import iwm

signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
for _ in range(2):
    model = iwm.load(sys.argv[1], backend="openvino")
    os.kill(os.getpid(), signal.SIGUSR1)
    del model
    gc.collect()
    os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals of POSIX")
def test_signals_are_handled_after_an_openvino_model_is_gone(folder):
    environment = os.environ | {"PYTHONPATH": str(Path(iwm.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS, str(folder("openvino", "fp32"))],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "handled\n" * 4), done.stderr


@pytest.mark.parametrize("before", [None, "false"])
def test_openvino_sends_no_statistics_when_it_converts(monkeypatch, before):
    checker = pytest.importorskip("openvino_telemetry.utils.opt_in_checker")
    if before is None:
        monkeypatch.delenv("CI", raising=False)
    else:
        monkeypatch.setenv("CI", before)
    with runtimes.converting():
        consent = checker.OptInChecker().check(enable_opt_in_dialog=False, disable_in_ci=True)
    assert consent == checker.ConsentCheckResult.DECLINED
    assert os.environ.get("CI") == before
