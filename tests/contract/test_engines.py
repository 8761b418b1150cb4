"""One contract for every engine: what it runs, in how many lanes, and what is left when it goes."""

import gc
import mmap
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import psutil
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from app.domain.recipes import Single
from app.domain.tensors import DType
from app.domain.variants import Engine, Execution
from tests import graphs
from tests.contract import test_toolchains as toolchains
from tests.engines import DTYPES, declared, opened, two_inputs
from workers.runners.engines import ENGINES

Array = npt.NDArray[Any]
make_node = helper.make_node

# Sums in another order: float32 rounds each by 2^-24, far below a millionth of the energy.
ROUNDING = 1e-6


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    name: Engine = request.param
    return name


def expected(graph: onnx.ModelProto, inputs: Mapping[str, Array]) -> Array:
    found: Array = ReferenceEvaluator(graph).run(None, dict(inputs))[0]
    return found


# What they answer.


def test_a_float_graph_is_answered_in_float32(engine: Engine) -> None:
    graph, x = graphs.conv_classifier(), graphs.rows(5)
    session = opened(engine, graph)
    assert session.float_precision == "float32"
    found = session.infer({graphs.INPUT: x})[graphs.OUTPUT]
    assert toolchains.distance(found, expected(graph, {graphs.INPUT: x})) < ROUNDING


@pytest.fixture(scope="module", params=toolchains.EVERY_RECIPE)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> toolchains.Variant:
    """What each pair of toolchain and technique makes of the classifier."""
    folder = tmp_path_factory.mktemp("made")
    return made_of(request.param, folder)


def made_of(recipe: Single, folder: Path) -> toolchains.Variant:
    module = toolchains.Classifier(toolchains.constants(graphs.conv_classifier())).eval()
    axes = ({0: torch.export.Dim("batch")},)
    program = folder / "program.pt2"
    torch.export.save(torch.export.export(module, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=axes), program)
    return toolchains.run(toolchains.fill(folder, program.read_bytes()), recipe)


def test_the_artifact_of_every_technique_runs(engine: Engine, made: toolchains.Variant) -> None:
    if engine == "onnxruntime" and made.execution != Execution():
        with pytest.raises(RuntimeError, match="take OpenVINO"):
            opened(engine, made.graph, execution=made.execution)
        return
    x = graphs.rows(3, seed=3)
    session = opened(engine, made.graph, execution=made.execution)
    found = session.infer({graphs.INPUT: x})[graphs.OUTPUT]
    assert toolchains.distance(found, toolchains.float32_answers(x)) < toolchains.MOST_NOISE
    assert session.float_precision == made.execution.float_precision


def test_two_inputs_are_told_apart_by_name(engine: Engine) -> None:
    session = opened(engine, two_inputs())
    a, b = np.full((2, 3), 5, np.float32), np.full((2, 3), 3, np.float32)
    np.testing.assert_array_equal(session.infer({"b": b, "a": a})["y"], a - b)


@pytest.mark.parametrize("names", ["a", "abc", "xy"])
def test_every_input_must_be_given_and_no_other(engine: Engine, names: str) -> None:
    session = opened(engine, two_inputs())
    ones = np.ones((2, 3), np.float32)
    session.infer({"a": ones, "b": ones})
    with pytest.raises(RuntimeError):
        session.infer(dict.fromkeys(names, ones))
    np.testing.assert_array_equal(session.infer({"a": ones, "b": ones})["y"], ones - ones)


