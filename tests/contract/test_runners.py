"""A pool with real runners answers as the artifact does, whatever the shapes, dtypes and sizes."""

import asyncio
import io
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import openvino
import pytest
from onnx import TensorProto, helper
from PIL import Image

from app.domain.errors import ImageInvalid, RequestInvalid, RunnerCrashed
from app.domain.preprocessing import ImagePreprocessing
from app.domain.variants import Precision
from app.serving.pool import RunnerPool
from app.serving.terms import EncodedImage, EncodedImages, Pixels
from tests.graphs import INPUT, OUTPUT, conv_classifier, rows, small
from tests.serving import (
    Watch,
    figures_at_rest,
    gateway,
    hosting,
    loop_of_gateways,
    open_descriptors,
    pid,
    pid_of,
    serving,
    variant_of,
)
from workers.data.preprocessing import preprocess
from workers.openvino_engine import has_bfloat16

pytestmark = pytest.mark.anyio

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
anyio_backend = loop_of_gateways


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


# The preprocessing is part of the graph that takes pixels: scale, mean and std round there by at most 2^-24 of values
# below 3 each, as does every one of 144 products; two orders of adding differ by that, times the largest sum.
ROUNDING = (144 + 8) * 2**-24


def assert_close(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * 3 * max(1.0, np.abs(expected).max()))


