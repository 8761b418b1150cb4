"""Walking a graph finds every tensor there can be, so that none can hide data in another file."""

from collections.abc import Iterator

import onnx
import pytest
from onnx import TensorProto, helper

from tests.graphs import conv_classifier
from workers.graphs import is_external, tensors_of


def external() -> TensorProto:
    """A tensor whose data is said to lie in a file beside the graph."""
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secrets.env")
    return tensor


def sparse() -> onnx.SparseTensorProto:
    indices = helper.make_tensor("indices", TensorProto.INT64, [4], [0, 1, 2, 3])
    return onnx.SparseTensorProto(values=external(), indices=indices, dims=[4])


def hiding_places() -> Iterator[tuple[str, onnx.NodeProto]]:
    yield "tensor", helper.make_node("Constant", [], ["c"], value=external())
    yield "tensors", helper.make_node("Anything", [], ["c"], many=[external()])
    yield "sparse tensor", helper.make_node("Constant", [], ["c"], sparse_value=sparse())
    yield "sparse tensors", helper.make_node("Anything", [], ["c"], many=[sparse()])
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], sparse_value=sparse())], "inner", [], [])
    yield "inner graph", helper.make_node("If", ["condition"], ["c"], then_branch=inner, else_branch=inner)


@pytest.mark.parametrize(
    ("place", "node"), list(hiding_places()), ids=lambda value: value if str(value) == value else ""
)
def test_a_tensor_hidden_in_a_node_is_found(place: str, node: onnx.NodeProto) -> None:
    proto = conv_classifier()
    proto.graph.node.append(node)
    assert [tensor.name for tensor in tensors_of(proto) if is_external(tensor)] != [], place
    function = helper.make_function("own", "f", [], ["c"], [node], [helper.make_opsetid("", 20)])
    proto = conv_classifier()
    proto.functions.append(function)
    assert [tensor.name for tensor in tensors_of(proto) if is_external(tensor)] != [], place


def test_a_sparse_weight_is_found() -> None:
    proto = conv_classifier()
    proto.graph.sparse_initializer.append(sparse())
    assert any(map(is_external, tensors_of(proto)))


def test_a_location_without_the_flag_counts_too() -> None:
    tensor = external()
    tensor.data_location = TensorProto.DEFAULT
    assert is_external(tensor)


def test_a_plain_graph_has_its_weights_and_nothing_outside() -> None:
    names = {tensor.name for tensor in tensors_of(conv_classifier())}
    assert names == {"w1", "b1", "w2", "b2", "w3", "b3"}
    assert not any(map(is_external, tensors_of(conv_classifier())))
