"""A model for other runtimes: a folder that OpenVINO or ONNX Runtime runs without its PyTorch weights.

The encoder, the world model and every classification task become one graph each, of any batch
size, at the model's input size. `iwm.load(folder, backend=...)` gives the same calls (`iwm.runtimes`). Precisions: `fp32`;
`fp16`, weights stored in half precision; `int8`, linear layers whose weights (a scale a channel)
and inputs (a fixed range) are whole numbers. The ranges are measured on photographs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from iwm.actions import draw_photometry
from iwm.checkpoint import CONFIG_FILE, WEIGHTS_FILE, write_tensors
from iwm.errors import InvalidConfigError, MissingBackendError, SaveError, nearest
from iwm.files import remove, write_text
from iwm.images import Images
from iwm.photometry import transform
from iwm.runtimes import EXPORT_FILE, EXPORT_FORMAT, PARTS, converting, task_part

if TYPE_CHECKING:
    from iwm.world_model import WorldModel

Format = Literal["openvino", "onnx", "torch"]
Precision = Literal["fp32", "fp16", "int8"]

_CALIBRATION_IMAGES = 64
_LARGE = 400_000_000
"""Parameters above which ONNX, whose files end at 2 GB, keeps weights in a second file."""


@dataclass(frozen=True)
class _Part:
    """A module to export, example inputs of a batch of 2, and the inputs' names."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    names: tuple[str, ...]


class _Encode(nn.Module):
    def __init__(self, model: WorldModel) -> None:
        super().__init__()
        self.encoder = model.encoder

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.encoder(images)
        return out


class _Act(nn.Module):
    def __init__(self, model: WorldModel) -> None:
        super().__init__()
        self.predictor, self.grid = model.predictor, model._grid

    def forward(self, source: Tensor, action: Tensor) -> Tensor:
        out: Tensor = self.predictor(source, action, self.grid)
        return out


class _Classify(nn.Module):
    """An adapter for one task; it asks for the predictor of the model, which this stands for."""

    def __init__(self, model: WorldModel, task: str) -> None:
        super().__init__()
        self.adapter = model.load_adapter(model.config.adapter_of(task))
        self.predictor, self.grid, self.task = model.predictor, model._grid, task

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.adapter(self, tokens, self.grid, self.task)
        return out


@torch.no_grad()
def export(
    model: WorldModel,
    folder: str | os.PathLike[str],
    *,
    format: Format = "openvino",  # noqa: A002
    precision: Precision = "fp16",
    calibration: Images | None = None,
) -> None:
    """Write a folder that `iwm.load(folder, backend=format)` runs.

    Args:
        model: a float32 model on the CPU.
        folder: made if it does not exist; an export that is there is replaced.
        format: `openvino`, `onnx`, or `torch`: a model folder like `save_pretrained`'s.
        precision: `fp32`, `fp16` or `int8`; see the module. `torch` has no `int8`.
        calibration: photographs that `int8` measures its ranges on, some dozens, not of a test
            set. None takes noise with the spectrum of photographs.

    Raises:
        MissingBackendError: a package is not installed; the message says which.
        InvalidConfigError: an unknown format or precision, or a model of another type or device.
        SaveError: the folder cannot be written.
    """
    _check(model, format, precision)
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f"Cannot write {target}: {error}.") from error
    _clear(target)
    if format == "torch":
        model.save_pretrained(target)
        if precision == "fp32":
            state = model.state_dict()
            core = {k: v for k, v in state.items() if k.startswith(("encoder.", "predictor."))}
            write_tensors(target / WEIGHTS_FILE, core)
        return
    with tempfile.TemporaryDirectory(dir=target, prefix=".export.") as temporary:
        rows = _calibration_rows(model, calibration) if precision == "int8" else {}
        parts = _parts(model)
        for name, part in parts.items():
            # Heads read what the encoder gives.
            of_part = rows.get(name) or [row[:1] for row in rows.get("world_model", [])]
            _write_part(part, Path(temporary) / name, format, precision, of_part)
        try:
            for written in sorted(Path(temporary).iterdir()):
                written.replace(target / written.name)
        except OSError as error:
            raise SaveError(f"Cannot write {target}: {error}.") from error
    write_text(target / CONFIG_FILE, model.config.to_json())
    about = {
        "format": EXPORT_FORMAT,
        "backend": format,
        "precision": precision,
        "space": model.space,
        "parts": list(parts),
        "made_with": _versions(format),
    }
    # Last: a folder that has it is whole.
    write_text(target / EXPORT_FILE, json.dumps(about, indent=2) + "\n")


def _check(model: WorldModel, backend: str, precision: str) -> None:
    if backend not in get_args(Format):
        raise InvalidConfigError(f'No format is called "{backend}".{nearest(backend, get_args(Format))}')
    if precision not in get_args(Precision):
        raise InvalidConfigError(
            f'No precision is called "{precision}".{nearest(precision, get_args(Precision))}'
        )
    if not model.differentiable:
        raise InvalidConfigError("This model is an export itself; export the one it was made from.")
    if backend == "torch":
        if precision == "int8":
            raise InvalidConfigError(
                'PyTorch runs no int8 folder; use precision="fp16", or format="openvino" or "onnx".'
            )
        return
    if model._like.dtype != torch.float32 or model._like.device.type != "cpu":
        raise InvalidConfigError(
            f"The model is {str(model._like.dtype)[6:]} on {model._like.device}; load it for the export "
            'as iwm.load(name), float32 on the CPU. The precision of the folder is precision="...".'
        )
    if backend == "openvino":
        require_package("openvino", "openvino")
    if backend == "onnx" or precision == "int8":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require_package(package, "onnx")


