"""What a report says is what the engine did: answers, kernels, memory and time of real forms of a small model."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import TypeAdapter

from app.domain.datasets import DatasetFormat
from app.domain.errors import DatasetUnfit, PrecisionUnavailable, ToolchainFailed
from app.domain.recipes import Cast, PtqStatic, Single
from app.domain.reports import Layer
from app.domain.runners import Load
from app.domain.serving import Knobs, Servable
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Artifact, Execution
from tests import graphs
from workers.measure.engine import Session
from workers.measure.environment import environment
from workers.measure.inputs import random_inputs
from workers.measure.kernels import summed
from workers.measure.score import score
from workers.measure.timing import measure
from workers.openvino_engine import OpenVinoSession
from workers.runners.sessions import open_sessions
from workers.stage_records.common import RowSource
from workers.stage_records.making import TransformSpec
from workers.stage_records.measuring import Form, ScoreResult, ScoreSpec, TimeResult, TimeSpec, WeighSpec
from workers.toolchains import transform

HAS_BFLOAT16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bfloat16 = pytest.mark.skipif(not HAS_BFLOAT16, reason="this CPU has no bfloat16 instructions")
ROWS = 70
FLOAT32 = Form(name="float32", artifact="float32.onnx", execution=Execution())


def signature(*, batch: int | None = None) -> Signature:
    axis = 0 if batch is None else None
    return Signature(
        inputs=(TensorSpec(name=graphs.INPUT, dtype=DType.FLOAT32, shape=(batch, 3, 8, 8), batch_axis=axis),),
        outputs=(TensorSpec(name=graphs.OUTPUT, dtype=DType.FLOAT32, shape=(batch, 4), batch_axis=axis),),
    )


def quiet(_share: float, _words: str) -> None:
    """Take a stage's progress and do nothing."""


def source(*, rows: Sequence[int] = range(ROWS)) -> RowSource:
    return RowSource(path="data.npz", format=DatasetFormat.NPZ, rows=tuple(rows), preprocessing=None)


def answers(path: Path) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = onnxruntime.InferenceSession(str(path)).run(
        None, {graphs.INPUT: graphs.rows(ROWS)}
    )[0]
    return found


def make(scratch: Path, recipe: Single, *, name: str) -> Form:
    spec = TransformSpec(artifact=FLOAT32.artifact, signature=signature(), recipe=recipe, calibration=source())
    result = transform(spec, scratch, quiet)
    (scratch / result.artifact).rename(scratch / f"{name}.onnx")
    return Form(name=name, artifact=f"{name}.onnx", execution=result.execution)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the float32 model and rows that it labels right in about three of four."""
    made = tmp_path_factory.mktemp("scratch")
    onnx.save(graphs.conv_classifier(), made / FLOAT32.artifact)
    labels = answers(made / FLOAT32.artifact).argmax(axis=1)
    labels[::4] = (labels[::4] + 1) % 4
    graphs.save_dataset(made / "data.npz", graphs.rows(ROWS), labels)
    return made


@pytest.fixture(scope="module")
def forms(scratch: Path) -> tuple[Form, ...]:
    """float32, bfloat16 where the CPU has it, and int8."""
    shorter = (make(scratch, Cast(), name="bfloat16"),) if HAS_BFLOAT16 else ()
    return (FLOAT32, *shorter, make(scratch, PtqStatic(), name="int8"))


@pytest.fixture(scope="module")
def timed(scratch: Path, forms: tuple[Form, ...]) -> TimeResult:
    return measure(TimeSpec(forms=forms, signature=signature(), runs=20, batch_size=4), scratch, quiet)


def scored(scratch: Path, forms: tuple[Form, ...], *, rows: Sequence[int] = range(ROWS)) -> ScoreResult:
    spec = ScoreSpec(forms=forms, signature=signature(), evaluation=source(rows=rows), classes=())
    return score(spec, scratch, quiet)


def test_accuracy_is_that_of_the_answers(scratch: Path, forms: tuple[Form, ...]) -> None:
    found = scored(scratch, forms).accuracy
    assert found is not None
    with np.load(scratch / "data.npz") as data:
        right = answers(scratch / FLOAT32.artifact).argmax(axis=1) == data["labels"]
    assert list(found.measured) == [form.name for form in forms]
    assert (found.measured["float32"].count, found.measured["float32"].rows) == (right.sum(), ROWS)
    gained, lost = len(found.flips.gained), len(found.flips.lost)
    assert found.measured["int8"].count == right.sum() + gained - lost
    assert found.difference.value == pytest.approx((gained - lost) / ROWS)


def test_flips_are_row_numbers_of_the_dataset(scratch: Path, forms: tuple[Form, ...]) -> None:
    rows = range(1, ROWS, 3)
    found = scored(scratch, forms, rows=rows).accuracy
    assert found is not None
    assert set(found.flips.gained + found.flips.lost + found.flips.moved) <= set(rows)


@needs_bfloat16
def test_bfloat16_is_closer_to_float32_than_int8(scratch: Path, forms: tuple[Form, ...]) -> None:
    fidelity = scored(scratch, forms).fidelity
    assert set(fidelity) == {"bfloat16", "int8"}
    assert (fidelity["bfloat16"].sqnr_db or 0) > (fidelity["int8"].sqnr_db or 0) > 10


@needs_bfloat16
def test_float32_really_computes_in_float32(scratch: Path) -> None:
    # bfloat16 arithmetic would leave errors near 2^-8; float32 sums in another order stay below 1e-5
    twin = Form(name="twin", artifact=FLOAT32.artifact, execution=Execution(float_precision="bfloat16"))
    fidelity = scored(scratch, (FLOAT32, twin, FLOAT32)).fidelity
    assert fidelity["float32"].sqnr_db is None
    assert 20 < (fidelity["twin"].sqnr_db or 0) < 70


def test_scoring_works_without_labels(scratch: Path, forms: tuple[Form, ...], tmp_path: Path) -> None:
    for form in forms:
        (tmp_path / form.artifact).write_bytes((scratch / form.artifact).read_bytes())
    graphs.save_dataset(tmp_path / "data.npz", graphs.rows(ROWS))
    found = scored(tmp_path, forms)
    assert found.accuracy is None
    assert found.fidelity["int8"].agreement is not None


def test_float32_alone_can_be_scored(scratch: Path) -> None:
    found = scored(scratch, (FLOAT32,))
    assert found.accuracy is not None
    assert (found.accuracy.difference.value, found.fidelity) == (0, {})


def test_labels_beyond_the_classes_are_refused(scratch: Path, tmp_path: Path) -> None:
    (tmp_path / FLOAT32.artifact).write_bytes((scratch / FLOAT32.artifact).read_bytes())
    graphs.save_dataset(tmp_path / "data.npz", graphs.rows(ROWS), np.full(ROWS, 4))
    with pytest.raises(DatasetUnfit, match="Row 0 is labelled 4, but the model tells 4 classes apart"):
        scored(tmp_path, (FLOAT32,))


def broken(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with a bias of NaN."""
    bias = next(tensor for tensor in graph.graph.initializer if tensor.name == "b3")
    bias.CopyFrom(numpy_helper.from_array(np.full(4, np.nan, np.float32), "b3"))
    return graph


