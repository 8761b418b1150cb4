"""The gateway's composition root: settings to services. Opens in order, closes in reverse, never on import."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from starlette.requests import ClientDisconnect

from app import __version__
from app.api.dependencies import RequestLimits, Services
from app.api.imports import mend_imports
from app.api.intake import Intake
from app.catalogue.history import JobHistory
from app.catalogue.routing import Routing
from app.catalogue.shelf import Shelf, dataset_shelf, model_shelf
from app.catalogue.store import Store, open_store
from app.catalogue.variants import Variants
from app.domain.errors import NotFound, OctetError, RecordUnreadable, Unavailable
from app.domain.models import ModelManifest
from app.domain.reports import Report
from app.domain.serving import Servable
from app.domain.variants import Variant
from app.hosting import HostInstruments, open_host, open_more_files, pool_limits
from app.jobs.live import LiveJobs
from app.jobs.queue import JobQueue
from app.serving import local_sockets
from app.serving.pool import RunnerPool
from app.settings import Settings, SettingsInvalid
from app.telemetry.instruments import Instruments
from app.telemetry.readings import (
    MOST_TRAINING,
    Readings,
    ReadingsCollector,
    VariantFacts,
    facts_of,
    training_of,
)

log = logging.getLogger(__name__)

_LIVE_EVERY_SECONDS = 5
_CATALOGUE_EVERY_SECONDS = 15
_REDIS_TIMEOUT_SECONDS = 4


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Open everything the gateway's routes call."""
    async with AsyncExitStack() as stack:
        redis_url = settings.require_redis()
        patience = _REDIS_TIMEOUT_SECONDS
        redis = AsyncRedis.from_url(redis_url, socket_timeout=patience, socket_connect_timeout=patience)
        followers = AsyncRedis.from_url(
            redis_url,
            socket_timeout=patience,
            socket_connect_timeout=patience,
            max_connections=settings.max_followers,
        )
        queue_redis = Redis.from_url(redis_url, socket_timeout=patience, socket_connect_timeout=patience)
        await stack.enter_async_context(redis)
        await stack.enter_async_context(followers)
        stack.enter_context(queue_redis)
        store = open_store(settings.store, s3=settings.s3)
        instruments, variants = Instruments(version=__version__, leaves=(ClientDisconnect,)), Variants(store)
        await _trace(settings, instruments, stack)
        models = model_shelf(store)
        if settings.runner_socket is None:
            host = await stack.enter_async_context(
                open_host(settings, store=store, variants=variants, instruments=instruments)
            )
            connect = host.connect
        else:
            open_more_files()
            connect = partial(_connect, settings.runner_socket)
        pool = RunnerPool(
            connect,
            describe=partial(_described, models),
            observer=HostInstruments(instruments),
            limits=pool_limits(settings),
        )
        stack.push_async_callback(pool.aclose)
        services = _assemble(
            settings,
            store=store,
            models=models,
            variants=variants,
            live=LiveJobs(redis, followers=followers, most_followers=settings.max_followers),
            queue_redis=queue_redis,
            pool=pool,
            instruments=instruments,
        )
        _go_on_in_the_background(services, stack)
        yield services


def _go_on_in_the_background(services: Services, stack: AsyncExitStack) -> None:
    """Read what `/metrics` shows, and mend what a lost Redis has forgotten, until the stack closes."""
    readings = Readings()
    services.instruments.collect_also(ReadingsCollector(readings))
    reader = _Reader(services, readings)
    for do, seconds in (
        (reader.read_jobs, _LIVE_EVERY_SECONDS),
        (reader.forget_dead, _LIVE_EVERY_SECONDS),
        (reader.read_segments, _LIVE_EVERY_SECONDS),
        (reader.read_catalogue, _CATALOGUE_EVERY_SECONDS),
        (partial(mend_imports, services), _CATALOGUE_EVERY_SECONDS),
    ):
        stack.push_async_callback(_stop, asyncio.create_task(_repeat(do, every=seconds)))


