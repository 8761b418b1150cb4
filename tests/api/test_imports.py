"""Imports that a lost Redis has forgotten."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from redis import Redis as RedisClient

from app.api import imports
from app.api.dependencies import Services
from app.domain.jobs import JobState
from app.domain.names import Reference
from tests.api.harness import Api, job_of, publish_dataset
from tests.running import Redis


@pytest.fixture
def lost(redis: Redis) -> Iterator[RedisClient]:
    with RedisClient.from_url(redis.url) as client:
        yield client


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "_GRACE", timedelta(0))


def depth(api: Api) -> int:
    return api.do(lambda services: services.queue.depth())


def mend(api: Api) -> None:
    api.do(imports.mend_imports)


def test_an_import_that_redis_lost_is_queued_again_once_under_its_id(api: Api, lost: RedisClient) -> None:
    model = api.upload_model()
    lost.flushall()
    assert depth(api) == 0
    mend(api)
    mend(api)
    job = job_of(api, model["import_job"])
    assert (depth(api), job.state, job.model, job.subject) == (1, JobState.QUEUED, "net:1", "model")


def test_an_import_whose_record_alone_was_written_is_queued_again(api: Api, lost: RedisClient) -> None:
    model = api.upload_model()
    lost.delete("rq:queue:octet", f"rq:job:{model['import_job']}")
    mend(api)
    assert depth(api) == 1


def test_a_dataset_is_mended_too(api: Api, lost: RedisClient) -> None:
    answer = api.client.post("/v1/datasets", params={"filename": "rows.npz"}, content=b"rows").json()
    lost.flushall()
    mend(api)
    assert job_of(api, answer["import_job"]).dataset == "rows:1"


def test_who_orders_work_on_a_lost_import_has_it_queued_first(api: Api, lost: RedisClient) -> None:
    api.upload_model()
    publish_dataset(api)
    lost.flushall()
    answer = api.client.post("/v1/jobs", json={"kind": "quantize", "model": "net", "calibration": "rows"})
    assert answer.status_code == 202
    assert depth(api) == 1  # the import; the job waits for it


def test_what_is_queued_or_was_uploaded_just_now_is_left_alone(
    api: Api, lost: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.upload_model()
    mend(api)
    assert depth(api) == 1
    monkeypatch.setattr(imports, "_GRACE", timedelta(minutes=1))
    lost.flushall()
    mend(api)
    assert depth(api) == 0


def test_an_import_that_ended_before_it_told_its_model_fails_it(api: Api, lost: RedisClient) -> None:
    model = api.upload_model()

    async def end(services: Services) -> None:
        job = await services.live.get(model["import_job"])
        assert job is not None
        await services.history.finish(job.cancel(job.created_at))

    api.do(end)
    lost.flushall()
    mend(api)
    found = api.do(lambda services: services.models.resolve(Reference(name="net")))
    assert (found.state, depth(api)) == ("failed", 0)