def test_a_variant_that_answers_nan_fails(scratch: Path) -> None:
    onnx.save(broken(graphs.conv_classifier()), scratch / "broken.onnx")
    with pytest.raises(ToolchainFailed, match="answers NaN or an infinity on evaluation row 0"):
        scored(scratch, (FLOAT32, Form(name="broken", artifact="broken.onnx", execution=Execution())))


def test_a_model_that_is_no_classifier_has_no_accuracy(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Tanh", ["x"], ["y"])], "tanh", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "t.onnx")
    graphs.save_dataset(tmp_path / "data.npz", graphs.rows(ROWS), np.zeros(ROWS, np.int64))
    forms = tuple(Form(name=name, artifact="t.onnx", execution=Execution()) for name in ("float32", "other"))
    outputs = (TensorSpec(name="y", dtype=DType.FLOAT32, shape=(None, 3, 8, 8)),)
    spec = ScoreSpec(
        forms=forms,
        signature=Signature(inputs=signature().inputs, outputs=outputs),
        evaluation=source(),
        classes=(),
    )
    found = score(spec, tmp_path, quiet)
    assert found.accuracy is None
    assert found.fidelity["other"].agreement is None
    assert found.fidelity["other"].cosine == pytest.approx(1)


def test_a_graph_fixed_to_one_row_is_scored_and_timed(tmp_path: Path) -> None:
    fixed = graphs.conv_classifier()
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, tmp_path / FLOAT32.artifact)
    graphs.save_dataset(tmp_path / "data.npz", graphs.rows(5), np.zeros(5, np.int64))
    spec = ScoreSpec(forms=(FLOAT32,), signature=signature(batch=1), evaluation=source(rows=range(5)), classes=())
    found = score(spec, tmp_path, quiet).accuracy
    assert found is not None
    assert found.measured["float32"].rows == 5
    timed = measure(TimeSpec(forms=(FLOAT32,), signature=signature(batch=1), runs=5), tmp_path, quiet)
    assert timed.latency["float32"].batch_size == 1


def test_a_file_that_the_engine_cannot_read_fails(tmp_path: Path) -> None:
    (tmp_path / FLOAT32.artifact).write_bytes(b"nothing")
    with pytest.raises(ToolchainFailed, match="OpenVINO cannot compile float32"):
        measure(TimeSpec(forms=(FLOAT32,), signature=signature()), tmp_path, quiet)


