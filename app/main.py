"""The gateway's ASGI application, for uvicorn: `app.main:create_app`."""

import gc
import signal
import threading
from asyncio import Event
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from types import FrameType

from fastapi import FastAPI

from app import __version__
from app.api.application import build_api
from app.api.dependencies import Services
from app.api.resolution import Resolver
from app.bootstrap import open_services
from app.gateways import end_with_parent
from app.settings import Settings
from app.telemetry.logs import configure


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the application; its services open when it starts and close when it stops."""
    chosen = settings or Settings()
    configure(chosen.log_level)
    end_with_parent()

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[None]:
        async with open_services(chosen) as services, _rpc(chosen, services):
            application.state.services = services
            _spare_what_stays()
            with _set_when_stopped(services.stopping):
                yield

    return build_api(version=__version__, lifespan=lifespan)


def _spare_what_stays() -> None:
    """Keep the garbage collector off what was made until now: looking at all of it takes a request's time and more."""
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def _rpc(settings: Settings, services: Services) -> AsyncIterator[None]:
    """Serve gRPC too if a port is set; without one nothing of it is imported."""
    if settings.grpc_port is None:
        yield
        return
    from app.rpc.server import rpc_server  # noqa: PLC0415 - only who wants gRPC needs it installed, and waits for it

    async with (
        aclosing(Resolver(services.routing, prepare=services.pool.load)) as resolver,
        rpc_server(
            services,
            resolver,
            host=settings.host,
            port=settings.grpc_port,
            shared=settings.gateway_processes > 1,
            most_calls=settings.grpc_max_calls,
        ),
    ):
        yield


@contextmanager
def _set_when_stopped(stopping: Event) -> Iterator[None]:
    """Set an event as soon as the process is told to stop; the server tells only when every stream has ended.

    It is looked at now and then, never awaited: a signal handler may not wake a task.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()
        server = before[signal.Signals(number)]
        if callable(server):
            server(number, frame)

    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])
