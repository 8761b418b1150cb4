"""Reading an ONNX graph so that every toolchain can work on it: recent operators, named nodes."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import version_converter

from app.domain.errors import ToolchainFailed

# Per-channel QuantizeLinear and casts to bfloat16 begin with opset 13.
LEAST_OPSET = 13
_DEFAULT_DOMAINS = ("", "ai.onnx")


def load_graph(path: Path) -> onnx.ModelProto:
    """Load the graph at `path`, at opset 13 or later.

    Raises:
        ToolchainFailed: it cannot be read, or cannot be raised to that opset.
    """
    try:
        graph = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise ToolchainFailed(f"The float32 artifact is not an ONNX file that can be read ({error}).") from error
    graph = _raised(graph)
    _put_default_domain_first(graph)
    _name_nodes(graph)
    return graph


def opset(graph: onnx.ModelProto) -> int:
    """Return the version of ONNX' own operators that the graph uses; 0 if none."""
    return max((entry.version for entry in graph.opset_import if entry.domain in _DEFAULT_DOMAINS), default=0)


def _raised(graph: onnx.ModelProto) -> onnx.ModelProto:
    if opset(graph) >= LEAST_OPSET:
        return graph
    try:
        return version_converter.convert_version(graph, LEAST_OPSET)
    except (RuntimeError, ValueError) as error:
        raise ToolchainFailed(
            f"The graph uses opset {opset(graph)}, quantizing needs {LEAST_OPSET} and it cannot be raised ({error}): "
            "export the model again with a newer opset."
        ) from error


def _put_default_domain_first(graph: onnx.ModelProto) -> None:
    # NNCF takes the first entry for the opset
    entries = sorted(graph.opset_import, key=lambda entry: entry.domain not in _DEFAULT_DOMAINS)
    copies = [onnx.helper.make_opsetid(entry.domain, entry.version) for entry in entries]
    del graph.opset_import[:]
    graph.opset_import.extend(copies)


def _name_nodes(graph: onnx.ModelProto) -> None:
    taken: set[str] = set()
    for number, node in enumerate(graph.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}"
        while node.name in taken:
            node.name += "_"
        taken.add(node.name)
