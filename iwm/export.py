"""A model for other runtimes: a folder that OpenVINO or ONNX Runtime runs without its PyTorch weights.

The encoder, the world model and every classification task become one graph each, of any batch
size, at the model's input size. `iwm.load(folder, backend=...)` gives the same calls (`iwm.runtimes`). Precisions: `fp32`;
`fp16`, weights stored in half precision; `int8`, linear layers whose weights (a scale a channel)
and inputs (a fixed range) are whole numbers. The ranges are measured on photographs. In OpenVINO, which runs
such graphs wrongly where a head reads one predicted token, these heads stay in half precision.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from iwm.calibration import calibration_rows
from iwm.checkpoint import write_tensors
from iwm.errors import InvalidConfigError, MissingBackendError, nearest
from iwm.export_folder import replacing
from iwm.files import write_text
from iwm.images import Images
from iwm.model_folder import CONFIG_FILE, DECODER_FILE, EXPORT_FILE, WEIGHTS_FILE, task_file
from iwm.runtimes import EXPORT_FORMAT, converting, task_part

if TYPE_CHECKING:
    from iwm.world_model import WorldModel

Format = Literal["openvino", "onnx", "torch"]
Precision = Literal["fp32", "fp16", "int8"]

_LARGE = 400_000_000
"""Parameters above which ONNX, whose files end at 2 GB, keeps weights in a second file."""


@dataclass(frozen=True)
class _Part:
    """A module to export, example inputs of a batch of 2, and the inputs' names."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    names: tuple[str, ...]

    @property
    def reads_token(self) -> bool:
        """Whether it is a head on one predicted token."""
        return isinstance(self.module, _Classify) and self.module.adapter.config.output == "token"


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
        folder: made if it does not exist. An export for a runtime that is there is replaced, once
            the new one is complete; a model that is there is not.
        format: `openvino`, `onnx`, or `torch`: a model folder like `save_pretrained`'s.
        precision: `fp32`, `fp16` or `int8`; see the module. `torch` has no `int8`.
        calibration: photographs that `int8` measures its ranges on, some dozens, not of a test
            set. None takes noise with the spectrum of photographs.

    Raises:
        MissingBackendError: a package is not installed; the message says which.
        InvalidConfigError: an unknown format or precision, or a model of another type or device.
        SaveError: the folder cannot be written, or holds a model.
    """
    _check(model, format, precision)
    if calibration is not None and precision != "int8":
        raise InvalidConfigError(
            f"Calibration measures the ranges of int8, and {precision} has none: "
            'pass precision="int8" (--precision int8), or no calibration.'
        )
    with replacing(Path(folder)) as temporary:
        if format == "torch":
            model.save_pretrained(temporary)
            if precision == "fp32":
                _write_full(model, temporary)
            return
        rows = calibration_rows(model, calibration) if precision == "int8" else {}
        parts = _parts(model)
        for name, part in parts.items():
            # Heads read what the encoder gives.
            of_part = rows.get(name) or [row[:1] for row in rows.get("world_model", [])]
            stored = (
                "fp16" if format == "openvino" and precision == "int8" and part.reads_token else precision
            )
            _write_part(part, temporary / name, format, stored, of_part)
        about = {
            "format": EXPORT_FORMAT,
            "backend": format,
            "precision": precision,
            "space": model.space,
            "parts": list(parts),
            "made_with": _versions(format),
        }
        write_text(temporary / EXPORT_FILE, json.dumps(about, indent=2) + "\n")
        write_text(temporary / CONFIG_FILE, model.config.to_json())


def _write_full(model: WorldModel, folder: Path) -> None:
    """The weights of a saved folder again, in float32: of the model, its adapters and its decoder."""
    core = {k: v for k, v in model.state_dict().items() if k.startswith(("encoder.", "predictor."))}
    write_tensors(folder / WEIGHTS_FILE, core)
    for name, adapter in model.heads.items():
        write_tensors(folder / task_file(name), _floats(adapter))
    if model.decoder is not None:
        write_tensors(folder / DECODER_FILE, _floats(model.decoder))


def _floats(module: nn.Module) -> dict[str, Tensor]:
    """What strict loading asks of a file: no counts of batches."""
    return {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}


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
    if model._like.dtype != torch.float32 or model.device.type != "cpu":
        raise InvalidConfigError(
            f"The model is {str(model._like.dtype)[6:]} on {model.device}; load it for the export "
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
