"""What a process that may have run hostile code made is read anew: only plain ONNX of the right form is accepted."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.domain.errors import ToolchainFailed
from app.domain.tensors import DType, Signature, TensorSpec
from tests import graphs
from workers.stage_records.common import VARIANT_OUTPUT
from workers.stage_records.making import AcceptResult, AcceptSpec
from workers.toolchains.finish import accept

Change = Callable[[onnx.ModelProto], None]


def signature() -> Signature:
    return Signature(
        inputs=(TensorSpec(name=graphs.INPUT, dtype=DType.FLOAT32, shape=(None, 3, 8, 8)),),
        outputs=(TensorSpec(name=graphs.OUTPUT, dtype=DType.FLOAT32, shape=(None, 4)),),
    )


def checked(folder: Path, content: bytes) -> AcceptResult:
    path = folder / VARIANT_OUTPUT
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    spec = AcceptSpec(artifact=VARIANT_OUTPUT, signature=signature())
    return accept(spec, folder, lambda _share, _words: None)


def changed(change: Change) -> bytes:
    graph = graphs.conv_classifier()
    change(graph)
    content: bytes = graph.SerializeToString()
    return content


def test_a_plain_graph_is_accepted(tmp_path: Path) -> None:
    told: list[float] = []
    (tmp_path / "out").mkdir()
    onnx.save(graphs.conv_classifier(), tmp_path / VARIANT_OUTPUT)
    spec = AcceptSpec(artifact=VARIANT_OUTPUT, signature=signature())
    assert accept(spec, tmp_path, lambda share, _: told.append(share)) == AcceptResult(artifact=VARIANT_OUTPUT)
    assert told == sorted(told)
    assert told[-1] == 1


def external(graph: onnx.ModelProto) -> None:
    tensor = graph.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


def external_in_a_branch(graph: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "t")
    external_data = tensor.external_data.add()
    external_data.key, external_data.value = "location", "/etc/passwd"
    node = graph.graph.node.add(op_type="Constant", output=["unused"])
    node.attribute.append(helper.make_attribute("value", tensor))


def custom_operator(graph: onnx.ModelProto) -> None:
    graph.graph.node[1].domain = "com.example"
    graph.opset_import.add(domain="com.example", version=1)


def microsoft_operator(graph: onnx.ModelProto) -> None:
    graph.graph.node[1].op_type, graph.graph.node[1].domain = "FusedConv", "com.microsoft"
    graph.opset_import.add(domain="com.microsoft", version=1)


def unknown_operator(graph: onnx.ModelProto) -> None:
    graph.graph.node[1].op_type = "Run" * 100


def function(graph: onnx.ModelProto) -> None:
    body = [helper.make_node("Relu", ["a"], ["b"])]
    graph.functions.append(helper.make_function("", "Relu", ["a"], ["b"], body, [helper.make_opsetid("", 20)]))


def training(graph: onnx.ModelProto) -> None:
    graph.training_info.add().algorithm.name = "more"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (external, "not one self-contained graph"),
        (external_in_a_branch, "not one self-contained graph"),
        (function, "not one self-contained graph"),
        (training, "not one self-contained graph"),
        (custom_operator, "'Relu', which is not a standard"),
        (microsoft_operator, "'FusedConv', which is not a standard"),
        (unknown_operator, "not a standard ONNX operator"),
    ],
)
def test_a_graph_that_needs_more_than_its_file_is_refused(change: Change, said: str, tmp_path: Path) -> None:
    with pytest.raises(ToolchainFailed, match=said) as refused:
        checked(tmp_path, changed(change))
    assert len(refused.value.message) < 256


def missing_tensor(graph: onnx.ModelProto) -> None:
    graph.graph.node[0].input[1] = "nothing"


def lying_tensor(graph: onnx.ModelProto) -> None:
    graph.graph.initializer[0].dims[0] = 2**40


def no_rank(graph: onnx.ModelProto) -> None:
    graph.graph.output[0].type.tensor_type.ClearField("shape")


def cyclic(graph: onnx.ModelProto) -> None:
    graph.graph.node[0].input[0] = "r2"


@pytest.mark.parametrize("change", [missing_tensor, lying_tensor, no_rank, cyclic])
def test_a_graph_that_contradicts_itself_is_refused(change: Change, tmp_path: Path) -> None:
    with pytest.raises(ToolchainFailed, match="not valid ONNX"):
        checked(tmp_path, changed(change))


@pytest.mark.parametrize("content", [b"PK\x03\x04 not a protobuf", b"", b"\x08\x0a" * 3, b"\xff" * 64])
def test_a_file_that_is_no_onnx_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ToolchainFailed, match=r"is no ONNX file|is not valid ONNX"):
        checked(tmp_path, content)


def test_a_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    whole = changed(lambda _graph: None)
    with pytest.raises(ToolchainFailed, match=r"is no ONNX file|is not valid ONNX"):
        checked(tmp_path, whole[: len(whole) // 2])


def test_a_file_larger_than_an_onnx_file_can_be_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / VARIANT_OUTPUT
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(2**31)  # a hole: it takes no room
    spec = AcceptSpec(artifact=VARIANT_OUTPUT, signature=signature())
    with pytest.raises(ToolchainFailed, match=r"larger than 2,147,483,647 bytes"):
        accept(spec, tmp_path, lambda _share, _words: None)


def other_input_name(graph: onnx.ModelProto) -> None:
    graph.graph.input[0].name = graph.graph.node[0].input[0] = "image"


def other_output_name(graph: onnx.ModelProto) -> None:
    graph.graph.output[0].name = graph.graph.node[-1].output[0] = "answer"


def one_more_output(graph: onnx.ModelProto) -> None:
    graph.graph.output.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, ["batch", 32]))


def one_more_input(graph: onnx.ModelProto) -> None:
    graph.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["batch"]))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (other_input_name, "inputs"),
        (one_more_input, "inputs"),
        (other_output_name, "outputs"),
        (one_more_output, "outputs"),
    ],
)
def test_other_inputs_and_outputs_than_the_model_s_are_refused(change: Change, kind: str, tmp_path: Path) -> None:
    with pytest.raises(ToolchainFailed, match=f"The variant's {kind} are .*, not those of the model"):
        checked(tmp_path, changed(change))


def other_type(graph: onnx.ModelProto) -> None:
    graph.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    graph.graph.node.insert(0, helper.make_node("Cast", [graphs.INPUT], ["single"], to=TensorProto.FLOAT))
    graph.graph.node[1].input[0] = "single"


def fixed_batch(graph: onnx.ModelProto) -> None:
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def fixed_output_batch(graph: onnx.ModelProto) -> None:
    graph.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1


def free_side(graph: onnx.ModelProto) -> None:
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "side"


@pytest.mark.parametrize("change", [other_type, fixed_batch, fixed_output_batch, free_side])
def test_other_types_and_shapes_than_the_model_s_are_refused(change: Change, tmp_path: Path) -> None:
    with pytest.raises(ToolchainFailed, match=r"The variant declares .* but the model has float32\[N, "):
        checked(tmp_path, changed(change))


def a_sequence(graph: onnx.ModelProto) -> None:
    graph.graph.node[-1].output[0] = "one"
    graph.graph.node.append(helper.make_node("SequenceConstruct", ["one"], [graphs.OUTPUT]))
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", 4])
    graph.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(tensor))


def test_an_output_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolchainFailed, match="no tensor with a declared rank"):
        checked(tmp_path, changed(a_sequence))


def determinants(graph: onnx.ModelProto) -> None:
    """Scale every channel by its determinant, which OpenVINO cannot compute."""
    graph.graph.node[1].CopyFrom(helper.make_node("Mul", ["c1", "by"], ["r1"]))
    graph.graph.node.insert(1, helper.make_node("Reshape", ["d", "shape"], ["by"]))
    graph.graph.node.insert(1, helper.make_node("Det", ["c1"], ["d"]))
    graph.graph.initializer.append(numpy_helper.from_array(np.array([-1, 16, 1, 1], np.int64), "shape"))


def test_a_graph_that_the_engine_does_not_open_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolchainFailed, match="OpenVINO does not open"):
        checked(tmp_path, changed(determinants))


FRESH = """
import sys
import workers.toolchains.finish
assert "torch" not in sys.modules
"""


def test_the_stage_loads_nothing_that_can_run_an_upload() -> None:
    subprocess.run([sys.executable, "-c", FRESH], check=True, timeout=120)