def test_every_free_size_may_change_from_call_to_call(engine: Engine) -> None:
    graph = graphs.small(
        [make_node("ReduceMax", ["x", "axes"], ["y"], keepdims=0)],
        inputs={"x": ("n", "length", 4)},
        outputs={"y": ("n", 4)},
        weights={"axes": np.array([1])},
    )
    session = opened(engine, graph)
    for rows, length in ((1, 3), (4, 9), (2, 1), (1, 3)):
        x = graphs.drawn(rows, length, 4, scale=1)
        np.testing.assert_array_equal(session.infer({"x": x})["y"], x.max(axis=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_goes_in_and_comes_out(engine: Engine, dtype: DType) -> None:
    nodes = [
        make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        make_node("Mul", ["f", "half"], ["h"]),
        make_node("Cast", ["f"], ["y"], to=DTYPES[dtype]),
    ]
    shape: graphs.Shape = ("n", 4)
    graph = graphs.small(
        nodes,
        inputs={"x": shape},
        outputs={"h": shape, "y": shape},
        weights={"half": np.float32(0.5)},
        types={"x": DTYPES[dtype], "y": DTYPES[dtype]},
    )
    values = np.array([[0, 1, 2, 3], [7, 64, 100, 1]], np.float32)
    numbers = values.astype(ml_dtypes.bfloat16 if dtype is DType.BFLOAT16 else dtype.value)
    x = numbers.view(np.uint16) if dtype is DType.BFLOAT16 else numbers
    answer = opened(engine, graph).infer({"x": x})
    np.testing.assert_array_equal(answer["h"], numbers.astype(np.float32) / 2)
    np.testing.assert_array_equal(answer["y"], x)
    assert answer["y"].dtype == x.dtype


# How inputs may lie.


@pytest.mark.parametrize("offset", [0, 64, 4096, 48, 8, 3])
def test_inputs_may_lie_anywhere_in_a_mapping(engine: Engine, offset: int) -> None:
    x = graphs.rows(2)
    with mmap.mmap(-1, x.nbytes + 8192) as segment:
        view = np.ndarray(x.shape, x.dtype, segment, offset)
        view[:] = x
        session = opened(engine, graphs.conv_classifier())
        found = session.infer({graphs.INPUT: view})[graphs.OUTPUT].copy()
        wanted = session.infer({graphs.INPUT: x})[graphs.OUTPUT]
        np.testing.assert_array_equal(found, wanted)
        del view, session
        gc.collect()


@pytest.mark.parametrize("lying", ["read-only", "columns first", "every other"])
def test_inputs_that_cannot_be_read_in_place_are_copied(engine: Engine, lying: str) -> None:
    x = graphs.rows(2)
    other = {
        "read-only": np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
        "columns first": np.asfortranarray(x),
        "every other": np.repeat(x, 2, axis=3)[..., ::2],
    }[lying]
    session = opened(engine, graphs.conv_classifier())
    found = session.infer({graphs.INPUT: other})[graphs.OUTPUT].copy()
    np.testing.assert_array_equal(found, session.infer({graphs.INPUT: x})[graphs.OUTPUT])


# Lanes.


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_every_stream_is_a_lane(engine: Engine, streams: int) -> None:
    assert opened(engine, graphs.conv_classifier(), streams=streams).lanes == streams


@pytest.mark.parametrize("lane", [-1, 2])
def test_a_lane_that_is_none_raises(engine: Engine, lane: int) -> None:
    session = opened(engine, graphs.conv_classifier(), streams=2)
    with pytest.raises(RuntimeError, match="Lane"):
        session.infer({graphs.INPUT: graphs.rows(1)}, lane=lane)


def test_lanes_that_run_at_once_each_get_their_own_answers(engine: Engine) -> None:
    graph, rows = graphs.conv_classifier(side=24), 24
    session = opened(engine, graph, streams=3)
    inputs = [graphs.rows(1 + number % 3, side=24, seed=number) for number in range(rows)]
    wanted = [expected(graph, {graphs.INPUT: x}) for x in inputs]
    start = threading.Barrier(session.lanes)

    def answers(lane: int) -> float:
        start.wait(timeout=30)
        numbers = [number for number in range(rows) if number % session.lanes == lane] * 10
        worst = 0.0
        for number in numbers:
            found = session.infer({graphs.INPUT: inputs[number]}, lane=lane)[graphs.OUTPUT]
            worst = max(worst, toolchains.distance(found, wanted[number]))
        return worst

    with ThreadPoolExecutor(session.lanes) as threads:
        assert max(threads.map(answers, range(session.lanes))) < ROUNDING


def test_an_answer_outlives_the_other_lanes_calls(engine: Engine) -> None:
    session = opened(engine, graphs.conv_classifier(), streams=2)
    x = graphs.rows(2)
    kept = session.infer({graphs.INPUT: x}, lane=0)[graphs.OUTPUT]
    before = kept.copy()
    session.infer({graphs.INPUT: -x}, lane=1)
    np.testing.assert_array_equal(kept, before)


@pytest.mark.parametrize("streams", [1, 2])
def test_a_request_that_fails_spoils_no_other(engine: Engine, streams: int) -> None:
    session = opened(engine, two_inputs("Concat", rows="m", axis=1), streams=streams)
    three, two = np.ones((3, 3), np.float32), np.zeros((2, 3), np.float32)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            session.infer({"a": two, "b": three}, lane=streams - 1)
        np.testing.assert_array_equal(
            session.infer({"a": two, "b": two + 1}, lane=streams - 1)["y"], [[0, 0, 0, 1, 1, 1]] * 2
        )


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 3), np.int64), np.zeros((2, 4), np.float32), np.zeros(3, np.float32)], ids=str
)
def test_an_array_the_graph_does_not_take_raises(engine: Engine, wrong: Array) -> None:
    session = opened(engine, two_inputs())
    with pytest.raises(RuntimeError):
        session.infer({"a": wrong, "b": np.zeros((2, 3), np.float32)})
    ones = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(session.infer({"a": ones, "b": ones})["y"], ones - ones)


