"""Rewrites the places where exporters write a fixed batch size into a graph. A guess: the caller checks the rows."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, shape_inference

from workers.graphs import drop_unused_weights

Array = npt.NDArray[Any]

# The target's position among the inputs of operators that take a shape.
_TARGET = 1
_BATCH_SHAPE = "octet_batch_size"
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Max", "Min", "Pow"})


class _Rewriter:
    def __init__(self, proto: onnx.ModelProto, *, size: int, axis: str) -> None:
        self.graph = proto.graph
        self.size = size
        self.axis = axis
        self.constants = _constants(proto.graph)
        self.shapes = _shapes(proto)
        self.varying = _reached_by_inputs(proto.graph)
        self.added: list[onnx.NodeProto] = []
        self.made = 0

    def rewrite(self) -> None:
        rules = {"Reshape": self._reshape, "Expand": self._expand, "Concat": self._concat, "Resize": self._resize}
        for node in self.graph.node:
            rule = self._elementwise if node.op_type in _ELEMENTWISE else rules.get(node.op_type)
            if rule is not None:
                rule(node)
        if self.added:
            self._add_batch_size()
        for value in (*self.graph.input, *self.graph.output):
            dims = value.type.tensor_type.shape.dim
            if dims and dims[0].dim_value == self.size:
                dims[0].dim_param = self.axis

    def _reshape(self, node: onnx.NodeProto) -> None:
        """Let the first axis take what is left: the batch is outermost, alone or merged with others."""
        shape = self.shapes.get(node.output[0])
        if node.input[0] not in self.varying or node.input[_TARGET] not in self.constants or not shape:
            return
        if None in shape or (shape[0] or 0) % self.size:
            return
        node.input[_TARGET] = self._constant([-1, *(size or 0 for size in shape[1:])])

    def _expand(self, node: onnx.NodeProto) -> None:
        target = self.constants.get(node.input[_TARGET])
        if target is None or not target.size or int(target[0]) != self.size:
            return
        source = self.constants.get(node.input[0])
        if source is None and len(self.shapes.get(node.input[0], ())) == target.size:
            node.input[_TARGET] = self._constant([1, *target[1:].tolist()])
        else:
            node.input[_TARGET] = self._batched_shape(target[1:].tolist())

    def _concat(self, node: onnx.NodeProto) -> None:
        """A constant row that is joined to every row of the batch: a class token, say."""
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        if axis == 0 or not any(name in self.varying for name in node.input):
            return
        for position, name in enumerate(node.input):
            row = self._shared_row(name)
            if row is not None:
                node.input[position] = self._expanded(row)

    def _elementwise(self, node: onnx.NodeProto) -> None:
        """A constant that was repeated for every row: position embeddings, say."""
        for position, name in enumerate(node.input):
            row = self._shared_row(name)
            rank = max((len(self.shapes.get(other, ())) for other in node.input), default=0)
            if row is not None and self.size > 1 and row.ndim == rank:
                node.input[position] = self._tensor(row)

    def _resize(self, node: onnx.NodeProto) -> None:
        sizes = self.constants.get(node.input[3]) if len(node.input) > 3 and node.input[3] else None  # noqa: PLR2004
        has_axes = any(attribute.name == "axes" for attribute in node.attribute)
        if sizes is None or has_axes or sizes.size < 3 or int(sizes[0]) != self.size:  # noqa: PLR2004
            return
        node.input[3] = self._constant(sizes[2:].tolist())
        node.attribute.append(helper.make_attribute("axes", list(range(2, sizes.size))))

    def _shared_row(self, name: str) -> Array | None:
        """Return the one row of a constant whose first axis is the batch and whose rows are all the same."""
        array = self.constants.get(name)
        if (
            array is None
            or not array.ndim
            or len(array) != self.size
            or not np.array_equal(array, array[:1] + 0 * array)
        ):
            return None
        return array[:1]

    def _expanded(self, row: Array) -> str:
        output = self._name("expanded")
        target = self._batched_shape([1] * (row.ndim - 1))
        self.added.append(helper.make_node("Expand", [self._tensor(row), target], [output], name=output))
        return output

    def _batched_shape(self, rest: list[int]) -> str:
        output = self._name("shape")
        parts = [_BATCH_SHAPE, self._constant(rest)] if rest else [_BATCH_SHAPE]
        self.added.append(helper.make_node("Concat", parts, [output], name=output, axis=0))
        return output

    def _add_batch_size(self) -> None:
        source = self.graph.input[0].name
        zero, one = self._constant([0]), self._constant([1])
        whole = self._name("input_shape")
        first = [
            helper.make_node("Shape", [source], [whole], name=whole),
            helper.make_node("Slice", [whole, zero, one], [_BATCH_SHAPE], name=_BATCH_SHAPE),
        ]
        nodes = [*first, *self.added, *self.graph.node]
        del self.graph.node[:]
        self.graph.node.extend(nodes)

    def _constant(self, values: list[int]) -> str:
        return self._tensor(np.array(values, np.int64))

    def _tensor(self, array: Array) -> str:
        name = self._name("constant")
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _name(self, what: str) -> str:
        self.made += 1
        return f"octet_{what}_{self.made}"


def rewrite(proto: onnx.ModelProto, *, size: int, axis: str) -> onnx.ModelProto | None:
    """Return a copy whose inputs' first axis, `size` in the original, is symbolic; None if there is no telling how."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    try:
        _Rewriter(copy, size=size, axis=axis).rewrite()
    except shape_inference.InferenceError:
        return None
    drop_unused_weights(copy.graph)
    return copy


def _constants(graph: onnx.GraphProto) -> dict[str, Array]:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value_ints":
            found[node.output[0]] = np.array(node.attribute[0].ints, np.int64)
    return found


def _shapes(proto: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    inferred = shape_inference.infer_shapes(proto, data_prop=True).graph
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
        )
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }


def _reached_by_inputs(graph: onnx.GraphProto) -> set[str]:
    reached = {value.name for value in graph.input}
    for node in graph.node:
        if any(name in reached for name in node.input):
            reached.update(node.output)
    return reached
