"""The live state of jobs in Redis: one JSON record, one stream of events and one log for each."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import TypeAdapter
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.domain.errors import QueueUnavailable
from app.domain.jobs import Job, JobState

KEEP_FINAL_SECONDS = 7 * 24 * 3600
KEEP_IDEMPOTENCY_SECONDS = 24 * 3600
MOST_EVENTS = 2000
MOST_LOG_LINES = 10_000

_WAIT_MS = 2000  # shorter than any socket time-out

_JOB: TypeAdapter[Job] = TypeAdapter(Job)

# One step for Redis: a worker's last words about its progress must not undo a cancel that came in between.
_SAVE_UNLESS_FINAL = """
local before = redis.call('GET', KEYS[1])
if before and cjson.decode(before)['finished_at'] ~= cjson.null then
    return 0
end
redis.call('SET', KEYS[1], ARGV[1])
if tonumber(ARGV[4]) > 0 then
    redis.call('EXPIRE', KEYS[1], ARGV[4])
end
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[5], '*', 'job', ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[6])
return 1
"""


class LiveJobs:
    """Every method raises QueueUnavailable when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # its annotations are unions over every protocol version and decoding

    async def save(self, job: Job) -> bool:
        """Write a job's state and tell whoever follows it; a job that is final already stays as it is.

        Returns:
            Whether it was written.
        """
        keys = (_job(job.id), _events(job.id), "octet:jobs")
        record, expiry = _JOB.dump_json(job), KEEP_FINAL_SECONDS if job.state.final else 0
        values = (record, job.id, job.created_at.timestamp(), expiry, MOST_EVENTS, KEEP_FINAL_SECONDS)
        with _translated():
            return bool(await self._redis.eval(_SAVE_UNLESS_FINAL, len(keys), *keys, *values))

    async def forget(self, job: str) -> None:
        """Drop a job that was never queued."""
        with _translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(_job(job), _events(job), _log(job))
                pipe.zrem("octet:jobs", job)
                await pipe.execute()

    async def get(self, job: str) -> Job | None:
        """Return a job, None if Redis does not know it (any more)."""
        with _translated():
            record = await self._redis.get(_job(job))
        return _JOB.validate_json(record) if record else None

    async def newest(self, limit: int) -> list[Job]:
        """Return the newest jobs that Redis still knows, newest first."""
        with _translated():
            ids = await self._redis.zrevrange("octet:jobs", 0, limit - 1)
            records = await self._redis.mget([_job(job.decode()) for job in ids]) if ids else []
        return [_JOB.validate_json(record) for record in records if record]

    async def count(self) -> dict[JobState, int]:
        """Return how many jobs are in each state, after forgetting those that Redis has dropped."""
        with _translated():
            ids = await self._redis.zrange("octet:jobs", 0, -1)
            records = await self._redis.mget([_job(job.decode()) for job in ids]) if ids else []
            gone = [job for job, record in zip(ids, records, strict=True) if record is None]
            if gone:
                await self._redis.zrem("octet:jobs", *gone)
        counts = dict.fromkeys(JobState, 0)
        for record in filter(None, records):
            counts[_JOB.validate_json(record).state] += 1
        return counts

    async def follow(self, job: str, *, after: str = "0") -> AsyncIterator[tuple[str, Job] | None]:
        """Yield a job's states as (event id, job) from the event `after` on, until it is final.

        Yields None every two seconds in which nothing happened, so that a caller can keep a connection alive.
        """
        while True:
            with _translated():
                answer = await self._redis.xread({_events(job): after}, block=_WAIT_MS, count=100)
            if not answer:
                yield None
                continue
            for event, fields in answer[0][1]:
                after, state = event.decode(), _JOB.validate_json(fields[b"job"])
                yield after, state
                if state.state.final:
                    return

    async def append_log(self, job: str, lines: list[str]) -> None:
        """Add lines to a job's log; the oldest give way."""
        with _translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.rpush(_log(job), *lines)
                pipe.ltrim(_log(job), -MOST_LOG_LINES, -1)
                pipe.expire(_log(job), KEEP_FINAL_SECONDS)
                await pipe.execute()

    async def log(self, job: str) -> str:
        """Return a job's log."""
        with _translated():
            lines = await self._redis.lrange(_log(job), 0, -1)
        return "".join(line.decode(errors="replace") + "\n" for line in lines)

    async def claim(self, key: str, job: str) -> str:
        """Tie an idempotency key to a job; return the job that it is tied to, which is another one if it was before."""
        name = f"octet:idempotency:{key}"
        with _translated():
            if await self._redis.set(name, job, nx=True, ex=KEEP_IDEMPOTENCY_SECONDS):
                return job
            tied = await self._redis.get(name)
        return tied.decode() if tied else job

    async def release(self, key: str) -> None:
        """Untie an idempotency key, because its job was never queued."""
        with _translated():
            await self._redis.delete(f"octet:idempotency:{key}")

    async def check(self) -> None:
        """Raise QueueUnavailable unless Redis answers."""
        with _translated():
            await self._redis.ping()


def read_job(redis: SyncRedis, job: str) -> Job | None:
    """Return a job through a blocking connection, for processes without an event loop."""
    record: Any = redis.get(_job(job))
    return _JOB.validate_json(record) if record else None


def _job(job: str) -> str:
    return f"octet:job:{job}"


def _events(job: str) -> str:
    return f"octet:events:{job}"


def _log(job: str) -> str:
    return f"octet:log:{job}"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise QueueUnavailable("Redis does not answer, so jobs cannot be seen or started: try again soon.") from error
