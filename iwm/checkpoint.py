"""Tensors of a model folder: written atomically, loaded strictly.

Weights are stored as float16, the statistics of batch norms as float32. No file holds code: safetensors and JSON alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from iwm.config import WorldModelConfig
from iwm.errors import IncompatibleWeightsError, WeightsUnavailableError, quoted
from iwm.files import atomic_write, remove
from iwm.integrity import file_state, receipt_path
from iwm.model_folder import (
    DECODER_FILE,
    STUDENT_FILE,
    TASK_FILES,
    WEIGHTS_FILE,
    task_file,
    write_config,
)

_FLOATS = ("F16", "BF16", "F32", "F64")
_PIECE = 1 << 24


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    with atomic_write(path) as temporary:
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata)
        except SafetensorError as error:  # A full disk, among others.
            raise OSError(str(error)) from error


def plain_state(module: nn.Module) -> dict[str, Any]:
    """Its state by the names of its own modules, whichever of them `torch.compile` has wrapped."""
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in module.state_dict().items()}


def save_model(
    folder: Path,
    config: WorldModelConfig,
    model: nn.Module,
    student: nn.Module | None = None,
    adapters: Mapping[str, nn.Module] | None = None,
    decoder: nn.Module | None = None,
    keep_student: bool = False,
) -> None:
    """Write a model folder; the config comes last, so that a folder that has one is whole."""
    remove(receipt_path(folder))  # It speaks of what was downloaded here.
    state = {k: v for k, v in plain_state(model).items() if not k.startswith(("adapters.", "decoder."))}
    write_tensors(folder / WEIGHTS_FILE, _half(state))
    if student is not None:
        write_tensors(folder / STUDENT_FILE, _half(student.state_dict()))
    elif not keep_student:
        remove(folder / STUDENT_FILE)  # It would belong to another model.
    for name, adapter in (adapters or {}).items():
        _write_adapter(folder / task_file(name), adapter)
    if decoder is not None:
        write_tensors(folder / DECODER_FILE, _half(decoder.state_dict()))
    else:
        remove(folder / DECODER_FILE)
    write_config(folder, config)
    for path in folder.glob(TASK_FILES):
        if path.name not in map(task_file, adapters or {}):
            remove(path)


def save_adapter(folder: Path, config: WorldModelConfig, name: str, adapter: nn.Module) -> None:
    """Add an adapter to a model folder, or replace it.

    Args:
        folder: holds the model already.
        config: describes the adapter, under `name`; written last.
        name: of the adapter.
        adapter: its weights are stored.
    """
    remove(receipt_path(folder))
    _write_adapter(folder / task_file(name), adapter)
    write_config(folder, config)


def save_decoder(folder: Path, config: WorldModelConfig, decoder: nn.Module) -> None:
    """Add a decoder to a model folder, or replace it; the config, which describes it, comes last."""
    remove(receipt_path(folder))
    write_tensors(folder / DECODER_FILE, _half(decoder.state_dict()))
    write_config(folder, config)


def _write_adapter(path: Path, adapter: nn.Module) -> None:
    """Statistics keep float32: a variance may be smaller than float16 can say."""
    state = {name: tensor for name, tensor in adapter.state_dict().items() if tensor.is_floating_point()}
    trained = {name for name, _ in adapter.named_parameters()}
    write_tensors(path, {k: v.half() if k in trained else v.float() for k, v in state.items()})


def _half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().to(torch.float16) if v.is_floating_point() else v for k, v in state.items()}


def load_weights(path: Path, module: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Fill `module` from a safetensors file: every tensor of both, by name and shape.

    Names, shapes and types are checked in the file's header, before a tensor is read. The module
    may be on the meta device. Tensors are cast as they are read, some at a time: a file that is
    mapped as a whole would count twice in memory.

    Raises:
        WeightsUnavailableError: no such file, or it was replaced while it was read.
        IncompatibleWeightsError: not a safetensors file, or tensors missing, unexpected, of
            another shape, or not of floating point.
    """
    expected = {
        name: list(tensor.shape)
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point()  # Batch norms count their batches, to no use here.
    }
    try:
        state = file_state(path)
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            stored = {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}
        problems = _misfits(stored, expected)
        if problems:
            raise IncompatibleWeightsError(
                f"{path} does not fit the model its config describes: {'; '.join(problems[:5])}. "
                "Take config.json and the weights from the same checkpoint."
            )
        tensors: dict[str, Tensor] = {}
        for names in _pieces(expected):
            with safe_open(path, framework="pt") as file:
                for name in names:
                    tensors[name] = file.get_tensor(name).to(dtype, copy=True)
        replaced = file_state(path) != state
    except FileNotFoundError as error:
        raise WeightsUnavailableError(
            f"No weights at {path}. Copy the whole folder, or save it again."
        ) from error
    except (SafetensorError, OSError) as error:
        raise IncompatibleWeightsError(
            f"{path} is not a readable safetensors file: {quoted(error, 300)}"
        ) from error
    if replaced:
        raise WeightsUnavailableError(f"{path} was replaced while it was read; load it again.")
    module.load_state_dict(tensors, strict=True, assign=True)


def _misfits(stored: dict[str, tuple[list[int], str]], expected: dict[str, list[int]]) -> list[str]:
    problems = []
    for words, names in (
        ("missing", expected.keys() - stored.keys()),
        ("unexpected", stored.keys() - expected.keys()),
    ):
        if names:
            problems.append(f"{len(names)} {words} ({_some(sorted(names))})")
    for name in sorted(expected.keys() & stored.keys()):
        shape, kind = stored[name]
        if shape != expected[name]:
            problems.append(f"{name} has shape {quoted(shape)}, expected {expected[name]}")
        elif kind not in _FLOATS:
            problems.append(f"{name} holds {kind}, expected one of {', '.join(_FLOATS)}")
    return problems


def _pieces(shapes: dict[str, list[int]]) -> Iterator[list[str]]:
    """Names in runs of about `_PIECE` values."""
    piece: list[str] = []
    size = 0
    for name, shape in shapes.items():
        piece.append(name)
        size += math.prod(shape)
        if size >= _PIECE:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _some(names: list[str]) -> str:
    return ", ".join(map(quoted, names[:3])) + (", ..." if len(names) > 3 else "")
