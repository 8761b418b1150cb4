"""An `rq` worker that notices within seconds when another worker was lost, and whose children die with it."""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType

from redis import Redis
from rq import Queue, Retry, Worker
from rq.job import Job as QueuedJob
from rq.serializers import JSONSerializer

from app.jobs.queue import QUEUE
from workers.lifeline import die_with

LOSE = "workers.bootstrap.lose_job"

_DEQUEUE_SECONDS = 5
_UPKEEP_SECONDS = 10
_RQ_MARGIN_SECONDS = 15  # rq waits for a job worker_ttl minus this long


class _WatchedQueue(Queue):
    """The queue, with a lock on its upkeep that a killed worker does not hold for a quarter of an hour."""

    def acquire_maintenance_lock(self) -> bool:
        """Return whether this worker may look for lost jobs now."""
        return bool(self.connection.set(self.registry_cleaning_key, 1, nx=True, ex=_UPKEEP_SECONDS))


class JobWorker(Worker):
    """Takes jobs one at a time; each runs in a process forked for it.

    Args:
        lost_after_seconds: how long a worker may be silent before its job is given to another.
        on_attempt: told the job's id and how many seconds an attempt took, in the worker's own process.
    """

    def __init__(self, redis: Redis, *, lost_after_seconds: int, on_attempt: Callable[[str, float], None]) -> None:
        self._lost_after_seconds = lost_after_seconds
        self._on_attempt = on_attempt
        super().__init__(
            [_WatchedQueue(QUEUE, connection=redis, serializer=JSONSerializer)],
            connection=redis,
            serializer=JSONSerializer,
            exception_handlers=[self._abandoned],
            maintenance_interval=_DEQUEUE_SECONDS,
            worker_ttl=_DEQUEUE_SECONDS + _RQ_MARGIN_SECONDS,
            job_monitoring_interval=max(1, lost_after_seconds // 3),
            log_job_description=False,
        )

    def get_heartbeat_ttl(self, job: QueuedJob) -> int:  # noqa: ARG002 - rq's signature
        """Return after how many seconds of silence this worker's job is taken from it."""
        return self._lost_after_seconds

    def main_work_horse(self, job: QueuedJob, queue: Queue) -> None:
        """Run one job in the fork, which must not outlive the worker."""
        die_with(self.pid or os.getppid())
        super().main_work_horse(job, queue)

    def execute_job(self, job: QueuedJob, queue: Queue) -> None:
        """Fork, wait, and tell how long it took."""
        began = time.monotonic()
        super().execute_job(job, queue)
        self._on_attempt(job.id, time.monotonic() - began)

    def handle_job_failure(self, job: QueuedJob, queue: Queue, *args: object, **kwargs: object) -> None:
        """Let `rq` try again; when it will not, have the job finished as lost.

        A job that was stopped is final already. To rq it has failed: jobs that wait for a stopped one wait forever.
        """
        stopped = self._stopped_job_id == job.id
        if stopped:
            self._stopped_job_id, job.retries_left = None, 0
        given_up = not job.should_retry and not stopped
        super().handle_job_failure(job, queue, *args, **kwargs)
        if given_up:
            self._lose(job)

    def _abandoned(self, job: QueuedJob, kind: type[BaseException], error: BaseException, trace: TracebackType) -> None:  # noqa: ARG002 - rq's signature
        if job.started_at is not None:  # rq's times are aware UTC
            self._on_attempt(job.id, (datetime.now(UTC) - job.started_at).total_seconds())
        if not job.retries_left:
            self._lose(job)

    def _lose(self, job: QueuedJob) -> None:
        if job.func_name != LOSE:
            self.queues[0].enqueue_call(LOSE, args=job.args, at_front=True, timeout=300, retry=Retry(max=3))
