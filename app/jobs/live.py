"""The live state of jobs in Redis: one JSON record, one stream of events and one log for each; and the ids by state."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import TypeAdapter, ValidationError
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.domain.errors import QueueUnavailable, TooMany
from app.domain.jobs import Job, JobState

KEEP_FINAL_SECONDS = 7 * 24 * 3600
KEEP_IDEMPOTENCY_SECONDS = 24 * 3600
CLAIM_SECONDS = 60
KEEP_WISH_SECONDS = 7 * 24 * 3600
MOST_EVENTS = 2000
LEAST_EVENTS = 20
EVENTS_BYTES = 4 * 2**20
"""What the events of one job may take in Redis, about: every one of them is the whole job."""

MOST_LOG_LINES = 10_000

MOST_FOLLOWERS = 64

_WAIT_MS = 1000  # shorter than any socket time-out, and than anybody's patience when the process stops

_JOB: TypeAdapter[Job] = TypeAdapter(Job)
_NEWEST = "octet:jobs"
_STATES = tuple(f"octet:jobs:{state}" for state in JobState)
_RUNNING = f"octet:jobs:{JobState.RUNNING}"

log = logging.getLogger(__name__)

# One step for Redis: a worker's last words about its progress must not undo a cancel that came in between.
# KEYS: record, events, ids by time, then the ids of one state each, scored with the time when Redis drops the record.
_SAVE_UNLESS_FINAL = """
local record, id, created, expiry, most_events, events_expiry, own = unpack(ARGV)
local before = redis.call('GET', KEYS[1])
local read, known = pcall(cjson.decode, before or 'null')
local finished = read and type(known) == 'table' and known['finished_at']
if finished and finished ~= cjson.null then
    return 0
end
redis.call('SET', KEYS[1], record)
local dropped = '+inf'
if tonumber(expiry) > 0 then
    redis.call('EXPIRE', KEYS[1], expiry)
    dropped = redis.call('TIME')[1] + expiry
end
redis.call('ZADD', KEYS[3], created, id)
for state = 4, #KEYS do
    redis.call('ZREM', KEYS[state], id)
end
redis.call('ZADD', KEYS[3 + own], dropped, id)
redis.call('XADD', KEYS[2], 'MAXLEN', most_events, '*', 'job', record)
redis.call('EXPIRE', KEYS[2], events_expiry)
return 1
"""

# KEYS: ids by time, then the ids of one state each.
_COUNT = """
local now, counts = redis.call('TIME')[1], {}
for state = 2, #KEYS do
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[state], '-inf', now)) do
        redis.call('ZREM', KEYS[1], id)
        redis.call('ZREM', KEYS[state], id)
    end
    counts[state - 1] = redis.call('ZCARD', KEYS[state])
