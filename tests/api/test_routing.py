"""A route changes under load, with real runners: nobody is refused, and soon the new variant alone answers."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import numpy as np
import pytest

from app.client import Octet
from tests.api.harness import Api, publish_model, publish_variant, running_api
from tests.graphs import conv_classifier, rows
from tests.running import wait_until
from tests.serving import variant_of

ROWS = rows(1)
ROUTING = "/v1/models/net/routing"
EVEN = {"float32": 0.5, "int8": 0.5}


@dataclass(kw_only=True)
class Load:
    """What a client that asks again and again was answered: when it asked, status and variant."""

    client: httpx.Client
    answers: list[tuple[float, int, str | None]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    logits: dict[str, Any] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stop.is_set():
            asked_at = time.monotonic()
            answer = ask(self.client)
            name = answer.headers.get("octet-variant")
            self.answers.append((asked_at, answer.status_code, name))
            if answer.status_code != 200:
                self.wrong.append(answer.text)
            elif not np.allclose(logits(answer), self.logits[str(name)], atol=1e-4):
                self.wrong.append(str(name))

    def named_since(self, moment: float) -> list[str | None]:
        """Return who answered what was asked since then."""
        return [name for asked_at, _, name in self.answers if asked_at >= moment]

    def wait(self, condition: Callable[[list[str | None]], bool], *, since: float) -> None:
        wait_until(lambda: condition(self.named_since(since)), what="the route is in force")


def ask(client: httpx.Client, **headers: str) -> httpx.Response:
    body = {"inputs": ROWS.tolist()}
    return client.post("/predict", params={"model": "net"}, json=body, headers=headers)


def logits(answer: httpx.Response) -> Any:
    return np.array(answer.json()["outputs"]["logits"]["data"])


def ready(gateway: Api) -> list[str]:
    """Return the variants that a gateway has loaded."""

    return [held.variant for held in gateway.do(lambda services: services.pool.held()) if held.pids]


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, Api]]:
    """Two gateways on one store, with `net` in two variants that answer differently."""
    folder = tmp_path_factory.mktemp("routing")
    nowhere = f"unix://{folder}/nobody-listens.sock"
    shared = {"redis_url": nowhere, "store_url": str(folder / "store")}
    with running_api(folder / "one", **shared) as one, running_api(folder / "two", **shared) as two:
        made = publish_model(one, folder, graph=conv_classifier(seed=0))
        other = variant_of(conv_classifier(seed=1), folder, name="int8")
        one.do(
            lambda services: publish_variant(services, replace(other, model="net", created_at=made.created_at), folder)
        )
        yield one, two


@contextmanager
def loaded(gateway: Api, *, clients: int = 2) -> Iterator[Load]:
    """Ask a gateway all the time from several threads."""
    with httpx.Client(base_url=gateway.client.base_url, timeout=60, trust_env=False) as client:
        load = Load(client=client)
        for name in ("float32", "int8"):
            answer = client.post(f"/predict?model=net@{name}", json={"inputs": ROWS.tolist()})
            load.logits[name] = logits(answer)
        threads = [threading.Thread(target=load.run) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield load
        finally:
            load.stop.set()
            for thread in threads:
                thread.join(60)


def decide(gateway: Api, **fields: Any) -> None:
    answer = gateway.client.put(ROUTING, json={"version": 1, **fields})
    assert answer.status_code == 200, answer.text


def test_a_route_changes_under_load_and_nobody_is_refused(gateways: tuple[Api, Api]) -> None:
    one, _ = gateways
    decide(one, variant="float32")
    with loaded(one) as load:
        for wanted in ({"variant": "int8"}, {"weights": EVEN}, {"variant": "float32"}):
            decide(one, **wanted)
            mark = time.monotonic()
            names = set(EVEN) if "weights" in wanted else {wanted["variant"]}
            load.wait(lambda seen, names=names: len(seen) > 20 and set(seen) >= names, since=mark)  # type: ignore[misc]
            assert set(load.named_since(mark)) == names
    assert load.wrong == []
    assert {status for _, status, _ in load.answers} == {200}


def test_another_gateway_takes_the_route_over_without_a_gap(gateways: tuple[Api, Api]) -> None:
    one, two = gateways
    decide(one, variant="float32")
    with loaded(two, clients=1) as load:
        load.wait(lambda seen: seen[-1:] == ["float32"], since=0)
        two.client.post("/v1/models/net/variants/int8/unload")
        mark = time.monotonic()
        decide(one, variant="int8")
        load.wait(lambda seen: seen[-1:] == ["int8"], since=mark)
        switched = time.monotonic()
        load.wait(lambda seen: len(seen) > 20, since=switched)
        assert set(load.named_since(switched)) == {"int8"}
    assert load.wrong == []
    assert {status for _, status, _ in load.answers} == {200}


def test_a_route_loads_what_it_names_before_it_is_in_force(gateways: tuple[Api, Api]) -> None:
    one, _ = gateways
    for name in EVEN:
        one.client.post(f"/v1/models/net/variants/{name}/unload")
    decide(one, weights={"float32": 0, "int8": 1})
    assert ready(one) == ["int8"]


def test_a_route_that_need_not_load_is_in_force_at_once(gateways: tuple[Api, Api]) -> None:
    one, _ = gateways
    for name in EVEN:
        one.client.post(f"/v1/models/net/variants/{name}/unload")
    answer = one.client.put(f"{ROUTING}?load=false", json={"version": 1, "variant": "float32"})
    assert (answer.status_code, ready(one)) == (200, [])
    assert ask(one.client).headers["octet-variant"] == "float32"


def test_the_answer_says_who_gave_it_whatever_the_name(gateways: tuple[Api, Api]) -> None:
    one, _ = gateways
    decide(one, variant="float32")
    for name, variant in (("net", "float32"), ("net:1", "float32"), ("net@int8", "int8"), ("net:1@int8", "int8")):
        for answer in (
            one.client.post(f"/predict?model={name}", json={"inputs": ROWS.tolist()}),
            one.client.post(f"/v1/models/{name}/predict", json={"inputs": ROWS.tolist()}),
        ):
            said = [answer.headers[f"octet-{what}"] for what in ("model", "version", "variant")]
            assert said == ["net", "1", variant]


def test_a_key_stays_with_its_variant(gateways: tuple[Api, Api]) -> None:
    decide(gateways[0], weights=EVEN)
    decide(gateways[1], weights=EVEN)
    answers = [
        [ask(gateway.client, **{"Octet-Affinity": f"user {key}"}).headers["octet-variant"] for key in range(20)]
        for gateway in (*gateways, *gateways)
    ]
    assert len(set(map(tuple, answers))) == 1
    assert set(answers[0]) == set(EVEN)


def test_a_client_decides_and_sees_who_decided_before(gateways: tuple[Api, Api]) -> None:
    with Octet(str(gateways[0].client.base_url)) as octet:
        octet.route("net:1@int8", by="ann", note="it keeps the budget")
        made = octet.split("net", {"float32": 1, "int8": 3}, by="bob")
        found = octet.routing("net")
    assert found.current == found.history[-1] == made
    assert [(route.by, route.note) for route in found.history[-2:]] == [("ann", "it keeps the budget"), ("bob", None)]
    assert made.shares == {"float32": 0.25, "int8": 0.75}


def test_a_client_s_key_stays_with_its_variant(gateways: tuple[Api, Api]) -> None:
    decide(gateways[0], weights=EVEN)
    with Octet(str(gateways[0].client.base_url)) as octet:
        answered = [{octet.predict("net", ROWS, affinity=key).variant for _ in range(3)} for key in ("a", "b", "c")]
    assert [len(names) for names in answered] == [1, 1, 1]
