"""Small QDQ graphs for tests of training, made by hand: no toolchain has to be loaded for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from workers.toolchains.octet.rounding.wiring import Wiring

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

_WEIGHTS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "Gather": 0, "Transpose": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grids:
    """How a graph is quantized.

    Attributes:
        asymmetric: of the activations, which are uint8 then.
        per_channel: of the weights.
        bits: of the weights, which are stored as int8.
        activation_bits: fewer than 8 are a Clip in front of the quantizer.
    """

    asymmetric: bool = False
    per_channel: bool = True
    bits: int = 8
    activation_bits: int = 8


def answers(model: onnx.ModelProto, inputs: Arrays) -> dict[str, Array]:
    """Run a graph in ONNX Runtime as it is written: no operator is fused with another."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in model.graph.output]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def quantized(model: onnx.ModelProto, inputs: Arrays, grids: Grids | None = None) -> onnx.ModelProto:
    """Quantize the stored weights of layers, and what these read, by the extremes over some rows."""
    return _Quantizing(model, inputs, grids or Grids()).run()


class _Quantizing:
    def __init__(self, model: onnx.ModelProto, inputs: Arrays, grids: Grids) -> None:
        self._made = onnx.ModelProto()
        self._made.CopyFrom(model)
        self._grids = grids
        self._stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._seen = {**inputs, **_intermediates(model, inputs)}
        self._nodes: list[onnx.NodeProto] = []
        self._done: set[str] = set()
        self._constants = Wiring(model.graph).constants

    def run(self) -> onnx.ModelProto:
        for node in list(self._made.graph.node):
            place = _WEIGHTS.get(node.op_type)
            if place is not None:
                self._layer(node, place)
            self._nodes.append(node)
        del self._made.graph.node[:]
        self._made.graph.node.extend(self._nodes)
        onnx.checker.check_model(self._made, full_check=True)
        return self._made

    def _layer(self, node: onnx.NodeProto, place: int) -> None:
        for at, name in enumerate(node.input[:2]):
            if name in self._stored and at == place and self._stored[name].ndim > 1:
                self._weight(name, _channels(node, self._stored[name].ndim) if self._grids.per_channel else None)
            elif name not in self._constants and self._seen[name].dtype == np.float32 and node.op_type != "Transpose":
                self._activation(name)
            else:
                continue
            node.input[at] = f"{name}_dq"

    def _weight(self, name: str, axis: int | None) -> None:
        if name in self._done:
            return
        self._done.add(name)
        weight, most = self._stored[name], 2 ** (self._grids.bits - 1) - 1
        others = tuple(at for at in range(weight.ndim) if at != axis)
        reach = np.abs(weight).max(axis=others if axis is not None else None, keepdims=True)
        scale = (reach / most).astype(np.float32)
        integers = np.rint(weight / scale).clip(-most - 1, most).astype(np.int8)
        for tensor in self._made.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(integers, name))
        flat = scale.reshape(-1) if axis is not None else scale.reshape(())
        self._pair(name, flat, np.zeros(flat.shape, np.int8), axis=axis)

    def _activation(self, name: str) -> None:
        if name in self._done:
            return
        self._done.add(name)
        low, high = (min(0.0, float(self._seen[name].min())), max(0.0, float(self._seen[name].max())))
        levels = 2**self._grids.activation_bits
        if self._grids.asymmetric:
            scale, qmin = np.float32((high - low) / (levels - 1)), 0
            zero = np.array(round(-low / float(scale)), np.uint8)
        else:
            scale, qmin, zero = np.float32(max(-low, high) / (levels // 2 - 1)), -levels // 2, np.array(0, np.int8)
        source = name
        if self._grids.activation_bits < 8:
            ends = [np.array((end - int(zero)) * scale, np.float32) for end in (qmin, qmin + levels - 1)]
            self._store({f"{name}_low": ends[0], f"{name}_high": ends[1]})
            source = f"{name}_cut"
            self._nodes.append(helper.make_node("Clip", [name, f"{name}_low", f"{name}_high"], [source], name=source))
        pair = [f"{name}_s", f"{name}_z"]
        self._nodes.append(helper.make_node("QuantizeLinear", [source, *pair], [f"{name}_q"], name=f"{name}_q"))
        self._pair(name, np.array(scale, np.float32), zero, source=f"{name}_q")

    def _pair(
        self, name: str, scale: Array, zero: Array, *, axis: int | None = None, source: str | None = None
    ) -> None:
        self._store({f"{name}_s": scale, f"{name}_z": zero})
        given = [source or name, f"{name}_s", f"{name}_z"]
        axes = {} if axis is None else {"axis": axis}
        self._nodes.append(helper.make_node("DequantizeLinear", given, [f"{name}_dq"], name=f"{name}_dq", **axes))

    def _store(self, tensors: Arrays) -> None:
        self._made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())


def _channels(node: onnx.NodeProto, axes: int) -> int:
    turned = any(each.name == "transB" and each.i for each in node.attribute)
    return {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if turned else 1, "Gather": 0, "Transpose": 0}.get(
        node.op_type, axes - 1
    )


def _intermediates(model: onnx.ModelProto, inputs: Arrays) -> dict[str, Array]:
    told = onnx.ModelProto()
    told.CopyFrom(model)
    del told.graph.output[:]
    names = [name for node in model.graph.node for name in node.output if name]
    told.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return answers(told, inputs)