# What they refuse, and what they leave behind.


def test_an_input_shorter_than_the_weights_never_reads_what_lies_behind_it(engine: Engine) -> None:
    """The declaration leaves the size free, the weights do not; OpenVINO alone would answer with old numbers."""
    weights = onnx.numpy_helper.from_array(np.ones((300, 4), np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "m"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    product = helper.make_graph([make_node("MatMul", ["x", "w"], ["y"])], "product", [x], [y], [weights])
    graph = helper.make_model(product, opset_imports=[helper.make_opsetid("", 20)])
    graph.ir_version = 10
    session = opened(engine, graph)
    whole = {"x": np.full((1, 300), 7, np.float32)}
    assert session.infer(whole)["y"][0, 0] == 2100
    with pytest.raises(RuntimeError):
        session.infer({"x": np.ones((1, 2), np.float32)})
    assert session.infer(whole)["y"][0, 0] == 2100


@pytest.mark.parametrize("spoil", [lambda _: b"", lambda _: b"not a graph", lambda whole: whole[: len(whole) // 2]])
def test_a_wrong_artifact_raises(engine: Engine, spoil: Callable[[bytes], bytes]) -> None:
    graph = graphs.conv_classifier()
    with pytest.raises(RuntimeError):
        ENGINES[engine]()(spoil(graph.SerializeToString()), Execution(), declared(graph), threads=1)


def test_an_artifact_without_a_declared_tensor_raises(engine: Engine) -> None:
    artifact, others = graphs.conv_classifier().SerializeToString(), declared(two_inputs())
    with pytest.raises(RuntimeError, match="no tensor 'a'"):
        ENGINES[engine]()(artifact, Execution(), others, threads=1)


def test_onnxruntime_does_not_quantize_what_passes_a_4_bit_weight() -> None:
    graph = quantized_beside_four_bits()
    x = graphs.drawn(4, 64, scale=1)
    found = opened("onnxruntime", graph).infer({"x": x})["y"]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted = onnxruntime.InferenceSession(graph.SerializeToString(), options).run(["y"], {"x": x})[0]
    # with 8 bits for what passes it would be 1e-5
    assert toolchains.distance(found, wanted) < 1e-10


def quantized_beside_four_bits() -> onnx.ModelProto:
    nodes = [
        make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        make_node("DequantizeLinear", ["q", "scale", "zero"], ["z"]),
        make_node("DequantizeLinear", ["packed", "steps"], ["w"], axis=0, block_size=32),
        make_node("MatMul", ["x", "w"], ["y"]),
    ]
    weights = {"scale": np.float32(0.05), "zero": np.uint8(128), "steps": np.full((2, 16), 0.1, np.float32)}
    weights["packed"] = np.random.default_rng(0).integers(-8, 8, (64, 16)).astype(ml_dtypes.int4)
    shapes: dict[str, graphs.Shape] = {"y": ("n", 16), "z": ("n", 64)}
    return graphs.small(nodes, inputs={"x": ("n", 64)}, outputs=shapes, weights=weights, opset=21)


OPENING = """
import gc, sys
import numpy as np
import psutil
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Execution
from workers.runners.engines import ENGINES
spec = {{"dtype": DType.FLOAT32, "batch_axis": 0}}
inputs = TensorSpec(name="x", shape=(None, 3, 8, 8), **spec)
outputs = TensorSpec(name="logits", shape=(None, 4), **spec)
artifact, rows = sys.stdin.buffer.read(), np.zeros((2, 3, 8, 8), np.float32)
for _ in range({times}):
    session = ENGINES[{engine!r}]()(artifact, Execution(), Signature(inputs=(inputs,), outputs=(outputs,)), threads=1)
    session.infer({{"x": rows}})
    del session
    gc.collect()
    print(psutil.Process().memory_full_info().uss)
print(sorted({{"openvino", "onnxruntime", "onnx", "torch"}} & set(sys.modules)))
"""


def opening(engine: Engine, graph: onnx.ModelProto, *, times: int = 1) -> list[str]:
    """Open a classifier in a process of its own; return the memory after every time it was dropped, and what loaded."""
    ran = subprocess.run(
        [sys.executable, "-c", OPENING.format(engine=engine, times=times)],
        input=graph.SerializeToString(),
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    lines: list[str] = ran.stdout.decode().splitlines()
    return lines


def test_a_process_imports_the_one_engine_it_uses(engine: Engine) -> None:
    assert opening(engine, graphs.conv_classifier())[-1] == str([engine])


def test_dropped_sessions_give_their_memory_back(engine: Engine) -> None:
    used = [int(line) for line in opening(engine, graphs.conv_classifier(width=512), times=12)[:-1]]
    # the weights alone have 19 MB, so eleven sessions that stayed would have 209; the allocator was seen to keep 55
    assert used[-1] - used[0] < 150e6


def test_closed_sessions_leave_no_thread(engine: Engine) -> None:
    threads, x = [], graphs.rows(2)
    for _ in range(4):
        session = opened(engine, graphs.conv_classifier(), streams=2)
        for lane in range(session.lanes):
            session.infer({graphs.INPUT: x}, lane=lane)
        del session
        gc.collect()
        threads.append(psutil.Process().num_threads())
    # the first leaves what the engine's library keeps for its whole life
    assert threads[0] == threads[-1]


def test_onnxruntime_gives_back_what_a_large_request_took() -> None:
    nodes = [make_node("Exp", ["x"], ["e"]), make_node("ReduceSum", ["e", "axes"], ["y"], keepdims=0)]
    shapes: dict[str, graphs.Shape] = {"x": ("n", 2**20)}
    graph = graphs.small(nodes, inputs=shapes, outputs={"y": ("n",)}, weights={"axes": np.array([1])})
    session, x, process = opened("onnxruntime", graph), np.zeros((32, 2**20), np.float32), psutil.Process()
    session.infer({"x": x[:1]})  # what the first request took stays
    session.infer({"x": x})
    before = process.memory_full_info().uss
    session.infer({"x": x[:1]})
    # `e` had 128 MiB, and has 4 now
    assert before - process.memory_full_info().uss > 2**26
