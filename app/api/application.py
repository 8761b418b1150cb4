"""The HTTP application: routes, error handlers, middleware and documentation around the services."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI

from app.api import documentation, errors
from app.api.dependencies import Services
from app.api.lane import InferenceLane
from app.api.middleware import LingeringClose, Observed
from app.api.resolution import Resolver
from app.api.routes import datasets, jobs, models, operations, predict, protocol, quantize, reports, variants

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_DESCRIPTION = (
    "POST a trained model, get it back quantized with proof, and serve either form. "
    "Errors are `application/problem+json`; every answer carries `X-Request-Id`."
)


def build_api(*, version: str, lifespan: Lifespan) -> FastAPI:
    """Build the application.

    Args:
        lifespan: puts the services on `app.state.services` when the application starts, and closes them when it stops.
    """

    @asynccontextmanager
    async def opened(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(app):
            services: Services = app.state.services
            app.state.resolver = Resolver(services.routing, prepare=services.pool.load)
            try:
                yield
            finally:
                await app.state.resolver.aclose()

    app = FastAPI(
        title="Octet",
        version=version,
        description=_DESCRIPTION,
        lifespan=opened,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},  # Octet has its own
    )
    for routes in (models, datasets, variants, reports, jobs, quantize, predict, protocol, operations):
        app.include_router(routes.router)
    documentation.install(app)
    errors.register(app)
    app.add_middleware(InferenceLane)
    app.add_middleware(LingeringClose)
    app.add_middleware(Observed)  # the last one added is the outermost
    return app
