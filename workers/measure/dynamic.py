"""Whether the engine quantizes activations on the fly. Its runtime graph does not say so: the answers do."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, shape_inference

from app.domain.reports import Layer
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Execution
from workers.data.batches import Tensors
from workers.measure import layers as graph_layers
from workers.measure.engine import Session, threads
from workers.measure.matching import matched
from workers.openvino_engine import OpenVinoSession
from workers.stage_records.measuring import Form

# Rounding to 8 bits moves a sum by about 2^-8 of it; the same sum in float32, in any order, by less than 1e-5.
DIFFERENT = 1e-4
_ROWS = 4
_X = "octet/x"
_Y = "octet/y"


def quantized_on_the_fly(
    form: Form, layers: Sequence[Layer], signature: Signature, inputs: Tensors, *, scratch: Path, core: ov.Core
) -> frozenset[str]:
    """Return the names of those layers that compute with activations quantized on the fly.

    Two proofs have to agree: the whole graph answers otherwise once the engine is forbidden to do it, and so does the
    layer by itself, compiled with its own weights.
    """
    if not layers or not _whole_graph_differs(form, signature, inputs, scratch=scratch, core=core):
        return frozenset()
    proto = graph_layers.load(scratch / form.artifact)
    wiring = graph_layers.Wiring.of(proto.graph)
    probe = _Probe(proto, wiring, form.execution, core)
    by_layer = matched(layers, wiring)
    return frozenset(
        layer.name for layer in layers if by_layer.get(layer.name) and all(map(probe.differs, by_layer[layer.name]))
    )


def _whole_graph_differs(form: Form, signature: Signature, inputs: Tensors, *, scratch: Path, core: ov.Core) -> bool:
    plain = replace(form, execution=replace(form.execution, dynamic_group_size=0))
    answers = [Session.open(each, signature, scratch=scratch, core=core).run(inputs) for each in (form, plain)]
    return any(_differ(one, other) for one, other in zip(*answers, strict=True))


def _differ(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if one.dtype.kind not in "fV":
        return not np.array_equal(one, other)
    a, b = one.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    largest = float(np.abs(b[finite]).max(initial=0.0))
    return bool(np.abs(a[finite] - b[finite]).max(initial=0.0) > DIFFERENT * largest)


class _Probe:
    """Single layers of a graph, compiled with and without quantization on the fly; layers alike are asked once."""

    def __init__(
        self, proto: onnx.ModelProto, wiring: graph_layers.Wiring, execution: Execution, core: ov.Core
    ) -> None:
        self._proto = proto
        self._wiring = wiring
        self._execution = execution
        self._core = core
        self._tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._known: dict[tuple[object, ...], bool] = {}

    def differs(self, node: NodeProto) -> bool:
        """Whether this product answers otherwise when its activations may be quantized."""
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in self._wiring.constants:
            return False
        single = self._single(node)
        # only shapes and types decide; the names do not
        key = (node.op_type, *((tuple(each.dims), each.data_type) for each in single.graph.initializer))
        if key not in self._known:
            self._known[key] = self._answers_differ(single)
        return self._known[key]

    def _answers_differ(self, single: onnx.ModelProto) -> bool:
        width = single.graph.input[0].type.tensor_type.shape.dim[1].dim_value
        spec = TensorSpec(name=_X, dtype=DType.FLOAT32, shape=(None, width))
        signature = Signature(inputs=(spec,), outputs=(TensorSpec(name=_Y, dtype=DType.FLOAT32, shape=(None, None)),))
        x = np.random.default_rng(0).standard_normal((_ROWS, width), np.float32)
        answers = [
            OpenVinoSession(single.SerializeToString(), execution, signature, threads(), core=self._core).infer({_X: x})
            for execution in (self._execution, replace(self._execution, dynamic_group_size=0))
        ]
        return _differ(answers[0][_Y], answers[1][_Y])

    def _single(self, node: NodeProto) -> onnx.ModelProto:
        """Cut out one product with its weights, all that it adds left away; its input is float32[rows, width]."""
        nodes = [*self._makers_of(node.input[1])]
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        product = helper.make_node(node.op_type, [_X, node.input[1]], [_Y], name=node.name)
        if transposed:
            product.attribute.append(helper.make_attribute("transB", 1))
        used = {name for each in nodes for name in each.input} | {node.input[1]}
        weights = [tensor for name, tensor in self._tensors.items() if name in used]
        shape = _shape(nodes, weights, node.input[1], self._proto)
        width = shape[-1] if transposed else shape[0]
        graph = helper.make_graph(
            [*nodes, product],
            "layer",
            [helper.make_tensor_value_info(_X, TensorProto.FLOAT, ["rows", width])],
            [helper.make_tensor_value_info(_Y, TensorProto.FLOAT, ["rows", None])],
            weights,
        )
        return helper.make_model(graph, opset_imports=self._proto.opset_import, ir_version=self._proto.ir_version)

    def _makers_of(self, tensor: str) -> Iterator[NodeProto]:
        maker = self._wiring.makers.get(tensor)
        if maker is not None:
            for name in maker.input:
                yield from self._makers_of(name)
            yield maker


def _shape(nodes: Sequence[NodeProto], weights: Sequence[TensorProto], name: str, proto: onnx.ModelProto) -> list[int]:
    value = helper.make_empty_tensor_value_info(name)
    graph = helper.make_graph(nodes, "weight", [], [value], weights)
    made = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    inferred = shape_inference.infer_shapes(made, data_prop=True).graph
    found = next(value for value in (*inferred.output, *inferred.value_info) if value.name == name)
    return [dim.dim_value for dim in found.type.tensor_type.shape.dim]
