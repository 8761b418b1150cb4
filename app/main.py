"""The gateway's ASGI application, for uvicorn: `app.main:create_app`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
            yield

    return build_api(version=__version__, lifespan=lifespan)
