"""Debian's Prometheus scrapes a running Octet under load, and every panel of the dashboard has data."""

import json
import signal
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from app.client import Octet
from app.domain.errors import InvalidInput
from tests.contract.dashboard import panel_queries
from tests.e2e.conftest import Prepared, prepare
from tests.needs import installed
from tests.running import Service, free_port, running_service, wait_until

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards" / "octet.json"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An Octet with two gateway processes, whose numbers must add up."""
    with running_service(tmp_path_factory.mktemp("own"), settings={"OCTET_GATEWAY_PROCESSES": "2"}) as started:
        yield started


@pytest.fixture(scope="module")
def scraped(client: Octet, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(client, tmp_path_factory.mktemp("scraped"))


def test_every_panel_has_data_under_load(own: Service, client: Octet, scraped: Prepared, tmp_path: Path) -> None:
    with running_prometheus(own.url, tmp_path) as prometheus, load(own, scraped):
        for panel in panel_queries(DASHBOARD, model=scraped.name, interval="10s"):
            answered = partial(has_data, prometheus, panel.expr)
            wait_until(answered, seconds=40, what=f"{panel.title}: {panel.expr}")
    assert client.ready()


def test_two_gateway_processes_count_every_request_once(own: Service, client: Octet, scraped: Prepared) -> None:
    before = counted(client, scraped.name)
    for _ in range(40):
        with Octet(own.url) as fresh:  # a new connection, so that both processes get some
            fresh.predict(f"{scraped.name}@float32", scraped.x[:1])
    assert len(own.children("workers.runners")) >= 1
    assert counted(client, scraped.name) - before == 40


def test_a_killed_gateway_stays_counted(own: Service, client: Octet, scraped: Prepared) -> None:
    before = counted(client, scraped.name)
    for _ in range(20):
        with Octet(own.url) as fresh:
            fresh.predict(f"{scraped.name}@float32", scraped.x[:1])
    victim = own.children("spawn_main")[0]
    victim.kill()
    wait_until(lambda: not victim.is_running(), what="the gateway is gone")
    wait_until(client.ready, what="the other one, or the next, answers")
    assert counted(client, scraped.name) - before == 20
    assert summed(client, "octet_variant_requests_in_flight", scraped.name) == 0


def test_what_a_user_did_wrong_is_counted_as_that(client: Octet, scraped: Prepared) -> None:
    before = summed(client, "octet_requests_rejected_total", scraped.name, reason="invalid")
    with pytest.raises(InvalidInput):
        client.predict(f"{scraped.name}@float32", scraped.x[:1, :, :2])
    assert summed(client, "octet_requests_rejected_total", scraped.name, reason="invalid") - before == 1


def test_what_runners_count_comes_to_the_metrics(client: Octet, scraped: Prepared) -> None:
    client.predict(f"{scraped.name}@int8", scraped.x[:3])
    for name in ("octet_runner_rows_total", "octet_batch_size_count", "octet_runner_load_duration_seconds_count"):
        wait_until(partial(summed, client, name, scraped.name, variant="int8"), what=name)


def test_an_unloaded_variant_holds_nothing(own: Service, client: Octet, scraped: Prepared) -> None:
    client.predict(f"{scraped.name}@int8", scraped.x[:1])
    ready = partial(summed, client, "octet_runners_ready", scraped.name, variant="int8")
    wait_until(ready, what="its runner is seen")
    path = f"{own.url}/v2/repository/models/{scraped.name}@int8/unload"
    httpx.post(path, json={}, trust_env=False, timeout=60).raise_for_status()
    memory = partial(summed, client, "octet_runner_memory_bytes", scraped.name, variant="int8")
    wait_until(lambda: (ready(), memory()) == (0, 0), what="it holds nothing")


def counted(client: Octet, model: str) -> float:
    return summed(client, "octet_request_duration_seconds_count", model, variant="float32")


def summed(client: Octet, metric: str, model: str, **labels: str) -> float:
    """Return the sum of a metric's series of one model, with these labels."""
    wanted = [f'{name}="{value}"' for name, value in {"model": model, **labels}.items()]
    lines = [line for line in client.metrics().splitlines() if line.startswith(f"{metric}{{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(each in line for each in wanted))


@contextmanager
def running_prometheus(url: str, folder: Path) -> Iterator[str]:
    """Run Prometheus with Octet as its only target; yield its URL."""
    program = installed("prometheus", package="prometheus")
    target, port = urllib.parse.urlsplit(url).netloc, free_port()
    scrape = {"job_name": "octet-gateway", "static_configs": [{"targets": [target]}]}
    config = folder / "prometheus.yml"
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}))
    process = subprocess.Popen(
        [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@contextmanager
def load(own: Service, prepared: Prepared) -> Iterator[None]:
    """Ask both variants for predictions while the block runs."""
    stop = threading.Event()

    def ask(variant: str) -> None:
        with Octet(own.url) as caller:
            rows = 1
            while not stop.is_set():
                caller.predict(f"{prepared.name}@{variant}", prepared.x[:rows])
                rows = rows % 8 + 1

    callers = [threading.Thread(target=ask, args=(variant,)) for variant in ("float32", "int8")]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        stop.set()
        for caller in callers:
            caller.join()


def has_data(prometheus: str, query: str) -> bool:
    """Whether the query answers at least one number."""
    try:
        answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": query}, trust_env=False)
    except httpx.TransportError:
        return False
    if answer.status_code == 503:  # still starting
        return False
    answer.raise_for_status()
    result = answer.json()["data"]["result"]
    return any(sample["value"][1] != "NaN" for sample in result)