async def test_an_image_is_answered_as_its_preprocessed_row_is(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    image, preprocessing = png(20, 30), ImagePreprocessing()
    row = preprocess(image, preprocessing, size=(8, 8))
    async with serving(tmp_path) as pool:
        of_image = await pool.infer(variant, EncodedImage(data=image), preprocessing=preprocessing)
        of_array = await pool.infer(variant, {INPUT: row[None]})
    assert_close(of_image.outputs[OUTPUT], of_array.outputs[OUTPUT])


async def test_several_images_are_answered_as_their_preprocessed_rows_are(tmp_path: Path) -> None:
    variant, preprocessing = variant_of(conv_classifier(), tmp_path), ImagePreprocessing()
    images = tuple(png(20 + 3 * number, 30, seed=number) for number in range(4))
    several = np.stack([preprocess(image, preprocessing, size=(8, 8)) for image in images])
    async with serving(tmp_path) as pool:
        of_images = await pool.infer(variant, EncodedImages(images=images), preprocessing=preprocessing)
        of_arrays = await pool.infer(variant, {INPUT: several})
    assert_close(of_images.outputs[OUTPUT], of_arrays.outputs[OUTPUT])


async def test_pixels_are_answered_as_their_preprocessed_rows_are(tmp_path: Path) -> None:
    variant, preprocessing = variant_of(conv_classifier(), tmp_path), ImagePreprocessing()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    rows_of_pixels = np.stack([preprocess(encoded(each), preprocessing, size=(8, 8)) for each in pixels])
    async with serving(tmp_path) as pool:
        of_pixels = await pool.infer(variant, Pixels(data=pixels), preprocessing=preprocessing)
        of_arrays = await pool.infer(variant, {INPUT: rows_of_pixels})
    assert_close(of_pixels.outputs[OUTPUT], of_arrays.outputs[OUTPUT])


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
        assert await pool.held() == ()


async def test_a_request_the_engine_cannot_run_fails_alone(tmp_path: Path) -> None:
    variant = variant_of(one_node("Add", inputs=2, size="k"), tmp_path)
    async with serving(tmp_path) as pool:
        with pytest.raises(RunnerCrashed, match="could not answer"):
            await pool.infer(variant, {"x0": np.ones((2, 3), np.float32), "x1": np.ones((2, 5), np.float32)})
        first = await pid_of(pool)
        answer = await pool.infer(variant, {name: np.ones((2, 3), np.float32) for name in ("x0", "x1")})
        assert await pid_of(pool) == first
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


async def test_an_answer_that_is_too_large_for_every_segment_leaves_them_small(tmp_path: Path) -> None:
    variant = variant_of(one_node("Concat", size="k", repeat=100, axis=1), tmp_path)
    async with serving(tmp_path) as pool:
        for size in (10_000, 1):
            answer = await pool.infer(variant, {"x0": np.ones((2, size), np.float32)})
            assert answer.outputs["y"].shape == (2, 100 * size)
        assert sum(pool.segment_bytes().values()) < 2**20


async def test_a_model_of_many_inputs_with_long_names_is_served_and_its_neighbours_too(tmp_path: Path) -> None:
    names = [f"{number:0150}" for number in range(1000)]  # what names them is larger than a socket's message
    node = helper.make_node("Sum", names, ["y"])
    graph = small([node], inputs=dict.fromkeys(names, ("n", 1)), outputs={"y": ("n", 1)}, weights={})
    wide, plain = variant_of(graph, tmp_path, name="wide"), variant_of(one_node("Neg"), tmp_path, name="plain")
    async with serving(tmp_path) as pool:
        answers = await asyncio.gather(
            pool.infer(wide, {name: np.ones((2, 1), np.float32) for name in names}),
            pool.infer(plain, {"x0": np.ones((2, 4), np.float32)}),
        )
    assert [answer.outputs["y"][0, 0] for answer in answers] == [1000, -1]


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


async def test_inputs_in_a_room_are_read_where_they_lie(tmp_path: Path) -> None:
    variant, x = variant_of(one_node("Neg", size="k"), tmp_path), np.arange(8000, dtype=np.float32).reshape(8, 1000)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        with pool.room(variant, size_bytes=x.nbytes) as room:
            np.frombuffer(room.memory, np.float32, x.size)[:] = x.ravel()
            placed = np.frombuffer(room.memory, np.float32, x.size).reshape(x.shape)
            answer = await pool.infer(variant, {"x0": placed}, room=room)
            assert segments_made(pool) == 1
        np.testing.assert_array_equal(answer.outputs["y"], -x)


@pytest.mark.parametrize("lead_bytes", [1, 63, 64, 100])
async def test_tensors_behind_a_header_are_read_where_they_lie(tmp_path: Path, lead_bytes: int) -> None:
    variant, x = variant_of(one_node("Neg", size="k"), tmp_path), np.ones((2, 5), np.float32)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        with pool.room(variant, size_bytes=lead_bytes + x.nbytes, lead_bytes=lead_bytes) as room:
            room.memory[: lead_bytes + x.nbytes] = bytes(lead_bytes) + x.tobytes()
            placed = np.frombuffer(room.memory, np.float32, x.size, lead_bytes).reshape(x.shape)
            answer = await pool.infer(variant, {"x0": placed}, room=room)
            assert segments_made(pool) == 1
        np.testing.assert_array_equal(answer.outputs["y"], -x)


async def test_inputs_that_do_not_lie_well_in_a_room_are_copied(tmp_path: Path) -> None:
    variant, x = variant_of(one_node("Neg", size="k"), tmp_path), np.ones((2, 5), np.float32)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        with pool.room(variant, size_bytes=3 + x.nbytes) as room:
            room.memory[3 : 3 + x.nbytes] = x.tobytes()
            placed = np.frombuffer(room.memory, np.float32, x.size, 3).reshape(x.shape)
            answer = await pool.infer(variant, {"x0": placed}, room=room)
            assert segments_made(pool) == 2
        np.testing.assert_array_equal(answer.outputs["y"], -x)


async def test_a_room_of_one_variant_is_not_shown_to_the_runner_of_another(tmp_path: Path) -> None:
    one, other = (variant_of(one_node(name), tmp_path, name=name.lower()) for name in ("Neg", "Abs"))
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.infer(other, {"x0": np.full((1, 4), 7, np.float32)})
        with pool.room(one, size_bytes=16) as room:
            placed = np.frombuffer(room.memory, np.float32, 4).reshape(1, 4)
            np.frombuffer(room.memory, np.float32, 4)[:] = -3
            answer = await pool.infer(other, {"x0": placed}, room=room)
        np.testing.assert_array_equal(answer.outputs["y"], np.full((1, 4), 3, np.float32))


def segments_made(pool: RunnerPool) -> int:
    return sum(desk.segments._made for desk in pool._desks.values())


async def test_two_hundred_requests_leave_no_descriptor_open(tmp_path: Path) -> None:
    variant = variant_of(one_node("Neg", size="k"), tmp_path)
    async with serving(tmp_path) as pool:  # the event loop opens what it keeps
        await pool.load(variant)
    before = open_descriptors()
    async with serving(tmp_path) as pool:
        for number in range(200):
            await pool.infer(variant, {"x0": np.ones((1 + number % 7, 100 * number + 1), np.float32)})
        assert open_descriptors() - before < 30  # the idle segments, one each, the sockets and the process
    assert open_descriptors() <= before


async def test_a_runner_tells_how_it_fares(tmp_path: Path) -> None:
    variant = variant_of(conv_classifier(), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        assert await pool.statistics() == ()
        await pool.infer(variant, {INPUT: rows(3)})
        status = await figures_at_rest(host)
        assert [each.pid for each in await pool.statistics()] == [status.pid]
        assert (status.model, status.version, status.variant, status.pid) == ("model", 1, "float32", pid(host))
    assert 2**20 < status.pss_bytes <= status.peak_bytes
    assert (status.rows, status.queued_rows, status.compute.count) == (3, 0, 1)
    assert [(batch.rows, batch.runs.count) for batch in status.batches] == [(3, 1)]
    assert status.tuning.latency in status.tuning.curve


def png(width: int, height: int, *, seed: int = 0) -> bytes:
    return encoded(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def encoded(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
