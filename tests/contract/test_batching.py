"""Requests that run together are answered as if each had run alone: their own rows, their own failure."""

import asyncio
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper
from PIL import Image

from app.domain.errors import ImageInvalid
from app.domain.preprocessing import ImagePreprocessing
from app.domain.serving import Knobs, RunnerStatus
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Variant
from app.serving.pool import RunnerPool
from app.serving.terms import EncodedImage, Inference
from tests import graphs
from tests.contract.test_runners import one_node
from tests.serving import (
    asked,
    figures,
    gateway,
    hosting,
    loop_of_gateways,
    pid,
    spinner,
    stopped,
    turns,
    until,
    variant_of,
)

pytestmark = pytest.mark.anyio
anyio_backend = loop_of_gateways

FOUR = Knobs(mode="throughput", streams=1, max_batch_size=4, max_queue_delay_ms=1000)
Rows = dict[str, npt.NDArray[Any]]


def batches(status: RunnerStatus) -> dict[int, int]:
    """Return how many runs of the engine had so many rows."""
    return {batch.rows: batch.runs.count for batch in status.batches}


async def at_once(pool: RunnerPool, variant: Variant, requests: Sequence[Rows]) -> list[Inference]:
    return await asyncio.gather(*(pool.infer(variant, request) for request in requests))


async def test_requests_run_together_and_each_gets_its_own_rows(tmp_path: Path) -> None:
    variant = variant_of(spinner(), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant, knobs=FOUR)
        found = await at_once(pool, variant, [turns(number) for number in range(8)])
        assert batches(await figures(host)) == {4: 2}
    assert [answer.outputs["y"].tolist() for answer in found] == [[[number]] for number in range(8)]
    assert {answer.rows for answer in found} == {4}


async def test_rows_are_joined_and_not_requests(tmp_path: Path) -> None:
    variant = variant_of(spinner(), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant, knobs=FOUR)
        found = await at_once(pool, variant, [turns(1, 2, 3), turns(4), turns(5, 6), turns(7, 8)])
        assert batches(await figures(host)) == {4: 2}
    assert [answer.outputs["y"].ravel().tolist() for answer in found] == [[1, 2, 3], [4], [5, 6], [7, 8]]


async def test_whatever_is_joined_nothing_is_exchanged(tmp_path: Path) -> None:
    variant, rng = variant_of(one_node("Concat", inputs=2, axis=1), tmp_path), np.random.default_rng(0)
    requests = [{f"x{n}": rng.random((count, 4), np.float32) for n in range(2)} for count in rng.integers(1, 5, 200)]
    knobs = Knobs(mode="throughput", streams=2, max_batch_size=16)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant, knobs=knobs)
        found = await at_once(pool, variant, requests)
        assert sum(rows * runs for rows, runs in batches(await figures(host)).items()) == sum(
            len(request["x0"]) for request in requests
        )
    for request, answer in zip(requests, found, strict=True):
        np.testing.assert_array_equal(answer.outputs["y"], np.concatenate(list(request.values()), axis=1))


async def test_ragged_requests_are_joined_with_their_own_kind_only(tmp_path: Path) -> None:
    variant = variant_of(one_node("Neg", size="k"), tmp_path)
    xs = [np.full((1, size), number, np.float32) for number, size in enumerate([3, 5] * 4)]
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant, knobs=FOUR)
        found = await at_once(pool, variant, [{"x0": x} for x in xs])
        assert batches(await figures(host)) == {4: 2}
    for x, answer in zip(xs, found, strict=True):
        np.testing.assert_array_equal(answer.outputs["y"], -x)


def across() -> onnx.ModelProto:
    """Build a graph whose rows lie along the second axis: x of [3, n], y = -x."""
    node = helper.make_node("Neg", ["x"], ["y"])
    return graphs.small([node], inputs={"x": (3, "n")}, outputs={"y": (3, "n")}, weights={})


async def test_rows_along_another_axis_are_joined_and_split_there(tmp_path: Path) -> None:
    x, y = (TensorSpec(name=name, dtype=DType.FLOAT32, shape=(3, None), batch_axis=1) for name in "xy")
    variant = replace(variant_of(across(), tmp_path), signature=Signature(inputs=(x,), outputs=(y,)))
    requests = [{"x": np.random.default_rng(seed).random((3, 2), np.float32)} for seed in range(4)]
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant, knobs=FOUR)
        found = await at_once(pool, variant, requests)
        assert batches(await figures(host)) == {4: 2}
    for request, answer in zip(requests, found, strict=True):
        np.testing.assert_array_equal(answer.outputs["y"], -request["x"])


