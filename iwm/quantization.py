"""ONNX graphs with smaller numbers: half-precision storage, and eight-bit linear layers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feed = dict[str, NDArray[Any]]

_SMALL = 1024
"""Constants of fewer numbers stay as they are: nothing is won."""


def halve_weights(path: Path) -> None:
    """Store the weights of a graph in float16, widened again when it is loaded: half the file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph_file = onnx.load(str(path))
    graph = graph_file.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _SMALL:
            continue
        name = tensor.name
        values = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(values, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    for node in reversed(casts):
        graph.node.insert(0, node)
    onnx.save(graph_file, str(path))
    _drop_data(path)


def quantize(path: Path, feeds: list[Feed]) -> None:
    """Turn the linear layers of a graph into eight-bit ones, in place.

    Weights get a scale a channel, inputs the range they had on `feeds`. Products of two
    activations, as in attention, stay as they are, and so does the patch embedding.

    Args:
        path: of the graph.
        feeds: inputs to measure on.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands out the feeds one by one."""

        def __init__(self) -> None:
            self.rows: Iterator[Feed] = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self.rows, None)

    graph = onnx.load(str(path)).graph
    weights = {tensor.name for tensor in graph.initializer}
    linear = [n.name for n in graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in weights]
    quantize_static(
        str(path), str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_quantize=linear,
    )  # fmt: skip
    _drop_data(path)


def _drop_data(path: Path) -> None:
    """Remove the file beside a large graph that its float32 weights were in; they are in the graph itself now."""
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
