"""The gateway's composition root: settings to services. Opens in order, closes in reverse, never on import."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from app import __version__
from app.api.dependencies import RequestLimits, Services
from app.catalogue.history import JobHistory
from app.catalogue.routing import Routing
from app.catalogue.shelf import dataset_shelf, model_shelf
from app.catalogue.store import Store, open_store
from app.catalogue.variants import ArtifactCache, Variants
from app.domain.errors import NotFound, Unavailable
from app.domain.reports import Report
from app.domain.variants import Variant
from app.jobs.live import LiveJobs
from app.jobs.queue import JobQueue
from app.serving.pool import RunnerPool
from app.serving.terms import PoolLimits
from app.settings import Settings
from app.telemetry.instruments import Instruments
from app.telemetry.readings import Readings, ReadingsCollector, VariantFacts, facts_of

log = logging.getLogger(__name__)

_LIVE_EVERY_SECONDS = 5
_CATALOGUE_EVERY_SECONDS = 15
_REDIS_TIMEOUT_SECONDS = 4


class PoolInstruments:
    """Tells Prometheus what happens to runners."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments

    def restarted(self, variant: Variant) -> None:
        self._instruments.runner_restarts.labels(*_labels(variant)).inc()

    def retried(self, variant: Variant) -> None:
        self._instruments.request_retries.labels(*_labels(variant)).inc()

    def loaded(self, count: int) -> None:
        self._instruments.variants_loaded.set(count)


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Open everything the gateway's routes call."""
    async with AsyncExitStack() as stack:
        redis_url = settings.redis_url or "redis://127.0.0.1:6379"
        patience = _REDIS_TIMEOUT_SECONDS
        redis = AsyncRedis.from_url(redis_url, socket_timeout=patience, socket_connect_timeout=patience)
        queue_redis = Redis.from_url(redis_url, socket_timeout=patience, socket_connect_timeout=patience)
        await stack.enter_async_context(redis)
        stack.enter_context(queue_redis)
        store = open_store(settings.store, s3=settings.s3)
        instruments, variants = Instruments(version=__version__), Variants(store)
        pool = RunnerPool(
            fetch=ArtifactCache(store, variants, folder=settings.cache_dir).fetch,
            observer=PoolInstruments(instruments),
            limits=_pool_limits(settings),
        )
        stack.push_async_callback(pool.aclose)
        services = _assemble(
            settings,
            store=store,
            variants=variants,
            redis=redis,
            queue_redis=queue_redis,
            pool=pool,
            instruments=instruments,
        )
        readings = Readings()
        instruments.collect_also(ReadingsCollector(readings))
        for refresh, seconds in _refreshes(services, readings):
            stack.push_async_callback(_stop, asyncio.create_task(_repeat(refresh, every=seconds)))
        yield services


def _assemble(
    settings: Settings,
    *,
    store: Store,
    variants: Variants,
    redis: AsyncRedis,
    queue_redis: Redis,
    pool: RunnerPool,
    instruments: Instruments,
) -> Services:
    models = model_shelf(store)
    return Services(
        store=store,
        models=models,
        datasets=dataset_shelf(store),
        variants=variants,
        routing=Routing(store, models=models, variants=variants),
        history=JobHistory(store),
        live=LiveJobs(redis),
        queue=JobQueue(
            queue_redis,
            timeout_seconds=settings.job_timeout_seconds,
            attempts=settings.job_attempts,
            most_queued=settings.max_queued_jobs,
        ),
        pool=pool,
        instruments=instruments,
        limits=RequestLimits(max_upload_bytes=settings.max_upload_bytes, max_predict_bytes=settings.max_predict_bytes),
    )


def _pool_limits(settings: Settings) -> PoolLimits:
    return PoolLimits(
        max_loaded=settings.max_loaded_variants,
        threads=settings.runner_threads,
        start_timeout_seconds=settings.runner_start_timeout_seconds,
        request_timeout_seconds=settings.predict_timeout_seconds,
        max_batch_size=settings.max_batch_size,
        max_queued=settings.max_queued_predictions,
    )


def _refreshes(services: Services, readings: Readings) -> list[tuple[Callable[[], Awaitable[None]], float]]:
    """Return what `/metrics` shows without asking for it, and how often each is read."""

    async def read_jobs() -> None:
        readings.redis_up = False
        readings.jobs = await services.live.count()
        readings.queue_depth = await services.queue.depth()
        readings.redis_up = True

    shown: set[tuple[str, str, str]] = set()

    async def read_runners() -> None:
        gone = shown - {_labels(loaded.variant) for loaded in services.pool.loaded()}
        for labels in gone:  # several processes share the file, so a label cannot be taken back
            services.instruments.runner_memory.labels(*labels, "pss").set(0)
            services.instruments.runner_memory.labels(*labels, "peak").set(0)
        shown.difference_update(gone)
        for memory in await services.pool.memory():
            for kind, value in (("pss", memory.pss_bytes), ("peak", memory.peak_bytes)):
                services.instruments.runner_memory.labels(*_labels(memory.variant), kind).set(value)
            shown.add(_labels(memory.variant))

    known: dict[Variant, VariantFacts] = {}  # both are immutable

    async def read_catalogue() -> None:
        async for variant in _published(services):
            if variant not in known:
                known[variant] = facts_of(variant, await _report_of(variant, services))
        readings.variants = tuple(known.values())

    return [
        (read_jobs, _LIVE_EVERY_SECONDS),
        (read_runners, _LIVE_EVERY_SECONDS),
        (read_catalogue, _CATALOGUE_EVERY_SECONDS),
    ]


async def _published(services: Services) -> AsyncIterator[Variant]:
    for name in await services.models.names():
        for entry in await services.models.versions(name):
            for variant in await services.variants.list(name, entry.upload.version):
                yield variant


async def _report_of(variant: Variant, services: Services) -> Report | None:
    try:
        return await services.variants.report(variant)
    except NotFound:
        return None


async def _repeat(refresh: Callable[[], Awaitable[None]], *, every: float) -> None:
    while True:
        try:
            await refresh()
        except Unavailable as error:
            log.warning("%s", error)
        await asyncio.sleep(every)


async def _stop(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _labels(variant: Variant) -> tuple[str, str, str]:
    return variant.model, str(variant.version), variant.name
