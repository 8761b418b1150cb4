"""Large weights put aside into a file while NNCF works: it copies the graph for every step, and for every layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import onnx
from nncf.onnx.graph.model_metadata import MetadataKey, get_metadata, remove_metadata, set_metadata
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import load_external_data_for_model, set_external_data

_FILE = "weights"
# Small constants may be shapes, which NNCF and shape inference read.
_SMALL_BYTES = 4096


@contextmanager
def weights_aside(proto: onnx.ModelProto, scratch: Path) -> Iterator[onnx.ModelProto]:
    """Yield a copy of the graph whose large weights lie in a file below `scratch`, for as long as the block runs.

    The graph itself stays as it is: a message keeps its memory to its end, whatever is taken out of it. It may be made
    of such a copy itself.
    """
    before = get_metadata(proto, MetadataKey.EXTERNAL_DATA_DIR) or ""
    with TemporaryDirectory(dir=scratch, prefix="nncf") as folder:
        light = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
        outer = proto.graph
        light.graph.name = outer.name
        light.graph.node.extend(outer.node)
        light.graph.input.extend(outer.input)
        light.graph.output.extend(outer.output)
        light.graph.value_info.extend(outer.value_info)
        with (Path(folder) / _FILE).open("wb") as file:
            for tensor in outer.initializer:
                _put(light.graph.initializer.add(), tensor, file, before=before)
        set_metadata(light, MetadataKey.EXTERNAL_DATA_DIR, str(Path(folder).resolve()))
        yield light


def weights_back(made: onnx.ModelProto) -> onnx.ModelProto:
    """Read what still lies aside into a graph that was made of such a copy; return it."""
    folder = get_metadata(made, MetadataKey.EXTERNAL_DATA_DIR)
    if folder:
        remove_metadata(made, MetadataKey.EXTERNAL_DATA_DIR)
        load_external_data_for_model(made, folder)
    return made


def _put(into: TensorProto, tensor: TensorProto, file: BinaryIO, *, before: str) -> None:
    data = tensor.raw_data or numpy_helper.to_array(tensor, before).tobytes()
    if len(data) <= _SMALL_BYTES:
        into.CopyFrom(tensor)
        return
    into.name, into.data_type, into.raw_data = tensor.name, tensor.data_type, b""
    into.dims.extend(tensor.dims)
    set_external_data(into, _FILE, offset=file.tell(), length=len(data))
    into.ClearField("raw_data")
    file.write(data)
