"""The queue: `rq` with its JSON serializer. A queued job is an id; its record is in `app.jobs.live`."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, Retry
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Dependency
from rq.job import Job as QueuedJob
from rq.serializers import JSONSerializer

from app.domain.errors import QueueFull, QueueUnavailable

QUEUE = "octet"
RUN = "workers.bootstrap.run_job"

_MARGIN_SECONDS = 120  # a job ends itself in time; rq ends it if it does not

Answer = TypeVar("Answer")


class JobQueue:
    """Hands jobs to workers. Every method raises QueueUnavailable when Redis does not answer.

    Args:
        attempts: how often a job is started in all when its worker is lost.
        most_queued: how many jobs may wait, for a worker or for other jobs.
    """

    def __init__(self, redis: Redis, *, timeout_seconds: int, attempts: int, most_queued: int) -> None:
        self._redis = redis
        self._queue = Queue(QUEUE, connection=redis, serializer=JSONSerializer)
        self._timeout_seconds = timeout_seconds
        self._attempts = attempts
        self._most_queued = most_queued

    async def submit(self, job: str, *, after: Sequence[str] = ()) -> None:
        """Queue a job; it starts once the jobs `after` have ended, however they ended.

        Raises:
            QueueFull: too many jobs wait already.
        """
        await _in_thread(lambda: self._submit(job, after))

    async def stop(self, job: str) -> None:
        """Take a job out of the queue, or have its worker end it."""
        await _in_thread(lambda: self._stop(job))

    async def knows(self, job: str) -> bool:
        """Return whether a job waits, runs, or did so in the last hour."""
        return await _in_thread(lambda: QueuedJob.exists(job, connection=self._redis))

    async def depth(self) -> int:
        """Return how many jobs wait for a worker."""
        return await _in_thread(lambda: self._queue.count)

    def _submit(self, job: str, after: Sequence[str]) -> None:
        if self._queue.count + self._queue.deferred_job_registry.count >= self._most_queued:
            raise QueueFull(f"{self._most_queued} jobs wait already, the limit: try again when some have ended.")
        known = [other for other in after if QueuedJob.exists(other, connection=self._redis)]
        self._queue.enqueue_call(
            RUN,
            args=(job,),
            job_id=job,
            timeout=self._timeout_seconds + _MARGIN_SECONDS,
            result_ttl=3600,
            failure_ttl=3600,
            retry=Retry(max=self._attempts - 1) if self._attempts > 1 else None,
            depends_on=Dependency(jobs=known, allow_failure=True) if known else None,
        )

    def _stop(self, job: str) -> None:
        try:
            queued = QueuedJob.fetch(job, connection=self._redis, serializer=JSONSerializer)
        except NoSuchJobError:
            return
        if queued.get_status() == "started":
            try:
                send_stop_job_command(self._redis, job, serializer=JSONSerializer)
            except InvalidJobOperation:  # it ended between the two calls
                return
        else:
            queued.cancel(enqueue_dependents=True)


async def _in_thread(call: Callable[[], Answer]) -> Answer:
    try:
        return await asyncio.to_thread(call)
    except (RedisError, OSError) as error:
        raise QueueUnavailable("Redis does not answer, so jobs cannot be seen or started: try again soon.") from error
