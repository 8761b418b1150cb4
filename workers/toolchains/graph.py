"""Reading an ONNX graph so that every toolchain can work on it: recent operators, named nodes."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from app.domain.errors import ToolchainFailed
from workers import graphs


def load_graph(path: Path) -> onnx.ModelProto:
    """Load the graph at `path`, at opset 13 or later.

    Raises:
        ToolchainFailed: it cannot be read, or cannot be raised to that opset.
    """
    try:
        graph = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise ToolchainFailed(f"The float32 artifact is not an ONNX file that can be read ({error}).") from error
    graph = _modernised(graph)
    graphs.keep_standard_opset(graph)
    graphs.name_nodes(graph.graph)
    return graph


def _modernised(graph: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return graphs.modernised(graph)
    except graphs.CONVERT_ERRORS as error:
        raise ToolchainFailed(
            f"The graph uses opset {graphs.opset(graph)}, quantizing needs {graphs.MIN_OPSET} and it cannot be raised "
            f"({error}): export the model again with a newer opset."
        ) from error
