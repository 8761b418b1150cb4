"""Fixtures of the API's tests: the application on an empty store, with an empty Redis and without any."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis as RedisClient

from tests.api.harness import Api, running_api
from tests.running import Redis


@pytest.fixture
def api(redis: Redis, tmp_path: Path) -> Iterator[Api]:
    """The application with small limits."""
    with RedisClient.from_url(redis.url) as client:
        client.flushall()
    with running_api(
        tmp_path / "data", redis_url=redis.url, max_upload_bytes=200_000, max_predict_bytes=100_000, max_batch_size=8
    ) as running:
        yield running


@pytest.fixture
def api_without_redis(tmp_path: Path) -> Iterator[Api]:
    """The application when Redis is down."""
    with running_api(tmp_path / "data", redis_url=f"unix://{tmp_path}/nobody-listens.sock") as running:
        yield running
