"""A pool with real runners answers as the artifact does, whatever the shapes, dtypes and sizes."""

import asyncio
import io
import os
import signal
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from onnx import TensorProto, helper
from PIL import Image

from app.domain.errors import ImageInvalid, RequestInvalid, RunnerCrashed
from app.domain.preprocessing import ImagePreprocessing
from app.domain.variants import Precision
from app.serving.terms import EncodedImage, PoolLimits
from tests.graphs import INPUT, OUTPUT, conv_classifier, rows
from tests.serving import Watch, ended, pid_of, serving, until, variant_of
from workers.data.preprocessing import preprocess
from workers.openvino_engine import has_bfloat16

pytestmark = pytest.mark.anyio

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


def one_node(
    operator: str,
    *,
    dtype: int = TensorProto.FLOAT,
    inputs: int = 1,
    size: int | str = 4,
    repeat: int = 1,
    **attributes: Any,
) -> onnx.ModelProto:
    """Build a graph of one node: inputs x0, x1, … of [n, size], each taken `repeat` times; output y of [n, ?]."""
    names = [f"x{number}" for number in range(inputs)]
    values = [helper.make_tensor_value_info(name, dtype, ["n", size]) for name in names]
    graph = helper.make_graph(
        [helper.make_node(operator, names * repeat, ["y"], **attributes)],
        "one",
        values,
        [helper.make_tensor_value_info("y", dtype, ["n", "m"])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    made.ir_version = 10
    return made


async def test_a_runner_answers_as_onnxruntime_does(tmp_path: Path) -> None:
    graph, x = conv_classifier(), rows(5)
    expected = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {INPUT: x})[0]
    async with serving(tmp_path) as pool:
        answer = await pool.infer(variant_of(graph, tmp_path), {INPUT: x})
    # two engines add the same 144 products in different orders: float32 rounding, 2^-24 each
    np.testing.assert_allclose(answer.outputs[OUTPUT], expected, rtol=0, atol=144 * 2**-24 * np.abs(expected).max())
    assert answer.rows == 5
    assert answer.queue_seconds >= 0
    assert answer.compute_seconds > 0


@pytest.mark.skipif(not has_bfloat16(openvino.Core()), reason="the engine has no bfloat16 kernels here")
async def test_a_bfloat16_variant_computes_in_bfloat16(tmp_path: Path) -> None:
    graph, x = conv_classifier(), rows(5)
    variants = [variant_of(graph, tmp_path, name=name, precision=name) for name in PRECISIONS]
    async with serving(tmp_path) as pool:
        full, short = [(await pool.infer(variant, {INPUT: x})).outputs[OUTPUT] for variant in variants]
    assert not np.array_equal(full, short)
    # bfloat16 keeps 8 bits; the roundings of weights, activations and three layers add up to at most a few units
    np.testing.assert_allclose(full, short, rtol=0, atol=8 * 2**-8 * np.abs(full).max())


async def test_an_image_is_answered_as_its_preprocessed_row_is(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    image, preprocessing = png(20, 30), ImagePreprocessing()
    row = preprocess(image, preprocessing, size=(8, 8))
    async with serving(tmp_path) as pool:
        of_image = await pool.infer(variant, EncodedImage(data=image), preprocessing=preprocessing)
        of_array = await pool.infer(variant, {INPUT: row[None]})
    np.testing.assert_array_equal(of_image.outputs[OUTPUT], of_array.outputs[OUTPUT])


async def test_an_undecodable_image_fails_alone(tmp_path: Path) -> None:
    variant, watch = variant_of(conv_classifier(), tmp_path), Watch()
    async with serving(tmp_path, watch=watch) as pool:
        with pytest.raises(ImageInvalid, match="cannot be decoded"):
            await pool.infer(variant, EncodedImage(data=b"no image"), preprocessing=ImagePreprocessing())
        await pool.infer(variant, {INPUT: rows(1)})
    assert watch.restarts == 0


async def test_an_image_needs_a_preprocessing(tmp_path: Path) -> None:
    async with serving(tmp_path) as pool:
        with pytest.raises(RequestInvalid, match="preprocessing"):
            await pool.infer(variant_of(conv_classifier(), tmp_path), EncodedImage(data=png(8, 8)))
        assert pool.loaded() == ()


async def test_a_request_the_engine_cannot_run_fails_alone(tmp_path: Path) -> None:
    variant = variant_of(one_node("Add", inputs=2, size="k"), tmp_path)
    async with serving(tmp_path) as pool:
        with pytest.raises(RunnerCrashed, match="could not answer"):
            await pool.infer(variant, {"x0": np.ones((2, 3), np.float32), "x1": np.ones((2, 5), np.float32)})
        pid = pid_of(pool)
        answer = await pool.infer(variant, {name: np.ones((2, 3), np.float32) for name in ("x0", "x1")})
        assert pid_of(pool) == pid
    np.testing.assert_array_equal(answer.outputs["y"], np.full((2, 3), 2, np.float32))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64", "float16", "float32", "float64", "bool"])
async def test_every_dtype_travels_unchanged(tmp_path: Path, dtype: str) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = np.array([[0, 1, 1, 0], [1, 0, 0, 1]]).astype(dtype)
    async with serving(tmp_path) as pool:
        answer = await pool.infer(variant_of(one_node("Concat", dtype=kind, axis=1), tmp_path), {"x0": x})
    assert answer.outputs["y"].dtype == np.dtype(dtype)
    np.testing.assert_array_equal(answer.outputs["y"], x)


async def test_bfloat16_travels_as_its_bits(tmp_path: Path) -> None:
    variant = variant_of(one_node("Add", dtype=TensorProto.BFLOAT16, inputs=2), tmp_path)
    x = np.array([[1.5, -2, 0.25, 4]], ml_dtypes.bfloat16)
    async with serving(tmp_path) as pool:
        answer = await pool.infer(variant, {"x0": x, "x1": x.view(np.uint16)})
    np.testing.assert_array_equal(answer.outputs["y"].view(ml_dtypes.bfloat16), x + x)


async def test_arrays_in_any_memory_order_are_answered_alike(tmp_path: Path) -> None:
    variant, x = variant_of(conv_classifier(), tmp_path), rows(4)
    async with serving(tmp_path) as pool:
        plain = await pool.infer(variant, {INPUT: x})
        fortran = await pool.infer(variant, {INPUT: np.asfortranarray(x)})
        big_endian = await pool.infer(variant, {INPUT: x.astype(">f4")})
    np.testing.assert_array_equal(plain.outputs[OUTPUT], fortran.outputs[OUTPUT])
    np.testing.assert_array_equal(plain.outputs[OUTPUT], big_endian.outputs[OUTPUT])


async def test_outputs_larger_than_the_segment_arrive_whole(tmp_path: Path) -> None:
    variant = variant_of(one_node("Concat", size="k", repeat=100, axis=1), tmp_path)
    async with serving(tmp_path) as pool:
        for scale in (1, 2):  # the first does not fit; the second gets a segment that is large enough
            x = scale * np.arange(2000, dtype=np.float32).reshape(2, 1000)
            answer = await pool.infer(variant, {"x0": x})
            np.testing.assert_array_equal(answer.outputs["y"], np.tile(x, 100))


async def test_64_megabytes_go_and_come_back(tmp_path: Path) -> None:
    variant = variant_of(one_node("Neg", size="k"), tmp_path)
    x = np.random.default_rng(0).random((4, 2**22), np.float32)
    async with serving(tmp_path) as pool:
        answer = await pool.infer(variant, {"x0": x})
    np.testing.assert_array_equal(answer.outputs["y"], -x)


async def test_requests_of_many_sizes_at_once_get_their_own_answers(tmp_path: Path) -> None:
    variant = variant_of(one_node("Neg", size="k"), tmp_path)
    rng = np.random.default_rng(0)
    xs = [rng.random((int(n), int(k)), np.float32) for n, k in rng.integers(1, 200, (60, 2))]
    async with serving(tmp_path) as pool:
        answers = await asyncio.gather(*(pool.infer(variant, {"x0": x}) for x in xs))
    for x, answer in zip(xs, answers, strict=True):
        np.testing.assert_array_equal(answer.outputs["y"], -x)


async def test_an_answer_outlives_the_requests_that_follow(tmp_path: Path) -> None:
    variant = variant_of(one_node("Neg"), tmp_path)
    async with serving(tmp_path) as pool:
        first = await pool.infer(variant, {"x0": np.ones((1, 4), np.float32)})
        await pool.infer(variant, {"x0": np.zeros((1, 4), np.float32)})
    np.testing.assert_array_equal(first.outputs["y"], -np.ones((1, 4), np.float32))


async def test_two_hundred_requests_leave_no_descriptor_open(tmp_path: Path) -> None:
    variant = variant_of(one_node("Neg", size="k"), tmp_path)
    async with serving(tmp_path) as pool:  # the event loop opens what it keeps
        await pool.load(variant)
    before = open_descriptors()
    async with serving(tmp_path) as pool:
        for number in range(200):
            await pool.infer(variant, {"x0": np.ones((1 + number % 7, 100 * number + 1), np.float32)})
        assert open_descriptors() - before < 30  # the idle segments, one each, the socket and the process
    assert open_descriptors() <= before


async def test_first_requests_share_one_start(tmp_path: Path) -> None:
    variant, watch = variant_of(conv_classifier(), tmp_path), Watch()
    async with serving(tmp_path, watch=watch) as pool:
        await asyncio.gather(*(pool.infer(variant, {INPUT: rows(1)}) for _ in range(6)))
        assert pool.ready(variant)
    assert watch.fetches == 1
    assert watch.counts == [1, 0]


async def test_the_least_recently_used_variant_gives_way(tmp_path: Path) -> None:
    first, second, third = (variant_of(conv_classifier(seed=n), tmp_path, name=f"v{n}") for n in range(3))
    async with serving(tmp_path, limits=PoolLimits(max_loaded=2, threads=1)) as pool:
        for variant in (first, second, first, third):
            await pool.infer(variant, {INPUT: rows(1)})
        assert [kept.variant.name for kept in pool.loaded()] == ["v0", "v2"]
        assert not pool.ready(second)


async def test_unloading_ends_the_process_and_loading_brings_another(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with serving(tmp_path) as pool:
        await pool.load(variant)
        pid = pid_of(pool)
        await pool.unload(variant)
        assert ended(pid)
        assert not pool.ready(variant)
        await pool.load(variant)
        assert pid_of(pool) != pid


async def test_unloading_waits_for_requests_in_flight(tmp_path: Path) -> None:
    variant = variant_of(one_node("Neg", size="k"), tmp_path)
    x = np.ones((8, 2**18), np.float32)
    async with serving(tmp_path) as pool:
        await pool.load(variant)
        os.kill(pid_of(pool), signal.SIGSTOP)
        asked = [asyncio.create_task(pool.infer(variant, {"x0": x})) for _ in range(4)]
        await until(lambda: pool.loaded()[0].in_flight == 4)
        unloading = asyncio.create_task(pool.unload(variant))
        os.kill(pid_of(pool), signal.SIGCONT)
        await unloading
        assert all(answer.rows == 8 for answer in await asyncio.gather(*asked))


async def test_closing_the_pool_leaves_no_process(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with serving(tmp_path) as pool:
        await pool.load(variant)
        pid = pid_of(pool)
    assert ended(pid)


async def test_a_runner_tells_its_own_memory(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with serving(tmp_path) as pool:
        assert await pool.memory() == []
        await pool.load(variant)
        (memory,) = await pool.memory()
    assert memory.variant == variant
    assert 2**20 < memory.pss_bytes <= memory.peak_bytes


def png(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
