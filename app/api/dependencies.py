"""What routes are given: the services, built once by `app.bootstrap` and kept on the application."""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request

from app.api.intake import Intake
from app.api.resolution import Resolver
from app.api.statistics import RecentStatistics
from app.catalogue.history import JobHistory
from app.catalogue.routing import Routing
from app.catalogue.shelf import Shelf
from app.catalogue.store import Store
from app.catalogue.variants import Variants
from app.domain.datasets import DatasetManifest
from app.domain.models import ModelManifest
from app.jobs.live import LiveJobs
from app.jobs.queue import JobQueue
from app.serving.pool import RunnerPool
from app.telemetry.instruments import Instruments


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """How large a request may be, and how long the client may take to send it."""

    max_upload_bytes: int
    max_predict_bytes: int
    max_json_bytes: int
    body_timeout_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything a route may call."""

    store: Store
    models: Shelf[ModelManifest]
    datasets: Shelf[DatasetManifest]
    variants: Variants
    routing: Routing
    history: JobHistory
    live: LiveJobs
    queue: JobQueue
    pool: RunnerPool
    instruments: Instruments
    limits: RequestLimits
    intake: Intake
    recent_statistics: RecentStatistics = field(default_factory=RecentStatistics)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process has been told to stop: what would go on for long should end."""


def services_of(request: Request) -> Services:
    """Return the application's services."""
    return cast(Services, request.app.state.services)


Served = Annotated[Services, Depends(services_of)]


def resolver_of(request: Request) -> Resolver:
    """Return what remembers which variant answers; `app.api.application` puts it beside the services."""
    return cast(Resolver, request.app.state.resolver)


Resolving = Annotated[Resolver, Depends(resolver_of)]
