"""The gateway as a process of its own: how it stops, and what it leaves on the machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.api.http_protocol import MOST_HEADER_BYTES
from tests.running import STOP_SECONDS, Redis, clean_environment, free_port, wait_until


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A running gateway, with a folder for temporary files of its own."""

    url: str
    process: "subprocess.Popen[bytes]"
    data_dir: Path
    temporary: Path
    log: Path

    def upload_model(self, name: str) -> str:
        """Upload a model; return the job that would import it if there were a worker."""
        answer = httpx.post(f"{self.url}/v1/models", params={"name": name}, content=b"1", trust_env=False)
        assert answer.status_code == 201
        return str(answer.json()["import_job"])

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(STOP_SECONDS)


@contextmanager
def running_gateway(folder: Path, redis: Redis, *, processes: int = 1) -> Iterator[Gateway]:
    port, temporary, log = free_port(), folder / "tmp", folder / "gateway.log"
    temporary.mkdir()
    settings = {
        "OCTET_DATA_DIR": str(folder / "data"),
        "OCTET_PORT": str(port),
        "OCTET_REDIS_URL": redis.url,
        "OCTET_GATEWAY_PROCESSES": str(processes),
        "TMPDIR": str(temporary),
    }
    with log.open("wb") as errors:
        command = [sys.executable, "-m", "app.launcher", "gateway"]
        process = subprocess.Popen(command, env=clean_environment() | settings, stderr=errors, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _answers(url), seconds=60, what=f"the gateway answers: {log}")
        yield Gateway(url=url, process=process, data_dir=folder / "data", temporary=temporary, log=log)
    finally:
        with suppress(ProcessLookupError):  # it was stopped, and nothing of it is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez", trust_env=False).is_success
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stopped_gateway_leaves_no_temporary_files(redis: Redis, tmp_path: Path, processes: int) -> None:
    with running_gateway(tmp_path, redis, processes=processes) as gateway:
        # several share their metrics in one folder, and the way to their runners in another
        assert len(list(gateway.temporary.iterdir())) == (0 if processes == 1 else 2)
        gateway.stop()
        assert list(gateway.temporary.iterdir()) == []


def test_what_a_gateway_keeps_is_its_users_alone(redis: Redis, tmp_path: Path) -> None:
    with running_gateway(tmp_path, redis) as gateway:
        gateway.upload_model("private")
        kept = [path for path in gateway.data_dir.rglob("*") if path.stat().st_mode & 0o077]
        assert kept == []


def test_a_gateway_that_is_stopped_ends_its_streams_itself(redis: Redis, tmp_path: Path) -> None:
    with running_gateway(tmp_path, redis) as gateway:
        events_url = f"{gateway.url}/v1/jobs/{gateway.upload_model('net')}/events"
        with httpx.stream("GET", events_url, timeout=30, trust_env=False) as events:
            pieces = events.iter_bytes()
            assert b"event: job" in next(pieces)
            gateway.process.send_signal(signal.SIGTERM)
            for _ in pieces:  # to the end; a stream that is broken off raises
                continue
        gateway.process.wait(STOP_SECONDS)
        assert "graceful shutdown exceeded" not in gateway.log.read_text()


def test_a_gateway_bounds_the_headers_it_reads(redis: Redis, tmp_path: Path) -> None:
    with running_gateway(tmp_path, redis) as gateway:
        headers = {"A": "b" * (MOST_HEADER_BYTES + 1)}
        answer = httpx.get(f"{gateway.url}/livez", headers=headers, trust_env=False)
        assert answer.status_code == 431
