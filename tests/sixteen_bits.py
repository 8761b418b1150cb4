"""A model whose numbers are of 16 bits, for tests of the datatypes that NumPy or JSON lack."""

import onnx
from onnx import TensorProto, helper

from tests import graphs


def doubler(kind: int) -> onnx.ModelProto:
    """Build a graph that doubles `x`, kind[N, 4], into `y`; the arithmetic is float32's."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["wide", "wide"], ["twice"]),
        helper.make_node("Cast", ["twice"], ["y"], to=kind),
    ]
    rows: graphs.Shape = ["batch", 4]
    return graphs.small(nodes, inputs={"x": rows}, outputs={"y": rows}, weights={}, types={"x": kind, "y": kind})