@pytest.mark.parametrize("pinned", [False, True], ids=["of the variant", "of the user"])
async def test_a_limit_of_one_row_joins_nothing(tmp_path: Path, pinned: bool) -> None:  # noqa: FBT001
    variant = replace(variant_of(spinner(), tmp_path), max_batch_size=None if pinned else 1)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant, knobs=replace(FOUR, max_batch_size=1 if pinned else 4))
        with stopped(pid(host)):
            asking = asyncio.create_task(at_once(pool, variant, [turns(number) for number in range(6)]))
            await until(lambda: asked(pool) == 6)
        assert [answer.rows for answer in await asking] == [1] * 6
        assert batches(await figures(host)) == {1: 6}


async def test_a_graph_of_one_batch_size_joins_nothing(tmp_path: Path) -> None:
    node = helper.make_node("Neg", ["x"], ["y"])
    graph = graphs.small([node], inputs={"x": (1, 3)}, outputs={"y": (1, 3)}, weights={})
    variant = variant_of(graph, tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant, knobs=FOUR)
        await at_once(pool, variant, [{"x": np.ones((1, 3), np.float32)}] * 4)
        assert batches(await figures(host)) == {1: 4}


async def test_a_request_that_nobody_joins_does_not_wait_for_ever(tmp_path: Path) -> None:
    variant = variant_of(spinner(), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant, knobs=replace(FOUR, max_queue_delay_ms=50))
        assert (await pool.infer(variant, turns(1))).rows == 1


async def test_who_waited_for_a_busy_runner_and_is_joined_by_none_is_answered(tmp_path: Path) -> None:
    variant = variant_of(spinner(), tmp_path)
    async with hosting(tmp_path) as host, gateway(host) as pool:
        await pool.load(variant, knobs=FOUR)
        with stopped(pid(host)):
            asking = asyncio.create_task(at_once(pool, variant, [turns(20_000)] * 5))
            await until(lambda: asked(pool) == 5)
        assert sorted(answer.rows for answer in await asking) == [1, 4, 4, 4, 4]


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


async def test_a_request_that_fails_among_others_fails_alone(tmp_path: Path) -> None:
    variant, preprocessing = variant_of(graphs.conv_classifier(), tmp_path), ImagePreprocessing()
    images = [png(0), png(1), b"no image", png(2)]
    async with hosting(tmp_path) as host, gateway(host, preprocessing=preprocessing) as pool:
        await pool.load(variant, knobs=FOUR)
        asking = [pool.infer(variant, EncodedImage(data=image), preprocessing=preprocessing) for image in images]
        found = await asyncio.gather(*asking, return_exceptions=True)
        status = await figures(host)
    assert [type(answer) for answer in found] == [Inference, Inference, ImageInvalid, Inference]
    assert (status.refused["failed"], status.rows) == (1, 3)


async def test_images_run_together_and_each_gets_its_own_row(tmp_path: Path) -> None:
    variant, preprocessing = variant_of(graphs.conv_classifier(), tmp_path), ImagePreprocessing()
    async with hosting(tmp_path) as host, gateway(host, preprocessing=preprocessing) as pool:
        await pool.load(variant, knobs=FOUR)

        async def ask(seed: int) -> Inference:
            return await pool.infer(variant, EncodedImage(data=png(seed)), preprocessing=preprocessing)

        together = await asyncio.gather(*(ask(seed) for seed in range(4)))
        await pool.load(variant, knobs=replace(FOUR, max_batch_size=1))
        alone = [await ask(seed) for seed in range(4)]
    assert [answer.rows for answer in together] == [4] * 4
    for one, other in zip(together, alone, strict=True):
        right = other.outputs[graphs.OUTPUT]
        # the engine may add 144 products in another order for four rows than for one
        np.testing.assert_allclose(one.outputs[graphs.OUTPUT], right, rtol=0, atol=144 * 2**-24 * np.abs(right).max())
