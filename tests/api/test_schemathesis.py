"""The running application against its own description: what `/openapi.json` says it takes, and whatever else comes."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from app.api.application import build_api
from app.domain.preprocessing import ImagePreprocessing
from tests.api.harness import Api, publish_dataset, publish_model, running_api
from tests.running import Redis

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    missing_required_header,
    unsupported_method,
    allow_header_conformance,
]
"""What is left out: Octet has no accounts (`ignored_auth`, `object_level_authorization`), its description has no links
(`use_after_free`, `ensure_resource_availability`), and it refuses much that no schema can forbid, such as a model that
is not there (`positive_data_acceptance`).
"""


@schemathesis.serializer("application/x-npy", "application/x-npz")
def as_it_is(_context: schemathesis.SerializationContext, value: Any) -> bytes:
    """Send what was drawn for an array: bytes that are none."""
    return value if isinstance(value, bytes) else repr(value).encode()


@asynccontextmanager
async def _closed(_app: FastAPI) -> AsyncIterator[None]:
    yield


SCHEMA = schemathesis.openapi.from_dict(build_api(version="0", lifespan=_closed).openapi())


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory, redis: Redis) -> Iterator[Api]:
    """The application with the model and the dataset that its examples name."""
    folder = tmp_path_factory.mktemp("described")
    with running_api(folder / "data", redis_url=redis.url, max_queued_jobs=10_000, body_timeout_seconds=2) as running:
        publish_model(running, folder, name="resnet20", preprocessing=ImagePreprocessing(resize=8, crop=8))
        publish_dataset(running, name="cifar")
        yield running


@pytest.mark.slow
@SCHEMA.parametrize()
@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_one_that_the_description_knows(case: schemathesis.Case[Any], described: Api) -> None:
    answer = case.call(base_url=str(described.client.base_url), timeout=30)
    case.validate_response(answer, checks=CHECKS)
