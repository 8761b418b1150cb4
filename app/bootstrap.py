"""The gateway's composition root: settings to services. Opens in order, closes in reverse, never on import."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from app import __version__
from app.api.dependencies import RequestLimits, Services
from app.api.imports import mend_imports
from app.api.intake import Intake
from app.catalogue.cache import ArtifactCache
from app.catalogue.history import JobHistory
from app.catalogue.routing import Routing
from app.catalogue.shelf import dataset_shelf, model_shelf
from app.catalogue.store import Store, open_store
from app.catalogue.variants import Variants
from app.domain.errors import NotFound, OctetError, RecordUnreadable, Unavailable
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
        instruments, variants = Instruments(version=__version__), Variants(store)
        cache = ArtifactCache(store, variants, folder=settings.cache_dir, most_bytes=settings.cache_bytes)
        cache.sweep()
        pool = RunnerPool(
            fetch=cache.fetch,
            observer=PoolInstruments(instruments),
            limits=_pool_limits(settings),
        )
        stack.push_async_callback(pool.aclose)
        services = _assemble(
            settings,
            store=store,
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
        (reader.read_runners, _LIVE_EVERY_SECONDS),
        (reader.read_catalogue, _CATALOGUE_EVERY_SECONDS),
        (partial(mend_imports, services), _CATALOGUE_EVERY_SECONDS),
    ):
        stack.push_async_callback(_stop, asyncio.create_task(_repeat(do, every=seconds)))


def _assemble(
    settings: Settings,
    *,
    store: Store,
    variants: Variants,
    live: LiveJobs,
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


def _pool_limits(settings: Settings) -> PoolLimits:
    return PoolLimits(
        max_loaded=settings.max_loaded_variants,
        threads=settings.runner_threads,
        start_timeout_seconds=settings.runner_start_timeout_seconds,
        request_timeout_seconds=settings.predict_timeout_seconds,
        max_batch_size=settings.max_batch_size,
        max_queued=settings.max_queued_predictions,
        max_answer_bytes=settings.max_answer_bytes,
        memory_bytes=settings.runner_memory_bytes,
    )


class _Reader:
    """Reads in the background what `/metrics` shows but no process counts."""

    def __init__(self, services: Services, readings: Readings) -> None:
        self._services = services
        self._readings = readings
        self._known: dict[Variant, VariantFacts] = {}  # both are immutable
        self._shown: set[tuple[str, str, str]] = set()

    async def read_jobs(self) -> None:
        """Read Redis: whether it answers, how many jobs wait, and in which state they are."""
        try:
            self._readings.jobs = await self._services.live.count()
            self._readings.queue_depth = await self._services.queue.depth()
        except Unavailable:
            self._readings.redis_up = False
            raise
        self._readings.redis_up = True

    async def read_runners(self) -> None:
        """Read the memory of every runner; one that is gone has none, nor has one whose gateway was killed."""
        self._services.instruments.forget_dead()
        gauge, pool = self._services.instruments.runner_memory, self._services.pool
        loaded = {_labels(held.variant) for held in pool.loaded()}
        for labels in self._shown - loaded:  # several processes share the file, so a label cannot be taken back
            gauge.labels(*labels, "pss").set(0)
            gauge.labels(*labels, "peak").set(0)
        self._shown &= loaded
        for memory in await pool.memory():
            labels = _labels(memory.variant)
            gauge.labels(*labels, "pss").set(memory.pss_bytes)
            gauge.labels(*labels, "peak").set(memory.peak_bytes)
            self._shown.add(labels)

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


def _labels(variant: Variant) -> tuple[str, str, str]:
    return variant.model, str(variant.version), variant.name