end
return counts
"""


class LiveJobs:
    """Every method raises QueueUnavailable when Redis does not answer.

    Args:
        followers: a client for those who follow jobs: each occupies a connection, and must not take it from others.
        most_followers: how many may follow jobs at once.
    """

    def __init__(self, redis: Redis, *, followers: Redis | None = None, most_followers: int = MOST_FOLLOWERS) -> None:
        self._redis: Any = redis  # its annotations are unions over every protocol version and decoding
        self._followers_redis: Any = followers or redis
        self._most_followers = most_followers
        self._followers = 0

    async def save(self, job: Job) -> bool:
        """Write a job's state and tell whoever follows it; a job that is final already stays as it is.

        Returns:
            Whether it was written.
        """
        keys = (_job(job.id), _events(job.id), _NEWEST, *_STATES)
        record, expiry = _JOB.dump_json(job), KEEP_FINAL_SECONDS if job.state.final else 0
        own = list(JobState).index(job.state) + 1
        events = max(LEAST_EVENTS, min(MOST_EVENTS, EVENTS_BYTES // len(record)))
        values = (record, job.id, job.created_at.timestamp(), expiry, events, KEEP_FINAL_SECONDS, own)
        with _translated():
            return bool(await self._redis.eval(_SAVE_UNLESS_FINAL, len(keys), *keys, *values))

    async def forget(self, job: str) -> None:
        """Drop a job that was never queued."""
        with _translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(_job(job), _events(job), _log(job), _wish(job))
                for ids in (_NEWEST, *_STATES):
                    pipe.zrem(ids, job)
                await pipe.execute()

    async def get(self, job: str) -> Job | None:
        """Return a job, None if Redis does not know it (any more).

        Raises:
            QueueUnavailable: also when Redis holds something else in its place.
        """
        with _translated():
            record = await self._redis.get(_job(job))
        return _read(record, job=job) if record else None

    async def newest(self, limit: int) -> list[Job]:
        """Return the newest jobs that Redis still knows, newest first, without those that cannot be read."""
        with _translated():
            ids = await self._redis.zrevrange(_NEWEST, 0, limit - 1)
        return await self._get_all(ids)

    async def running(self, limit: int) -> list[Job]:
        """Return jobs that run, at most so many, without those that cannot be read."""
        with _translated():
            ids = await self._redis.zrange(_RUNNING, 0, limit - 1)
        return [job for job in await self._get_all(ids) if job.state is JobState.RUNNING]

    async def _get_all(self, ids: list[bytes]) -> list[Job]:
        with _translated():
            records = await self._redis.mget([_job(job.decode()) for job in ids]) if ids else []
        found = zip(ids, records, strict=True)
        read = [_read_or_skip(record, job=job.decode()) for job, record in found if record]
        return [job for job in read if job is not None]

    async def count(self) -> dict[JobState, int]:
        """Return how many jobs are in each state, after forgetting those that Redis has dropped."""
        with _translated():
            counts = await self._redis.eval(_COUNT, 1 + len(_STATES), _NEWEST, *_STATES)
        return dict(zip(JobState, counts, strict=True))

    async def follow(self, job: str, *, after: str = "0") -> AsyncGenerator[tuple[str, Job] | None, None]:
        """Yield a job's states as (event id, job) from the event `after` on, until it is final.

        Yields None every second in which nothing happened, so that a caller can keep a connection alive.

        Raises:
            TooMany: too many follow jobs already.
        """
        self.check_followers()
        self._followers += 1
        try:
            async for event in self._follow(job, after=after):
                yield event
        finally:
            self._followers -= 1

    def check_followers(self) -> None:
        """Raise TooMany if no more can follow jobs."""
        if self._followers >= self._most_followers:
            raise TooMany(
                f"{self._most_followers} clients follow jobs already, the limit of a gateway process: ask for the job "
                "itself now and then, or raise OCTET_MAX_FOLLOWERS."
            )

    async def _follow(self, job: str, *, after: str) -> AsyncIterator[tuple[str, Job] | None]:
        while True:
            with _translated():
                answer = await self._followers_redis.xread({_events(job): after}, block=_WAIT_MS, count=100)
            if not answer:
                yield None
                continue
            for event, fields in answer[0][1]:
                after, state = event.decode(), _read_or_skip(fields[b"job"], job=job)
                if state is None:
                    continue
                yield after, state
                if state.state.final:
                    return

    async def ask_to_finish(self, job: str) -> None:
        """Ask whoever works on a job to end its training and to go on with the best so far; kept for a week."""
        with _translated():
            await self._redis.set(_wish(job), "", ex=KEEP_WISH_SECONDS)

    async def asked_to_finish(self, job: str) -> bool:
        """Return whether a job was asked to end its training."""
        with _translated():
            return bool(await self._redis.exists(_wish(job)))

    async def append_log(self, job: str, lines: list[str]) -> None:
        """Add lines to a job's log; the oldest give way."""
        with _translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.rpush(_log(job), *lines)
                pipe.ltrim(_log(job), -MOST_LOG_LINES, -1)
                pipe.expire(_log(job), KEEP_FINAL_SECONDS)
                await pipe.execute()

    async def drop_log(self, job: str) -> None:
        """Delete a job's log, because history has it."""
        with _translated():
            await self._redis.delete(_log(job))

    async def log(self, job: str) -> str:
        """Return a job's log."""
        with _translated():
            lines = await self._redis.lrange(_log(job), 0, -1)
        return "".join(line.decode(errors="replace") + "\n" for line in lines)

    async def claim(self, key: str, job: str) -> str:
        """Tie an idempotency key to a job for a minute, in which it has to be queued and the claim kept.

        Returns:
            The job that the key is tied to, which is another one if it was before.
        """
        name = _idempotency(key)
        with _translated():
            if await self._redis.set(name, job, nx=True, ex=CLAIM_SECONDS):
                return job
            tied = await self._redis.get(name)
        return tied.decode() if tied else job

    async def keep_claim(self, key: str) -> None:
        """Let an idempotency key stay tied for a day, because its job is queued."""
        with _translated():
            await self._redis.expire(_idempotency(key), KEEP_IDEMPOTENCY_SECONDS)

    async def release(self, key: str) -> None:
        """Untie an idempotency key, because its job was never queued."""
        with _translated():
            await self._redis.delete(_idempotency(key))

    async def take_turn(self, name: str, *, seconds: int) -> bool:
        """Return True to one caller in so many seconds, of all gateways."""
        with _translated():
            return bool(await self._redis.set(f"octet:turn:{name}", "", nx=True, ex=seconds))

    async def check(self) -> None:
        """Raise QueueUnavailable unless Redis answers."""
        with _translated():
            await self._redis.ping()


def read_job(redis: SyncRedis, job: str) -> Job | None:
    """Return a job through a blocking connection, for processes without an event loop."""
    record: Any = redis.get(_job(job))
    return _read_or_skip(record, job=job) if record else None


def _read(record: bytes, *, job: str) -> Job:
    try:
        return _JOB.validate_json(record)
    except ValidationError as error:
        raise QueueUnavailable(f"Redis' record of job {job} cannot be read: ask for the work again.") from error


def _read_or_skip(record: bytes, *, job: str) -> Job | None:
    try:
        return _read(record, job=job)
    except QueueUnavailable as error:
        log.warning("%s", error)
        return None


def _job(job: str) -> str:
    return f"octet:job:{job}"


def _events(job: str) -> str:
    return f"octet:events:{job}"


def _log(job: str) -> str:
    return f"octet:log:{job}"


def _wish(job: str) -> str:
    return f"octet:finish:{job}"


def _idempotency(key: str) -> str:
    return f"octet:idempotency:{key}"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise QueueUnavailable("Redis does not answer, so jobs cannot be seen or started: try again soon.") from error
