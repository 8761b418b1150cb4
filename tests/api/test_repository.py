"""The Open Inference Protocol's repository and statistics extensions, over real runners."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel

from app.api import examples
from app.api.schemas.repository import IndexedModel, LoadRequest, Statistics
from app.api.statistics import KEEP_SECONDS, RecentStatistics, model_statistics
from app.domain.serving import BatchStatistics, CurvePoint, Knobs, RunnerStatus, Timing, Tuning
from tests.api.harness import Api, fail_import, publish_model, running_api
from tests.graphs import rows

X = rows(2).tolist()
LOADED = "/v2/repository/models/{}/load"
UNLOADED = "/v2/repository/models/{}/unload"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The application without Redis, with two versions of `net`."""
    folder = tmp_path_factory.mktemp("repository")
    nowhere = f"unix://{folder}/nobody-listens.sock"
    with running_api(folder / "data", redis_url=nowhere, max_loaded_variants=2) as running:
        for _ in range(2):
            publish_model(running, folder, name="net")
        yield running


def post(api: Api, path: str, body: Any = None) -> Any:
    answer = api.client.post(path, json=body) if body is not None else api.client.post(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def states(api: Api, **asked: Any) -> dict[str, str]:
    return {entry["version"]: entry["state"] for entry in post(api, "/v2/repository/index", asked or None)}


def test_the_index_follows_what_is_loaded(serving: Api) -> None:
    post(serving, LOADED.format("net:1@float32"), {})
    assert states(serving) == {"1": "READY", "2": "UNAVAILABLE"}
    assert states(serving, ready=True) == {"1": "READY"}
    post(serving, UNLOADED.format("net:1@float32"), {"parameters": {"unload_dependents": False}})
    assert states(serving) == {"1": "UNAVAILABLE", "2": "UNAVAILABLE"}
    (first, _) = post(serving, "/v2/repository/index")
    assert first["octet_variants"] == [{"name": "float32", "state": "UNAVAILABLE"}]
    assert "first request" in first["reason"]


def test_a_failed_import_is_listed_with_its_reason(api: Api) -> None:
    api.upload_model("broken")
    fail_import(api, "broken", 1)
    (entry,) = post(api, "/v2/repository/index")
    assert (entry["name"], entry["state"], entry["reason"]) == ("broken", "UNAVAILABLE", "It is broken.")


def test_a_load_pins_the_knobs(serving: Api) -> None:
    pinned = {"mode": "latency", "threads": 1, "max_batch_size": 4, "max_queue_delay_ms": 0.5}
    post(serving, LOADED.format("net:2"), {"parameters": pinned})
    (status,) = serving.do(lambda services: services.pool.statistics())
    assert status.knobs == Knobs(mode="latency", threads=1, max_batch_size=4, max_queue_delay_ms=0.5)
    post(serving, UNLOADED.format("net:2"))


@pytest.mark.parametrize(
    "body",
    [
        {"parameters": {"instances": 0}},
        {"parameters": {"instances": 1.5}},
        {"parameters": {"mode": "fast"}},
        {"parameters": {"config": "{}"}},
        {"parameters": {"max_queue_delay_ms": -1}},
        {"colour": "red"},
        [],
    ],
)
def test_a_load_that_cannot_be_is_refused(serving: Api, body: Any) -> None:
    answer = serving.client.post(LOADED.format("net"), json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")


def test_what_is_not_there_is_neither_loaded_nor_counted(serving: Api) -> None:
    for path in (LOADED.format("nothing"), UNLOADED.format("net@int4"), LOADED.format("net:9")):
        assert serving.client.post(path).status_code == 404
    assert serving.client.get("/v2/models/nothing/stats").status_code == 404
    assert serving.client.post(LOADED.format("net"), content=b"{").status_code == 422


def test_statistics_count_what_was_inferred(serving: Api) -> None:
    asked = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 3, 8, 8], "data": X}]}
    for _ in range(3):
        post(serving, "/v2/models/net:2/infer", asked)
    for path in ("net/stats", "net:2@float32/stats", "net/versions/2/stats", "stats"):
        (entry,) = serving.client.get(f"/v2/models/{path}").json()["model_stats"]
        assert (entry["name"], entry["version"], entry["inference_count"]) == ("net", "2", 6)
        assert entry["inference_stats"]["success"]["count"] == 3
        assert entry["inference_stats"]["compute_infer"]["ns"] > 0
        assert entry["octet"][0]["variant"] == "float32"
    (idle,) = serving.client.get("/v2/models/net:1/stats").json()["model_stats"]
    assert (idle["version"], idle["inference_count"], idle["octet"]) == ("1", 0, [])
    post(serving, UNLOADED.format("net:2"))


def status(**changes: Any) -> RunnerStatus:
    point = CurvePoint(streams=1, threads=2, busy=1, batch=1, p50_seconds=0.002, rows_per_second=500.0)
    made = RunnerStatus(
        model="net",
        version=1,
        variant="int8",
        instance=0,
        pid=1,
        engine="openvino",
        load_seconds=0.5,
        pss_bytes=10,
        peak_bytes=20,
        in_flight=1,
        queued_rows=2,
        last_inference_ns=0,
        rows=6,
        queue=Timing(count=4, nanoseconds=10),
        input=Timing(count=4, nanoseconds=20),
        compute=Timing(count=4, nanoseconds=30),
        output=Timing(count=4, nanoseconds=40),
        batches=(BatchStatistics(rows=1, runs=Timing(count=2, nanoseconds=9)),),
        refused={"deadline": 2, "failed": 1},
        mode="latency",
        tuning=Tuning(curve=(point,), latency=point, throughput=point),
        knobs=Knobs(),
    )
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("schema", "example"),
    [(IndexedModel, examples.INDEXED), (LoadRequest, examples.LOAD), (Statistics, examples.STATISTICS)],
)
def test_every_example_is_valid(schema: type[BaseModel], example: Any) -> None:
    assert schema.model_validate(example).model_dump(exclude_unset=True) == example


def test_runners_are_asked_at_most_once_a_second_however_many_ask() -> None:
    asked: list[float] = []
    now = [0.0]
    recent = RecentStatistics(clock=lambda: now[0])

    async def ask() -> list[RunnerStatus]:
        asked.append(now[0])
        await asyncio.sleep(0)
        return [status()]

    async def tell() -> None:
        for now[0] in (0, KEEP_SECONDS / 2, KEEP_SECONDS):
            await asyncio.gather(*(recent.told(ask) for _ in range(10)))
        recent.forget()
        assert await recent.told(ask) == [status()]

    asyncio.run(tell())
    assert asked == [0, KEEP_SECONDS, KEEP_SECONDS]


def test_runners_of_one_version_are_summed_up_and_told_apart() -> None:
    other = BatchStatistics(rows=2, runs=Timing(count=1, nanoseconds=5))
    runners = [status(), status(variant="float32", batches=(*status().batches, other)), status(version=2)]
    first, second = model_statistics(runners, idle=[("net", 2)])
    assert (first["inference_count"], first["execution_count"], second["execution_count"]) == (12, 5, 2)
    assert first["inference_stats"]["success"] == {"count": 8, "ns": 200}
    assert first["inference_stats"]["fail"]["count"] == 6
    assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in first["batch_stats"]] == [
        (1, 4),
        (2, 1),
    ]
    assert [runner["variant"] for runner in first["octet"]] == ["float32", "int8"]
    assert first["last_inference"] == 0
