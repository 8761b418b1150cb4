"""Opening small graphs with the engines, for their contract's tests."""

from typing import Any

import onnx
from onnx import TensorProto, helper

from app.domain.preprocessing import ImagePreprocessing
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Engine, Execution
from tests import graphs
from workers.runners.engines import ENGINES, Session

DTYPES = {
    DType.BOOL: TensorProto.BOOL,
    DType.UINT8: TensorProto.UINT8,
    DType.INT8: TensorProto.INT8,
    DType.INT32: TensorProto.INT32,
    DType.INT64: TensorProto.INT64,
    DType.FLOAT16: TensorProto.FLOAT16,
    DType.BFLOAT16: TensorProto.BFLOAT16,
    DType.FLOAT64: TensorProto.DOUBLE,
}


def opened(
    engine: Engine,
    graph: onnx.ModelProto,
    *,
    streams: int = 1,
    pixels: ImagePreprocessing | None = None,
    execution: Execution | None = None,
) -> Session:
    """Open a graph with two threads."""
    artifact = graph.SerializeToString()
    return ENGINES[engine]()(
        artifact, execution or Execution(), declared(graph), streams=streams, threads=2, pixels=pixels
    )


def declared(graph: onnx.ModelProto) -> Signature:
    """Return the signature a graph declares; an axis called `n` or `batch` counts the rows."""
    return Signature(
        inputs=tuple(map(_spec_of, graph.graph.input)),
        outputs=tuple(map(_spec_of, graph.graph.output)),
    )


def _spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    dims = value.type.tensor_type.shape.dim
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
    dtype = DType(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name)
    axes = [axis for axis, dim in enumerate(dims) if dim.dim_param in {"n", "batch"}]
    return TensorSpec(name=value.name, dtype=dtype, shape=shape, batch_axis=axes[0] if axes else None)


def two_inputs(node: str = "Sub", *, rows: str = "n", **attributes: Any) -> onnx.ModelProto:
    """Build a graph of one node: inputs a of [n, 3] and b of [rows, 3], output y of [n, ?]."""
    nodes = [helper.make_node(node, ["a", "b"], ["y"], **attributes)]
    return graphs.small(nodes, inputs={"a": ("n", 3), "b": (rows, 3)}, outputs={"y": ("n", None)}, weights={})
