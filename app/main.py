"""The gateway's ASGI application, for uvicorn: `app.main:create_app`."""

import signal
import threading
from asyncio import Event
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType

from fastapi import FastAPI

from app import __version__
from app.api.application import build_api
from app.bootstrap import open_services
from app.settings import Settings
from app.telemetry.logs import configure


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the application; its services open when it starts and close when it stops."""
    chosen = settings or Settings()
    configure(chosen.log_level)

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[None]:
        async with open_services(chosen) as services:
            application.state.services = services
            with _set_when_stopped(services.stopping):
                yield

    return build_api(version=__version__, lifespan=lifespan)


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