def adder() -> onnx.ModelProto:
    """Return a graph that adds two inputs of any width, and so fails where their widths differ."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "k"]) for name in ("a", "b", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["y"])], "add", values[:2], values[2:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


FAILS_ON_ONE_CORE = """
import os, sys
from pathlib import Path
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np, openvino
from app.domain.errors import ToolchainFailed, UploadUnreadable
from tests.contract.test_measurements import FLOAT32, pair
from workers.measure.conversion import verify
from workers.measure.engine import Session, threads
from workers.stage_records.importing import VerifySpec
scratch = Path(sys.argv[1])
session = Session.open(FLOAT32, pair(), scratch=scratch, core=openvino.Core())
assert threads() == 1
session.run({"a": np.ones((2, 3), np.float32), "b": np.ones((2, 3), np.float32)})
wrong = {"a": np.ones((2, 3), np.float32), "b": np.ones((2, 5), np.float32)}
try:
    print(session.run(wrong))
except ToolchainFailed as error:
    print("measuring:", error)
np.savez(scratch / "s.npz", **{"input:a": wrong["a"], "input:b": wrong["b"], "output:y": wrong["a"]})
try:
    print(verify(VerifySpec(artifact=FLOAT32.artifact, samples="s.npz", original="o"), scratch, lambda *_: None))
except UploadUnreadable as error:
    print("verifying:", error)
"""


def pair() -> Signature:
    a, b, y = (TensorSpec(name=name, dtype=DType.FLOAT32, shape=(None, None)) for name in ("a", "b", "y"))
    return Signature(inputs=(a, b), outputs=(y,))


def test_a_run_that_fails_on_one_core_is_no_answer(tmp_path: Path) -> None:
    onnx.save(adder(), tmp_path / FLOAT32.artifact)
    command = [sys.executable, "-c", FAILS_ON_ONE_CORE, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
    assert printed[0].startswith("measuring: OpenVINO cannot run float32")
    assert printed[1].startswith("verifying: OpenVINO cannot run float32")


class CoreOfAnOlderCpu(openvino.Core):  # type: ignore[misc]
    """Says what OpenVINO says where it has no bfloat16 kernels, which no test can bring about."""

    def get_property(self, *asked: str) -> object:
        return ["FP32", "INT8"] if asked[-1] == "OPTIMIZATION_CAPABILITIES" else super().get_property(*asked)


@pytest.mark.parametrize("optional", [True, False])
def test_a_form_that_this_cpu_cannot_run_is_left_out_if_it_is_optional(
    *, optional: bool, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "Core", CoreOfAnOlderCpu)
    execution = Execution(float_precision="bfloat16")
    short = Form(name="bfloat16", artifact=FLOAT32.artifact, execution=execution, optional=optional)
    spec = TimeSpec(forms=(FLOAT32, short), signature=signature(), runs=5)
    if optional:
        assert set(measure(spec, scratch, quiet).latency) == {"float32"}
        return
    with pytest.raises(PrecisionUnavailable, match="'bfloat16'"):
        measure(spec, scratch, quiet)


def test_what_is_measured_is_what_is_served(scratch: Path) -> None:
    path = scratch / FLOAT32.artifact
    data = path.read_bytes()
    variant = Servable(
        model="model",
        version=1,
        name=FLOAT32.name,
        artifact=Artifact(file=path.name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()),
        execution=FLOAT32.execution,
        signature=signature(),
        preprocessing=None,
        max_batch_size=None,
    )
    load = Load(
        variant=variant,
        instance=0,
        path=str(path),
        knobs=Knobs(mode="latency"),
        threads=0,
        max_batch_size=1,
        tuning=None,
        max_answer_bytes=2**20,
    )
    served = open_sessions(load)[0].get(1)
    measured = Session.open(FLOAT32, signature(), scratch=scratch, core=openvino.Core())
    assert isinstance(served, OpenVinoSession)
    for name in ("NUM_STREAMS", "INFERENCE_NUM_THREADS", "INFERENCE_PRECISION_HINT", "PERFORMANCE_HINT"):
        assert served.compiled.get_property(name) == measured.compiled.get_property(name)


def test_every_form_is_timed_in_as_many_rounds(timed: TimeResult, forms: tuple[Form, ...]) -> None:
    assert set(timed.latency) == {form.name for form in forms}
    assert {entry.runs for entry in timed.latency.values()} == {20}
    assert all(entry.p50_ms <= entry.p95_ms <= entry.p99_ms for entry in timed.latency.values())
    assert timed.latency["float32"].speedup == 1
    assert all(
        len(entry.quantiles_ms) == 21 and entry.quantiles_ms[10] == entry.p50_ms for entry in timed.latency.values()
    )
    assert all(entry.batch_size == 4 and entry.rows_per_second > 0 for entry in timed.latency.values())


def test_times_alone_are_had_without_kernels(scratch: Path, forms: tuple[Form, ...]) -> None:
    spec = TimeSpec(forms=forms, signature=signature(), runs=5, batch_size=1, profiled=False)
    found = measure(spec, scratch, quiet)
    assert set(found.latency) == {form.name for form in forms}
    assert (found.kernels, found.receipt) == ({}, None)


def convolutions(timed: TimeResult, name: str) -> set[str]:
    """Return the precisions that one form's convolutions ran in."""
    return {layer.precision for layer in timed.kernels[name].layers if layer.kind == "Convolution"}