def _assemble(
    settings: Settings,
    *,
    store: Store,
    models: Shelf[ModelManifest],
    variants: Variants,
    live: LiveJobs,
    queue_redis: Redis,
    pool: RunnerPool,
    instruments: Instruments,
) -> Services:
    return Services(
        store=store,
        models=models,
        datasets=dataset_shelf(store),
        variants=variants,
        routing=Routing(store, models=models, variants=variants),
        history=JobHistory(store),
        live=live,
        queue=JobQueue(
            queue_redis,
            timeout_seconds=settings.job_timeout_seconds,
            attempts=settings.job_attempts,
            most_queued=settings.max_queued_jobs,
        ),
        pool=pool,
        instruments=instruments,
        limits=RequestLimits(
            max_upload_bytes=settings.max_upload_bytes,
            max_predict_bytes=settings.max_predict_bytes,
            max_json_bytes=settings.max_json_bytes,
            body_timeout_seconds=settings.body_timeout_seconds,
        ),
        intake=Intake(most_bytes=settings.max_predict_bytes_in_flight),
    )


async def _trace(settings: Settings, instruments: Instruments, stack: AsyncExitStack) -> None:
    """Send traces if the settings say where; if not, nothing that could is imported.

    Raises:
        SettingsInvalid: what sends them is not installed.
    """
    if settings.traces_endpoint is None:
        return
    try:
        from app.telemetry.otlp import open_traces  # noqa: PLC0415 - only who wants traces needs it installed
    except ModuleNotFoundError as error:
        raise SettingsInvalid(
            f"OCTET_TRACES_ENDPOINT needs {error.name}, which is missing: install the extra `tracing`, or unset it."
        ) from error
    traces = open_traces(endpoint=str(settings.traces_endpoint), ratio=settings.traces_ratio, version=__version__)
    instruments.traces = await stack.enter_async_context(traces)


async def _described(models: Shelf[ModelManifest], variant: Variant) -> Servable:
    manifest = (await models.get(variant.model, variant.version)).ready()
    return Servable.of(variant, manifest.preprocessing)


async def _connect(path: Path) -> socket.socket:
    """Connect to the process that starts runners; OSError where it does not answer."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        local_sockets.connect(end, path)
    except OSError:
        end.close()
        raise
    return end


class _Reader:
    """Reads in the background what `/metrics` shows but no process counts."""

    def __init__(self, services: Services, readings: Readings) -> None:
        self._services = services
        self._readings = readings
        self._known: dict[Variant, VariantFacts] = {}  # both are immutable

    async def forget_dead(self) -> None:
        """Drop the gauges of processes that were killed."""
        self._services.instruments.forget_dead()

    async def read_segments(self) -> None:
        """Read how much shared memory this gateway keeps for each variant."""
        for (model, version, variant), size in self._services.pool.segment_bytes().items():
            self._services.instruments.segment_bytes.labels(model, str(version), variant).set(size)

    async def read_jobs(self) -> None:
        """Read Redis: whether it answers, how many jobs wait, in which state they are, and how training goes."""
        try:
            self._readings.jobs = await self._services.live.count()
            self._readings.queue_depth = await self._services.queue.depth()
            self._readings.training = training_of(await self._services.live.running(MOST_TRAINING))
        except Unavailable:
            self._readings.redis_up, self._readings.training = False, {}
            raise
        self._readings.redis_up = True

    async def read_catalogue(self) -> None:
        """Read what was published, and each report once."""
        for name in await self._services.models.names():
            for entry in await self._services.models.versions(name):
                for variant in await self._services.variants.list(name, entry.upload.version):
                    if variant not in self._known:
                        self._known[variant] = facts_of(variant, await self._report(variant))
        self._readings.variants = tuple(self._known.values())

    async def _report(self, variant: Variant) -> Report | None:
        try:
            return await self._services.variants.report(variant)
        except (NotFound, RecordUnreadable) as error:
            log.warning("%s", error)
            return None


async def _repeat(read: Callable[[], Awaitable[None]], *, every: float) -> None:
    while True:
        try:
            await read()
        except OctetError as error:
            log.warning("%s", error)
        await asyncio.sleep(every)


async def _stop(task: "asyncio.Task[None]") -> None:
    """Cancel a task until it ends: a Redis call can swallow one cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=1)
