"""Weights as this toolchain takes them: no inputs, and none stored twice."""

from itertools import permutations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_SIDES = 2
# Below this a second copy costs less than a node.
_LEAST_ELEMENTS = 1024


def only_inputs(proto: onnx.ModelProto) -> None:
    """Drop weights from the inputs, where old exporters list them too: nobody feeds them."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    kept = [value for value in proto.graph.input if value.name not in stored]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)


def share_transposed(graph: onnx.GraphProto) -> bool:
    """Let a matrix that is a lookup table turned be made of it again; return whether there was one.

    A lookup table that is also the last layer's weight comes as two tensors once its Transpose has been computed.
    """
    matrices = [
        tensor
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and len(tensor.dims) == _SIDES
        and tensor.dims[0] * tensor.dims[1] >= _LEAST_ELEMENTS
    ]
    turned: set[str] = set()
    for first, second in permutations(matrices, 2):
        if first.name in turned or second.name in turned or not _is_lookup(graph, first) or not _turned(first, second):
            continue
        turned.add(second.name)
        name = f"{second.name}_Transpose"
        graph.node.insert(0, helper.make_node("Transpose", [first.name], [second.name], name=name, perm=[1, 0]))
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name in turned:
            del graph.initializer[index]
    return bool(turned)


def _is_lookup(graph: onnx.GraphProto, tensor: TensorProto) -> bool:
    return any(node.op_type == "Gather" and node.input[0] == tensor.name for node in graph.node)


def _turned(first: TensorProto, second: TensorProto) -> bool:
    return list(first.dims) == list(second.dims)[::-1] and np.array_equal(
        numpy_helper.to_array(first).T, numpy_helper.to_array(second)
    )
