"""The memory of which variant answers, on a real catalogue with a clock of its own."""

import shutil
from pathlib import Path

import pytest

from app.api.resolution import KEEP_SECONDS, Resolver
from app.domain.errors import ModelNotFound
from app.domain.names import Reference
from tests.api.harness import Api, publish_model

NET = Reference(name="net")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def resolver(api: Api, clock: Clock) -> Resolver:
    return Resolver(api.services.routing, api.services.models, clock=clock)


def version(api: Api, resolver: Resolver) -> int:
    async def resolved() -> int:
        return (await resolver.resolve(NET)).variant.version

    return api.do(lambda _services: resolved())


def test_a_new_version_answers_after_a_moment(api: Api, resolver: Resolver, clock: Clock, tmp_path: Path) -> None:
    publish_model(api, tmp_path)
    assert version(api, resolver) == 1
    publish_model(api, tmp_path)
    assert version(api, resolver) == 1
    clock.now = KEEP_SECONDS
    assert version(api, resolver) == 2


def test_a_new_route_answers_at_once_where_it_was_made(api: Api, resolver: Resolver, tmp_path: Path) -> None:
    publish_model(api, tmp_path)
    version(api, resolver)
    publish_model(api, tmp_path)
    resolver.forget()
    assert version(api, resolver) == 2


def test_the_store_is_not_asked_within_that_moment(api: Api, resolver: Resolver, tmp_path: Path) -> None:
    publish_model(api, tmp_path)
    version(api, resolver)
    shutil.rmtree(api.store_folder / "models")
    assert version(api, resolver) == 1


def test_a_failure_is_not_remembered(api: Api, resolver: Resolver, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        version(api, resolver)
    publish_model(api, tmp_path)
    assert version(api, resolver) == 1
