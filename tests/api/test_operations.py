"""Health, version and metrics."""

import shutil

from app import __version__
from tests.api.harness import Api


def test_a_whole_service_is_alive_and_ready(api: Api) -> None:
    assert api.client.get("/livez").json() == {"status": "alive"}
    assert api.client.get("/readyz").json() == {"status": "ready", "checks": {"store": "ok", "queue": "ok"}}
    assert api.client.get("/version").json() == {"version": __version__}


def test_a_service_without_its_store_is_not_ready(api: Api) -> None:
    shutil.rmtree(api.store_folder)
    api.store_folder.write_text("a file, where a folder should be")
    answer = api.client.get("/readyz")
    assert (answer.status_code, answer.json()["checks"]["store"]) == (503, "unavailable")
    assert api.client.get("/v2/health/ready").status_code == 503


def test_metrics_are_prometheus_text(api: Api) -> None:
    answer = api.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert f'octet_build_info{{version="{__version__}"}} 1.0' in answer.text


def test_bytes_received_are_counted(api: Api) -> None:
    api.upload_model(content=b"12345")
    assert 'octet_upload_bytes_total{kind="model"} 5.0' in api.client.get("/metrics").text
