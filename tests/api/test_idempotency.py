"""How long an `Idempotency-Key` stays tied."""

from pathlib import Path

from redis import Redis as RedisClient

from tests.api.harness import Api, publish_dataset, publish_model
from tests.running import Redis

ORDER = {"kind": "quantize", "model": "net", "calibration": "rows"}
KEY = {"Idempotency-Key": "mine"}


def seconds_left(redis: Redis) -> list[int]:
    with RedisClient.from_url(redis.url) as client:
        return [client.ttl(key) for key in client.keys("octet:idempotency:*")]


def test_a_key_stays_tied_for_a_day_once_its_job_is_queued(api: Api, redis: Redis, tmp_path: Path) -> None:
    publish_model(api, tmp_path)
    publish_dataset(api)
    first = api.client.post("/v1/jobs", json=ORDER, headers=KEY).json()
    (left,) = seconds_left(redis)
    assert left > 80_000
    assert api.client.post("/v1/jobs", json=ORDER, headers=KEY).json()["id"] == first["id"]


def test_a_request_that_was_refused_leaves_its_key_free(api: Api, redis: Redis) -> None:
    assert api.client.post("/v1/jobs", json=ORDER, headers=KEY).status_code == 404
    assert seconds_left(redis) == []
