"""The memory of which variant answers, on a real catalogue with a clock of its own."""

import asyncio
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
from starlette.requests import Request

from app.api.dependencies import Services
from app.api.resolution import (
    KEEP_SECONDS,
    MISSING_SECONDS,
    RENEW_SECONDS,
    WITHOUT_STORE_SECONDS,
    Resolver,
    affinity_of,
)
from app.catalogue.routing import Candidates, Routing
from app.domain.errors import ModelNotFound, ModelNotReady, RequestInvalid, StoreUnavailable, VariantNotReady
from app.domain.names import Reference
from app.domain.routing import Route
from app.domain.variants import Variant
from tests.api.harness import Api, publish_model, publish_variant

NET = Reference(name="net")
SECONDS = 30


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Loader:
    """Prepares variants when it is let go on, and remembers which."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, variant: Variant) -> None:
        self.asked.append(variant.name)
        self.begun.set()
        await self.go_on.wait()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def resolver(api: Api, clock: Clock) -> Resolver:
    return Resolver(api.services.routing, clock=clock)


def version(api: Api, resolver: Resolver) -> int:
    async def resolved() -> int:
        return (await resolver.resolve(NET)).variant.version

    return api.do(lambda _services: resolved())


def publish(api: Api, folder: Path) -> None:
    """Publish `net` with a `float32` and an `int8` that is the same."""
    variant = publish_model(api, folder)
    api.do(lambda services: publish_variant(services, replace(variant, name="int8"), folder))


async def route(services: Services, **fields: Any) -> Route:
    now = datetime.now(UTC)
    return await services.routing.record(Route(number=0, model="net", version=1, created_at=now, **fields))


async def name(resolver: Resolver, text: str = "net", affinity: str | None = None) -> str:
    return (await resolver.resolve(Reference.parse(text), affinity=affinity)).variant.name


async def until(resolver: Resolver, wanted: str) -> None:
    """Resolve until `wanted` answers."""
    async with asyncio.timeout(SECONDS):
        while await name(resolver) != wanted:  # noqa: ASYNC110  (what it waits for is the resolver's own tasks)
            await asyncio.sleep(0)


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


class Unsteady(Routing):
    """Counts what is read, and fails while it is told to."""

    def __init__(self, services: Services) -> None:
        super().__init__(services.store, models=services.models, variants=services.variants)
        self.read: list[Reference] = []
        self.gone = False

    async def resolve(self, reference: Reference) -> Candidates:
        self.read.append(reference)
        if self.gone:
            raise StoreUnavailable("The store does not answer.")
        return await super().resolve(reference)


def test_that_there_is_no_such_model_is_remembered_for_a_moment(api: Api, clock: Clock, tmp_path: Path) -> None:
    routing = Unsteady(api.services)
    resolver = Resolver(routing, clock=clock)
    for _ in range(3):
        with pytest.raises(ModelNotFound, match="net"):
            version(api, resolver)
    assert len(routing.read) == 1
    publish_model(api, tmp_path)
    clock.now = MISSING_SECONDS
    assert version(api, resolver) == 1


def test_another_failure_is_not_remembered(api: Api, resolver: Resolver, tmp_path: Path) -> None:
    api.upload_model("net")
    with pytest.raises(ModelNotReady):
        version(api, resolver)
    publish_model(api, tmp_path)
    assert version(api, resolver) == 2


def test_names_that_do_not_exist_are_not_remembered_without_end(
    api: Api, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.resolution.MOST_KEPT", 3)

    async def ask(_services: Services) -> None:
        for number in range(10):
            with pytest.raises(ModelNotFound):
                await name(resolver, f"none{number}")

    api.do(ask)
    assert len(resolver._missing) <= 3


def test_what_was_read_last_answers_while_the_store_is_out_of_reach_for_some_minutes(
    api: Api, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish_model(api, tmp_path)
    routing = Unsteady(api.services)
    resolver = Resolver(routing, clock=clock)
    assert version(api, resolver) == 1
    routing.gone = True
    for clock.now in (KEEP_SECONDS, 2 * KEEP_SECONDS, WITHOUT_STORE_SECONDS - 1):
        assert version(api, resolver) == 1
    assert caplog.text.count("the store is out of reach") == 1
    clock.now = WITHOUT_STORE_SECONDS
    with pytest.raises(StoreUnavailable):
        version(api, resolver)


def test_a_store_that_is_back_is_believed_again(api: Api, clock: Clock, tmp_path: Path) -> None:
    publish(api, tmp_path)
    routing = Unsteady(api.services)

    async def recovered(services: Services) -> None:
        resolver = Resolver(routing, clock=clock)
        await name(resolver)
        routing.gone = True
        clock.now = KEEP_SECONDS
        await name(resolver)
        await route(services, variant="int8")
        routing.gone = False
        clock.now += RENEW_SECONDS
        await until(resolver, "int8")

    api.do(recovered)


def test_a_read_beside_the_requests_renews_before_the_second_is_over(
    api: Api, resolver: Resolver, clock: Clock, tmp_path: Path
) -> None:
    publish(api, tmp_path)

    async def renewed(services: Services) -> None:
        assert await name(resolver) == "float32"
        await route(services, variant="int8")
        clock.now = RENEW_SECONDS
        await until(resolver, "int8")

    api.do(renewed)


def test_weights_are_kept_in_mind_and_not_what_they_chose(api: Api, clock: Clock, tmp_path: Path) -> None:
    publish(api, tmp_path)

    async def chosen(services: Services) -> set[str]:
        await route(services, weights={"float32": 0.5, "int8": 0.5})
        resolver = Resolver(services.routing, clock=clock, random=Random(1))
        return {await name(resolver) for _ in range(50)}

    assert api.do(chosen) == {"float32", "int8"}


def test_all_that_may_answer_can_be_asked_for(api: Api, resolver: Resolver, tmp_path: Path) -> None:
    publish(api, tmp_path)

    async def found(services: Services) -> list[str]:
        await route(services, weights={"float32": 0.5, "int8": 0.5})
        return [resolved.variant.name for resolved in await resolver.resolve_all(NET)]

    assert api.do(found) == ["float32", "int8"]


def test_a_key_gets_the_same_variant_from_every_gateway(api: Api, clock: Clock, tmp_path: Path) -> None:
    publish(api, tmp_path)

    async def chosen(services: Services) -> list[list[str]]:
        await route(services, weights={"float32": 0.5, "int8": 0.5})
        gateways = [Resolver(services.routing, clock=clock) for _ in range(2)]
        return [[await name(gateway, affinity=f"user {key}") for key in range(40)] for gateway in gateways]

    one, other = api.do(chosen)
    assert one == other
    assert set(one) == {"float32", "int8"}


def test_a_reference_to_the_version_that_is_routed_follows_the_weights(api: Api, clock: Clock, tmp_path: Path) -> None:
    publish(api, tmp_path)

    async def chosen(services: Services) -> list[str]:
        await route(services, weights={"float32": 0, "int8": 2})
        resolver = Resolver(services.routing, clock=clock)
        return [await name(resolver, text) for text in ("net", "net:1", "net@float32", "net:1@float32")]

    assert api.do(chosen) == ["int8", "int8", "float32", "float32"]
    publish_model(api, tmp_path)
    clock.now = 2 * KEEP_SECONDS
    assert api.do(lambda services: name(Resolver(services.routing), "net:2")) == "float32"


def test_what_comes_in_with_a_route_is_loaded_while_the_old_answers(api: Api, clock: Clock, tmp_path: Path) -> None:
    publish(api, tmp_path)

    async def switched(services: Services) -> list[str]:
        loader = Loader()
        resolver = Resolver(services.routing, prepare=loader, clock=clock)
        assert await name(resolver) == "float32"
        await route(services, weights={"int8": 1, "float32": 0})
        clock.now = KEEP_SECONDS
        assert await name(resolver) == "float32"
        await asyncio.wait_for(loader.begun.wait(), SECONDS)
        clock.now = 2 * KEEP_SECONDS
        assert await name(resolver) == "float32"
        loader.go_on.set()
        await until(resolver, "int8")
        await resolver.aclose()
        return loader.asked

    assert api.do(switched) == ["int8"]


def test_what_was_not_in_use_gives_way_at_once(api: Api, clock: Clock, tmp_path: Path) -> None:
    publish(api, tmp_path)

    async def switched(services: Services) -> list[str]:
        loader = Loader()
        resolver = Resolver(services.routing, prepare=loader, clock=clock)
        await name(resolver)
        await route(services, variant="int8")
        clock.now = 3600
        assert await name(resolver) == "int8"
        return loader.asked

    assert api.do(switched) == []


def test_a_variant_that_cannot_be_loaded_is_taken_anyway(
    api: Api, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(api, tmp_path)

    async def refuse(variant: Variant) -> None:
        raise VariantNotReady(f"{variant.name} is too large.")

    async def switched(services: Services) -> None:
        resolver = Resolver(services.routing, prepare=refuse, clock=clock)
        await name(resolver)
        await route(services, variant="int8")
        clock.now = KEEP_SECONDS
        await until(resolver, "int8")

    api.do(switched)
    assert "net:1@int8 cannot be loaded: int8 is too large." in caplog.text


def test_a_load_that_takes_too_long_holds_a_route_up_no_longer(
    api: Api, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(api, tmp_path)
    monkeypatch.setattr("app.api.resolution.PREPARE_SECONDS", 0.01)

    async def switched(services: Services) -> None:
        resolver = Resolver(services.routing, prepare=Loader(), clock=clock)
        await name(resolver)
        await route(services, variant="int8")
        clock.now = KEEP_SECONDS
        await until(resolver, "int8")

    api.do(switched)


def test_a_read_from_before_a_change_here_is_not_remembered(api: Api, clock: Clock, tmp_path: Path) -> None:
    publish(api, tmp_path)

    async def raced(services: Services) -> str:
        resolver = Resolver(services.routing, clock=clock)
        early = asyncio.create_task(name(resolver))
        await asyncio.sleep(0)
        resolver.forget()
        await early
        await route(services, variant="int8")
        return await name(resolver)

    assert api.do(raced) == "int8"


def test_many_who_ask_at_once_read_the_store_once(api: Api, clock: Clock, tmp_path: Path) -> None:
    publish(api, tmp_path)
    read: list[Reference] = []

    class Counted(Routing):
        async def resolve(self, reference: Reference) -> Candidates:
            read.append(reference)
            return await super().resolve(reference)

    async def asked(services: Services) -> None:
        resolver = Resolver(Counted(services.store, models=services.models, variants=services.variants), clock=clock)
        await asyncio.gather(*(resolver.resolve(NET) for _ in range(20)))

    api.do(asked)
    assert read == [NET]


def test_a_damaged_route_is_the_store_s_fault(api: Api, tmp_path: Path) -> None:
    publish(api, tmp_path)
    api.do(lambda services: route(services, variant="int8"))
    (record,) = (api.store_folder / "models/net/routing").iterdir()
    record.write_text(record.read_text().replace('"variant":"int8"', '"variant":null'))
    answer = api.client.get("/v1/models/net/routing")
    assert (answer.status_code, answer.json()["code"]) == (503, "record_unreadable")


@pytest.mark.parametrize("key", ["a", "x" * 256, "user 17; vip"])
def test_an_affinity_comes_from_the_header(key: str) -> None:
    assert affinity_of(request(key.encode())) == key


@pytest.mark.parametrize("key", [b"", b"x" * 257, b"a\tb", "ä".encode()])
def test_an_affinity_that_is_not_printable_is_refused(key: bytes) -> None:
    with pytest.raises(RequestInvalid, match="Octet-Affinity"):
        affinity_of(request(key))


def request(affinity: bytes) -> Request:
    return Request({"type": "http", "headers": [(b"octet-affinity", affinity)]})
