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


def counted(client: Octet, model: str) -> float:
    lines = [
        line
        for line in client.metrics().splitlines()
        if line.startswith("octet_request_duration_seconds_count") and f'model="{model}"' in line and "float32" in line
    ]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


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
