"""A model folder: `config.json` and `model.safetensors`, written atomically, loaded strictly.

Weights are stored as float16. No file holds code: safetensors and JSON alone.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from iwm.config import WorldModelConfig
from iwm.errors import IncompatibleWeightsError, InvalidConfigError, SaveError, WeightsUnavailableError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
STUDENT_FILE = "student.safetensors"
MAX_CONFIG_BYTES = 1 << 20


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well.

    Raises:
        SaveError: the disk is full, the folder cannot be written; `path` is as it was.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise SaveError(f"Cannot write {path}: {error}. What was there before is untouched.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    with atomic_write(path) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata)


def save_model(
    folder: Path, config: WorldModelConfig, model: nn.Module, student: nn.Module | None = None
) -> None:
    """Write a model folder; the config comes last, so that a folder that has one is whole."""
    write_tensors(folder / WEIGHTS_FILE, _half(model.state_dict()))
    if student is not None:
        write_tensors(folder / STUDENT_FILE, _half(student.state_dict()))
    else:
        (folder / STUDENT_FILE).unlink(missing_ok=True)  # It would belong to another model.
    write_text(folder / CONFIG_FILE, config.to_json())


def _half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().to(torch.float16) if v.is_floating_point() else v for k, v in state.items()}


def read_config(folder: Path) -> WorldModelConfig:
    """The config of a model folder.

    Raises:
        WeightsUnavailableError: the folder has no config.
        InvalidConfigError: it has one that cannot be used.
    """
    path = folder / CONFIG_FILE
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise InvalidConfigError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes: not a model config.")
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise WeightsUnavailableError(
            f"{folder} is not a model folder: it has no {CONFIG_FILE}. Expected what "
            "model.save_pretrained(folder) or `iwm pretrain --out` writes."
        ) from error
    except OSError as error:
        raise WeightsUnavailableError(f"Cannot read {path}: {error}") from error
    try:
        return WorldModelConfig.from_json(text)
    except InvalidConfigError as error:
        raise InvalidConfigError(f"{path}: {error}") from error


def load_weights(path: Path, module: nn.Module) -> None:
    """Fill `module` from a safetensors file: every tensor of both, by name and shape.

    The module may be on the meta device; its tensors become those of the file, in float16.

    Raises:
        WeightsUnavailableError: no such file.
        IncompatibleWeightsError: not a safetensors file, or tensors missing, unexpected, or of
            another shape.
    """
    try:
        stored = load_file(path)
    except FileNotFoundError as error:
        raise WeightsUnavailableError(
            f"No weights at {path}. Copy the whole folder, or save it again."
        ) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise IncompatibleWeightsError(f"{path} is not a readable safetensors file: {error}") from error
    expected = module.state_dict()
    problems = []
    for words, names in (
        ("missing", expected.keys() - stored.keys()),
        ("unexpected", stored.keys() - expected.keys()),
    ):
        if names:
            problems.append(f"{len(names)} {words} ({_some(sorted(names))})")
    for name in sorted(expected.keys() & stored.keys()):
        ours, theirs = list(expected[name].shape), list(stored[name].shape)
        if ours != theirs:
            problems.append(f"{name} has shape {theirs}, expected {ours}")
        elif not stored[name].is_floating_point():
            problems.append(f"{name} holds {stored[name].dtype}, expected floating point")
    if problems:
        raise IncompatibleWeightsError(
            f"{path} does not fit the model its config describes: {'; '.join(problems[:5])}. "
            "Take config.json and the weights from the same checkpoint."
        )
    module.load_state_dict(stored, strict=True, assign=True)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