def test_int8_kernels_are_counted_where_they_ran(timed: TimeResult) -> None:
    counts = {name: (entry.int8_layers, entry.float_layers) for name, entry in timed.kernels.items()}
    assert (counts["float32"], counts["int8"]) == ((0, 3), (3, 0))
    assert timed.kernels["int8"].int8_share > timed.kernels["float32"].int8_share == 0


def test_layers_name_their_precision_and_kernel(timed: TimeResult) -> None:
    assert convolutions(timed, "float32") == {"f32"}
    assert convolutions(timed, "int8") <= {"u8", "i8"}
    assert all(layer.implementation for entry in timed.kernels.values() for layer in entry.layers)


@needs_bfloat16
def test_bfloat16_layers_compute_in_bfloat16(timed: TimeResult) -> None:
    assert convolutions(timed, "bfloat16") == {"bf16"}
    assert timed.kernels["bfloat16"].int8_layers == 0


def test_quantizing_alone_is_no_int8_layer() -> None:
    def layer(kind: str, precision: str, kernel: str) -> Layer:
        return Layer(name="n", kind=kind, precision=precision, implementation=kernel, microseconds=1.0)

    found = summed(
        (layer("Convolution", "f32", "jit_f32"), layer("FakeQuantize", "u8", "jit_I8"), layer("MatMul", "i8", "jit_i8"))
    )
    assert (found.int8_layers, found.float_layers) == (1, 1)
    assert found.int8_share == pytest.approx(1 / 3)


def test_int8_weights_multiplied_in_float_are_no_int8_layer() -> None:
    kernel = Layer(
        name="n", kind="FullyConnected", precision="i8", implementation="brgemm_avx512_f32", microseconds=1.0
    )
    found = summed((kernel,))
    assert (found.int8_layers, found.float_layers, found.int8_share) == (0, 1, 0)


def test_results_survive_json(timed: TimeResult, scratch: Path, forms: tuple[Form, ...]) -> None:
    found = scored(scratch, forms)
    assert TypeAdapter(TimeResult).validate_json(TypeAdapter(TimeResult).dump_json(timed)) == timed
    assert TypeAdapter(ScoreResult).validate_json(TypeAdapter(ScoreResult).dump_json(found)) == found


WEIGH = """
import sys
from pathlib import Path
from pydantic import TypeAdapter
from workers.measure.memory import weigh
from workers.stage_records.measuring import WeighResult, WeighSpec
spec = TypeAdapter(WeighSpec).validate_json(sys.stdin.buffer.read())
result = weigh(spec, Path(sys.argv[1]), lambda share, words: None)
assert not {"torch", "nncf", "onnxruntime"} & set(sys.modules)
sys.stdout.buffer.write(TypeAdapter(WeighResult).dump_json(result))
"""


def test_a_form_is_weighed_in_a_process_without_other_libraries(scratch: Path) -> None:
    spec = TypeAdapter(WeighSpec).dump_json(WeighSpec(form=FLOAT32, signature=signature()))
    ran = subprocess.run(
        [sys.executable, "-c", WEIGH, str(scratch)], input=spec, capture_output=True, check=True, timeout=120
    )
    memory = json.loads(ran.stdout)["memory"]
    assert 0 < memory["added_bytes"] < memory["pss_bytes"]
    # the peak counts shared pages whole, the proportional size their share
    assert memory["pss_bytes"] <= memory["peak_bytes"]


def test_the_environment_is_this_machine(timed: TimeResult) -> None:
    found = environment()
    assert found == timed.environment
    assert found.cores >= 1
    assert found.memory_bytes > 0
    assert {"openvino", "nncf", "onnxruntime"} <= set(found.libraries)


@pytest.mark.parametrize("dtype", [DType.INT64, DType.BOOL, DType.FLOAT16, DType.BFLOAT16, DType.UINT8])
def test_random_input_follows_the_signature(dtype: DType) -> None:
    spec = TensorSpec(name="t", dtype=dtype, shape=(None, None, 3))
    made = random_inputs(Signature(inputs=(spec,), outputs=(spec,)), rows=2)["t"]
    spec.check(made.dtype.name, made.shape)
    assert made.shape == (2, 16, 3)
