"""Small models for tests, made on the spot: as torch modules, `.pt2` files and ONNX graphs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUT = "x"
OUTPUT = "logits"


def conv_classifier(
    *, channels: int = 3, side: int = 8, classes: int = 4, width: int = 16, seed: int = 0
) -> onnx.ModelProto:
    """Build two convolutions, global average pooling and one Gemm; the input is float32[N, channels, side, side]."""
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> TensorProto:
        scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
        return numpy_helper.from_array(rng.normal(0, scale, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", [INPUT, "w1", "b1"], ["c1"], name="conv1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten", axis=1),
        helper.make_node("Gemm", ["f", "w3", "b3"], [OUTPUT], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", channels, side, side])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", classes])],
        [
            weight("w1", width, channels, 3, 3),
            weight("b1", width),
            weight("w2", width * 2, width, 3, 3),
            weight("b2", width * 2),
            weight("w3", classes, width * 2),
            weight("b3", classes),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    made.ir_version = 10
    onnx.checker.check_model(made, full_check=True)
    return made


def rows(count: int, *, channels: int = 3, side: int = 8, seed: int = 1) -> npt.NDArray[np.float32]:
    """Return random rows for `conv_classifier`, float32[count, channels, side, side]."""
    return np.random.default_rng(seed).normal(0, 1, (count, channels, side, side)).astype(np.float32)


def save_dataset(path: Path, x: npt.NDArray[np.float32], labels: npt.NDArray[np.int64] | None = None) -> Path:
    """Write a `.npz` with the input array and, if given, labels."""
    if labels is None:
        np.savez(path, x=x)
    else:
        np.savez(path, x=x, labels=labels)
    return path


Shape = Sequence[int | str | None]


def small(
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    weights: Mapping[str, Any],
    opset: int = 20,
    types: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """Build a graph of these nodes; its inputs and outputs are float32 unless `types` names another type."""
    kinds = types or {}
    said = [
        [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape) for name, shape in each.items()]
        for each in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(list(nodes), "small", *said, tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def drawn(*shape: int, seed: int = 0, scale: float | None = None) -> npt.NDArray[np.float32]:
    """Draw a weight; by default so that a layer keeps the size of what passes (He et al. 2015)."""
    deviation = scale if scale is not None else float(np.sqrt(2 / max(1, int(np.prod(shape[1:])))))
    return np.random.default_rng(seed).normal(0, deviation, shape).astype(np.float32)
