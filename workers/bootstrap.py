"""The workers' wiring: settings to services, and what the queue calls. Nothing connects on import."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError

from app import __version__
from app.catalogue.history import JobHistory
from app.catalogue.shelf import dataset_shelf, model_shelf
from app.catalogue.store import open_store
from app.catalogue.variants import Variants
from app.jobs.live import LiveJobs, read_job
from app.settings import Settings
from app.telemetry.instruments import Instruments
from app.telemetry.logs import configure
from workers import own_network
from workers.confinement import missing_protections
from workers.jobs.attempt import attempt, lose
from workers.jobs.bench import Workshop
from workers.jobs.scratch import sweep
from workers.limits import Limits, Machines
from workers.queue_worker import JobWorker

log = logging.getLogger(__name__)


def run_job(job: str) -> None:
    """Do one attempt at a job. Called by `rq` in a process forked for it."""
    asyncio.run(_in_workshop(job, attempt))


def lose_job(job: str) -> None:
    """Finish a job that will not be tried again. Called by `rq` like `run_job`."""
    asyncio.run(_in_workshop(job, lose))


def work(settings: Settings) -> None:
    """Take jobs until told to stop. Opens nothing but Redis: what has threads is opened after the fork."""
    configure(settings.log_level)
    check_sandbox(allow_unsandboxed=settings.allow_unsandboxed)
    sweep(settings.scratch_dir)
    redis = Redis.from_url(settings.redis_url or "")
    instruments = Instruments(version=__version__)
    if settings.worker_metrics_port is not None:
        instruments.serve(port=settings.worker_metrics_port, address=settings.host)

    def on_attempt(job_id: str, seconds: float) -> None:
        _observe(instruments, redis, job_id, seconds)
        sweep(settings.scratch_dir)  # a job that was stopped could not tidy up itself

    worker = JobWorker(redis, lost_after_seconds=settings.job_lost_after_seconds, on_attempt=on_attempt)
    worker.work(logging_level=settings.log_level.upper())


@asynccontextmanager
async def _workshop(settings: Settings) -> AsyncIterator[Workshop]:
    redis = AsyncRedis.from_url(settings.redis_url or "", socket_timeout=10, socket_connect_timeout=2)
    store = open_store(settings.store, s3=settings.s3)
    async with redis:
        yield Workshop(
            store=store,
            models=model_shelf(store),
            datasets=dataset_shelf(store),
            variants=Variants(store),
            history=JobHistory(store),
            live=LiveJobs(redis),
            scratch=settings.scratch_dir,
            limits=Limits(
                memory_bytes=settings.job_memory_bytes,
                scratch_bytes=settings.job_scratch_bytes,
                seconds=settings.job_timeout_seconds,
                machines=_machines(settings),
            ),
            allow_unsandboxed=settings.allow_unsandboxed,
        )


def _machines(settings: Settings) -> Machines | None:
    if settings.training_nodes == 1:
        return None
    return Machines(rendezvous=settings.training_rendezvous, number=settings.training_nodes)


async def _in_workshop(job: str, use: Callable[[str, Workshop], Awaitable[None]]) -> None:
    async with _workshop(Settings()) as workshop:
        await use(job, workshop)


def check_sandbox(*, allow_unsandboxed: bool) -> None:
    """Say what the machine lacks to confine uploads and training, and what follows; before there are threads."""
    if missing := missing_protections():
        follows = "they are taken all the same (OCTET_ALLOW_UNSANDBOXED)" if allow_unsandboxed else "they are refused"
        log.warning("this kernel lacks %s, so .pt2 uploads cannot be confined: %s", ", ".join(missing), follows)
    if not own_network.available():
        follows = "it is done all the same (OCTET_ALLOW_UNSANDBOXED)" if allow_unsandboxed else "it is refused"
        log.warning(
            "this machine gives no process a network of its own, so training in several processes could reach what "
            "this worker reaches: %s",
            follows,
        )


def _observe(instruments: Instruments, redis: Redis, job_id: str, seconds: float) -> None:
    try:
        job = read_job(redis, job_id)
    except RedisError as error:
        log.warning("the outcome of job %s could not be read: %s", job_id, error)
        return
    if job is not None:
        outcome = job.state if job.state.final else "lost"
        instruments.job_duration.labels(job.kind, outcome).observe(seconds)