def require_package(package: str, extra: str) -> None:
    """Raise `MissingBackendError` unless a package can be imported."""
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise MissingBackendError(f'This needs the package {package}: pip install "iwm[{extra}]"')


def _clear(folder: Path) -> None:
    """Take away what an export before this one left, its mark first."""
    remove(folder / EXPORT_FILE)
    for name in (*PARTS, "task-*"):
        for suffix in (".xml", ".bin", ".onnx", ".onnx.data"):
            for path in list(folder.glob(f"{name}{suffix}")):
                remove(path)
    remove(folder / WEIGHTS_FILE)


def _parts(model: WorldModel) -> dict[str, _Part]:
    """What is exported: graphs by name, those of `iwm.runtimes.PARTS` and one a classification task."""
    size, side = model.preprocess.size, model._grid[0]
    vectors = model.encode_photometry(torch.zeros(2, 2, 7))
    tokens = torch.zeros(2, side * side, model.config.encoder.width)
    parts = {
        "encoder": _Part(_Encode(model), (torch.zeros(2, 3, size, size),), ("images",)),
        "world_model": _Part(_Act(model), (tokens, vectors), ("source", "action")),
    }
    for task, described in model.config.tasks.items():
        if described.kind == "classification":
            parts[task_part(task)] = _Part(_Classify(model, task), (tokens,), ("tokens",))
    return parts


def _write_part(
    part: _Part, path: Path, backend: str, precision: str, rows: list[tuple[Tensor, ...]]
) -> None:
    """Trace one module and write its graph, with `path` as a stem."""
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in part.inputs)
    with _quiet():
        program = torch.export.export(part.module.eval(), part.inputs, dynamic_shapes=shapes)
    if backend == "openvino" and precision != "int8":
        with _quiet(), converting() as openvino:
            graph = openvino.convert_model(program)
            graph.reshape({i: [-1, *x.shape[1:]] for i, x in enumerate(part.inputs)})
            openvino.save_model(graph, f"{path}.xml", compress_to_fp16=precision == "fp16")
        return
    onnx_path = path.with_suffix(".onnx")
    with _quiet():
        torch.onnx.export(
            program, f=onnx_path, input_names=part.names, output_names=["out"], dynamo=True,
            external_data=sum(p.numel() for p in part.module.parameters()) > _LARGE, verbose=False,
        )  # fmt: skip
    if precision == "fp16":
        from iwm.quantization import halve_weights

        halve_weights(onnx_path)
    if precision == "int8":
        from iwm.quantization import quantize

        feeds = [{n: x.numpy() for n, x in zip(part.names, row, strict=True)} for row in rows]
        with _quiet():
            quantize(onnx_path, feeds)
        if backend == "openvino":
            with converting() as openvino:
                openvino.save_model(openvino.convert_model(onnx_path), f"{path}.xml", compress_to_fp16=True)
            onnx_path.unlink()


def _calibration_rows(model: WorldModel, images: Images | None) -> dict[str, list[tuple[Tensor, ...]]]:
    """Inputs of every part, in small batches: images and views of them, latents and actions."""
    pixels = _pink_noise(model.preprocess.size) if images is None else model.preprocess(images)
    pixels = pixels[:: max(len(pixels) // _CALIBRATION_IMAGES, 1)][:_CALIBRATION_IMAGES]
    drawn = model.config.actions.distribution
    photometries = [
        draw_photometry(drawn, seed=0, keys=[(epoch, i) for i in range(len(pixels))]) for epoch in (0, 1)
    ]
    views = transform(pixels, photometries[0])
    tokens = model.encode(views).tokens
    clean = torch.zeros_like(photometries[0])
    clean[:, :3] = 1.0
    targets = photometries[1] if model.config.actions.symmetric else clean
    vectors = model.encode_photometry(torch.stack((photometries[0], targets), dim=1))
    rows = [slice(i, i + 8) for i in range(0, len(pixels), 8)]
    encoder: list[tuple[Tensor, ...]] = [(batch[s],) for batch in (views, pixels) for s in rows]
    return {"encoder": encoder, "world_model": [(tokens[s], vectors[s]) for s in rows]}


def _pink_noise(size: int) -> Tensor:
    """`[B, 3, size, size]` of noise whose amplitude falls with frequency, as that of photographs."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.fft.rfft2(torch.randn(_CALIBRATION_IMAGES, 3, size, size, generator=generator))
    across, down = torch.fft.rfftfreq(size), torch.fft.fftfreq(size).unsqueeze(1)
    noise /= (across.square() + down.square()).sqrt().clamp_min(1.0 / size)
    shared = torch.fft.irfft2(noise, s=(size, size))
    shared = 0.4 * shared + 0.6 * shared.mean(1, keepdim=True)  # Channels go together in photographs.
    pink: Tensor = 0.45 + 0.25 * shared / shared.std(dim=(1, 2, 3), keepdim=True)
    return pink.clamp(0.0, 1.0)


def _versions(backend: str) -> dict[str, str]:
    from importlib.metadata import version

    from iwm import __version__

    names = ["torch", "openvino" if backend == "openvino" else "onnxruntime"]
    return {"iwm": __version__} | {name: version(name) for name in names}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say about themselves on the way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
