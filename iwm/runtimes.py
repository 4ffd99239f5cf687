"""Exported folders, run by OpenVINO or ONNX Runtime through the calls of `WorldModel`.

`ExportedModel` is a `WorldModel` whose two networks are graphs of another runtime. It encodes,
acts, and reads edits with the solver that needs no gradient; it cannot be trained, moved or saved.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from iwm.config import WorldModelConfig
from iwm.errors import (
    IncompatibleLatentError,
    IncompatibleWeightsError,
    InvalidConfigError,
    MissingBackendError,
    WeightsUnavailableError,
    quoted,
)
from iwm.images import Images, Preprocess
from iwm.model_folder import EXPORT_FILE, read_config
from iwm.world_model import WorldModel

if TYPE_CHECKING:
    from iwm.adapter import Adapter
    from iwm.decoder import Decoder

EXPORT_FORMAT = 1
"""Version of the exported folder's layout; others are refused."""
PARTS = ("encoder", "world_model")
BACKENDS = ("openvino", "onnx")

Run = Callable[..., NDArray[Any]]


class RuntimeEncoder(nn.Module):
    """Images in [0, 1] `[B, 3, S, S]` to tokens, by another runtime."""

    mean: Tensor

    def __init__(self, run: Run, config: WorldModelConfig) -> None:
        super().__init__()
        self.run, self.config = run, config.encoder
        # What evaluations ask for the device.
        self.register_buffer("mean", torch.tensor(config.preprocess.mean), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, N, D]`."""
        return torch.from_numpy(self.run(images.numpy()))


class RuntimePredictor(nn.Module):
    """Tokens and action vectors to predicted tokens, by another runtime."""

    def __init__(self, run: Run, config: WorldModelConfig) -> None:
        super().__init__()
        self.run, self.config = run, config.predictor
        self.side = config.preprocess.size // config.encoder.patch_size

    def forward(self, source: Tensor, action: Tensor, grid: tuple[int, int]) -> Tensor:
        """As `Predictor.forward`, of all positions; one source serves all actions."""
        if grid != (self.side, self.side):
            raise IncompatibleLatentError(
                f"This export acts on grids of {self.side} x {self.side}, not {grid[0]} x {grid[1]}; use "
                "the model it was made from."
            )
        sources = source.expand(len(action), -1, -1).contiguous()
        return torch.from_numpy(self.run(sources.numpy(), action.detach().numpy()))


class RuntimeAdapter(nn.Module):
    """Class scores of tokens, by another runtime; a task's graph is opened when it is first asked for."""

    def __init__(self, open_task: Callable[[str], Run]) -> None:
        super().__init__()
        self.open_task = functools.cache(open_task)

    def forward(self, model: WorldModel, tokens: Tensor, grid: tuple[int, int], task: str) -> Tensor:
        """Logits `[B, K]`, as `Adapter.forward`."""
        return torch.from_numpy(self.open_task(task)(tokens.numpy()))


class ExportedModel(WorldModel):
    """A `WorldModel` run by another runtime; made by `iwm.load(folder, backend=...)`."""

    differentiable = False

    def __init__(
        self,
        config: WorldModelConfig,
        encode: Run,
        act: Run,
        open_task: Callable[[str], Run],
        space: str,
        place: tuple[Path, str],
    ) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.encoder = RuntimeEncoder(encode, config)  # type: ignore[assignment]
        self.predictor = RuntimePredictor(act, config)  # type: ignore[assignment]
        self.adapters = nn.ModuleDict()
        self.decoder, self.default_task, self.source = None, None, None
        self.preprocess = Preprocess(config.preprocess)
        self._adapter, self._name_of_space, self._place = RuntimeAdapter(open_task), space, place
        self.eval()

    @property
    def space(self) -> str:
        """Fingerprint of the encoder it was exported from: their latents may be mixed."""
        return self._name_of_space

    def __reduce__(self) -> tuple[Any, ...]:
        """Graphs do not travel: a copy, in another process too, opens the folder again."""
        return _reopened, (*self._place, self.default_task)

    def load_adapter(self, name: str) -> Adapter:
        """What runs the exported tasks."""
        return cast("Adapter", self._adapter)

    def load_decoder(self) -> Decoder:
        """Raises `InvalidConfigError`: decoders are not exported."""
        raise InvalidConfigError("Decoders are not exported; decode with the model this was made from.")

    def segment(self, image: Images, task: str | None = None) -> Tensor | list[Tensor]:
        """Raises `InvalidConfigError`: segmentation takes images of any size, an export of one."""
        raise InvalidConfigError("Segmentation is not exported; use the model this was made from.")

    @property
    def _like(self) -> Tensor:
        return self.encoder.mean

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        like = self.encoder.mean
        if (moved := fn(like)).device == like.device and moved.dtype == like.dtype:
            return self
        raise InvalidConfigError(
            "An exported model stays where its runtime put it, in the precision it was exported with; "
            "move or cast the model it was made from."
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Exports are copied as folders; raises `InvalidConfigError`."""
        raise InvalidConfigError(
            "An exported model cannot be saved; copy its folder, or save the model it came from."
        )


def read_export(folder: Path, backend: str) -> ExportedModel:
    """Load a folder that `model.export` wrote.

    Args:
        folder: with its `export.json`.
        backend: `openvino` or `onnx`, the one it was written for.

    Raises:
        WeightsUnavailableError: no export there, or files missing.
        IncompatibleWeightsError: of another version, for another backend, or damaged.
        MissingBackendError: the backend is not installed.
    """
    about = read_about(folder)
    if about is None:
        raise WeightsUnavailableError(
            f"{folder} holds no export. Write one with "
            f'iwm.load("{folder}").export("DIR", format="{backend}") and load that.'
        )
    if about["backend"] != backend:
        raise IncompatibleWeightsError(
            f'{folder} was exported for {about["backend"]}; load it with backend="{about["backend"]}".'
        )
    config = read_config(folder)
    paths = [folder / f"{name}{suffix_of(backend)}" for name in PARTS]
    for path in paths:
        if not path.is_file():
            raise WeightsUnavailableError(
                f"No {path.name} in {folder}. Copy the whole folder, or export again."
            )
    opened = open_openvino if backend == "openvino" else open_onnx

    def open_task(task: str) -> Run:
        """The graph of a classification task."""
        path = folder / f"{task_part(task)}{suffix_of(backend)}"
        if not path.is_file():
            raise WeightsUnavailableError(
                f"No {path.name} in {folder}. Copy the whole folder, or export again."
            )
        return opened(path, about["precision"])

    encode, act = (opened(path, about["precision"]) for path in paths)
    return ExportedModel(config, encode, act, open_task, about["space"], (folder.absolute(), backend))


def _reopened(folder: Path, backend: str, default_task: str | None) -> ExportedModel:
    """For `ExportedModel.__reduce__`."""
    model = read_export(folder, backend)
    model.default_task = default_task
    return model


def read_about(folder: Path) -> dict[str, str] | None:
    """What `export.json` says: backend, precision, space; None where there is none.

    Raises:
        IncompatibleWeightsError: of another version, or damaged.
    """
    path = folder / EXPORT_FILE
    if not path.is_file():
        return None
    try:
        about = json.loads(path.read_bytes())
        made_with = about.get("made_with", {}).get("iwm", "another version")
        version = about["format"]
        if version == EXPORT_FORMAT:
            fields = {name: str(about[name]) for name in ("backend", "precision", "space")}
            if fields["backend"] not in BACKENDS:
                raise ValueError(f"unknown backend {fields['backend']}")
            return fields
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IncompatibleWeightsError(f"{path} cannot be read: {quoted(error)}. Export again.") from error
    raise IncompatibleWeightsError(
        f"{folder} was exported by iwm {quoted(made_with)} in format {quoted(version)}; this iwm reads format "
        f"{EXPORT_FORMAT}. Export the model again with this version: model.export(...)."
    )


def task_part(task: str) -> str:
    """Name of a classification task's graph."""
    return f"task-{task}"


def suffix_of(backend: str) -> str:
    """How the files of a backend's graphs end."""
    return ".xml" if backend == "openvino" else ".onnx"


def openvino() -> Any:
    """The OpenVINO package.

    Raises:
        MissingBackendError: it is not installed.
    """
    try:
        import openvino as package
    except ImportError as error:
        raise MissingBackendError('OpenVINO is not installed: pip install "iwm[openvino]"') from error
    return package


@contextlib.contextmanager
def converting() -> Iterator[Any]:
    """The OpenVINO package, with usage statistics of its converter off, as they are in CI jobs."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield openvino()
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


@functools.cache
def _core() -> Any:
    """OpenVINO's runtime, one for the process and for good.

    Its CPU plugin gives the main thread another stack for signal handlers, and takes the memory
    away when the last model is dropped: the next signal with a handler would end the process.
    """
    return openvino().Core()


def open_openvino(path: Path, precision: str) -> Run:
    """Compile an OpenVINO graph for the CPU.

    Folders of `fp16` and `int8` run the rest of their work in bf16 where the processor has it.

    Raises:
        MissingBackendError: OpenVINO is not installed.
        IncompatibleWeightsError: it cannot run the graph.
    """
    core = _core()
    try:
        able = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if able and precision != "fp32" else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = core.compile_model(core.read_model(str(path)), "CPU", options)
    except RuntimeError as error:
        raise IncompatibleWeightsError(f"OpenVINO cannot run {path}: {quoted(error, 300)}") from error

    def run(*inputs: NDArray[Any]) -> NDArray[Any]:
        # A request of its own: calling the model itself would share one with the other threads.
        return np.array(compiled.infer_new_request(list(inputs))[0], dtype=np.float32)

    return run


def open_onnx(path: Path, precision: str) -> Run:
    """Open an ONNX graph in ONNX Runtime, on the CPU.

    Raises:
        MissingBackendError: ONNX Runtime is not installed.
        IncompatibleWeightsError: it cannot run the graph.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingBackendError('ONNX Runtime is not installed: pip install "iwm[onnx]"') from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # Its errors have no common class.
        raise IncompatibleWeightsError(f"ONNX Runtime cannot run {path}: {quoted(error, 300)}") from error
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: NDArray[Any]) -> NDArray[Any]:
        (out,) = session.run(None, dict(zip(names, inputs, strict=True)))
        return np.asarray(out, dtype=np.float32)

    return run
