"""A runner can reach one file and its socket, and takes no more memory than it may."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from app.domain.errors import AnswerTooLarge, OctetError, RunnerCrashed
from app.serving.terms import PoolLimits
from tests.graphs import INPUT, conv_classifier, rows
from tests.needs import absent
from tests.serving import Watch, loop_of_gateways, pid_of, serving, variant_of
from workers.confinement import missing_protections

pytestmark = pytest.mark.anyio
anyio_backend = loop_of_gateways

SECRET = b"correct-horse-battery-staple-000"
confined = pytest.mark.usefixtures("protections")


@pytest.fixture(scope="module")
def protections() -> None:
    if missing := missing_protections():
        absent(f"a kernel with {' and '.join(missing)}")


def reader_of(location: str) -> onnx.ModelProto:
    """Build a graph that answers x times the bytes of a file: its one constant lies there, where no check looks."""
    values = TensorProto(name="values", data_type=TensorProto.UINT8, dims=[len(SECRET)])
    values.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(SECRET)))):
        values.external_data.add(key=key, value=value)
    places = helper.make_tensor("places", TensorProto.INT64, [len(SECRET)], list(range(len(SECRET))))
    sparse = onnx.SparseTensorProto(values=values, indices=places, dims=[len(SECRET)])
    nodes = [
        helper.make_node("Constant", [], ["bytes"], sparse_value=sparse),
        helper.make_node("Cast", ["bytes"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "floats"], ["y"]),
    ]
    return _model(nodes, TensorProto.FLOAT, ["N", len(SECRET)], ["N", len(SECRET)])


def expander() -> onnx.ModelProto:
    """Build a graph that answers ones of the shape it is told: two numbers can ask for any amount of memory."""
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    nodes = [helper.make_node("Constant", [], ["c"], value=one), helper.make_node("Expand", ["c", "x"], ["y"])]
    return _model(nodes, TensorProto.INT64, [2], ["a", "b"])


def _model(nodes: list[onnx.NodeProto], dtype: int, x: list[Any], y: list[Any]) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", dtype, x)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)]
    graph = helper.make_graph(nodes, "crafted", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("kind", ["relative", "absolute", "through the process"])
@confined
async def test_a_graph_cannot_read_a_file_beside_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "secret.env").write_bytes(SECRET)
    monkeypatch.chdir(tmp_path)
    through = f"/proc/{os.getpid()}/cwd/secret.env"
    location = {"relative": "secret.env", "absolute": str(tmp_path / "secret.env"), "through the process": through}[
        kind
    ]
    async with serving(tmp_path) as pool:
        with pytest.raises(OctetError, match=r"cannot be loaded"):
            await pool.infer(variant_of(reader_of(location), tmp_path), {"x": np.ones((1, len(SECRET)), np.float32)})


async def test_a_runner_works_in_no_folder(tmp_path: Path) -> None:
    async with serving(tmp_path) as pool:
        await pool.load(variant_of(conv_classifier(), tmp_path))
        folder = Path(f"/proc/{await pid_of(pool)}/cwd").readlink()  # noqa: ASYNC240
    assert folder.name.endswith("(deleted)")


@confined
async def test_every_thread_of_a_runner_is_confined(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=PoolLimits(threads=2)) as pool:
        await pool.infer(variant_of(conv_classifier(), tmp_path), {INPUT: rows(2)})
        threads = list(map(_facts, Path(f"/proc/{await pid_of(pool)}/task").glob("*/status")))  # noqa: ASYNC240
    assert len(threads) > 1
    assert {(facts["Seccomp"], facts["NoNewPrivs"], int(facts["CapEff"], 16)) for facts in threads} == {("2", "1", 0)}


def _facts(status: Path) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)


async def test_an_answer_that_is_too_large_is_refused_alone(tmp_path: Path) -> None:
    variant, watch = variant_of(expander(), tmp_path), Watch()
    async with serving(tmp_path, watch=watch, limits=PoolLimits(threads=1, max_answer_bytes=4096)) as pool:
        with pytest.raises(AnswerTooLarge, match="OCTET_MAX_ANSWER_BYTES"):
            await pool.infer(variant, {"x": np.array([1, 1025])})
        answer = await pool.infer(variant, {"x": np.array([1, 1024])})
    assert answer.outputs["y"].shape == (1, 1024)
    assert watch.restarts == 0


async def test_a_request_that_needs_too_much_memory_fails_alone(tmp_path: Path) -> None:
    variant, watch = variant_of(expander(), tmp_path), Watch()
    async with serving(tmp_path, watch=watch, limits=PoolLimits(threads=1, memory_bytes=2**28)) as pool:
        with pytest.raises(RunnerCrashed):
            await pool.infer(variant, {"x": np.array([2**20, 2**10])})
        await pool.infer(variant, {"x": np.array([2, 2])})
    assert watch.restarts == 0
