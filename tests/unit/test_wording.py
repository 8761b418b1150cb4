"""What a runner tells of an engine's failure."""

import pytest

from workers.runners.wording import outward

OPENVINO = """Exception from src/inference/src/cpp/infer_request.cpp:224:
Exception from src/plugins/intel_cpu/src/node.cpp:794:
[CPU] Reshape node failed at src/plugins/intel_cpu/src/shape_inference/custom/reshape.cpp:77:
the shape of input data (1.5) conflicts with the reshape pattern (-1.4)

"""
ONNXRUNTIME = (
    "[ONNXRuntimeError] : 6 : while running a node. Status Message: /onnxruntime_src/onnxruntime/core/shape.h:47 "
    "the input (1,5) does not fit"
)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            RuntimeError(OPENVINO),
            "[CPU] Reshape node failed the shape of input data (1.5) conflicts with the reshape pattern (-1.4)",
        ),
        (
            RuntimeError(ONNXRUNTIME),
            "[ONNXRuntimeError] : 6 : while running a node. Status Message: the input (1,5) does not fit",
        ),
        (RuntimeError("The file '/home/octet/cache/a.onnx' and/or its weights"), "The file and/or its weights"),
        (FileNotFoundError(2, "No such file", "/home/octet/a.onnx"), "its file cannot be read (No such file)"),
    ],
)
def test_an_engines_words_lose_their_places(said: Exception, told: str) -> None:
    assert outward(said) == told
