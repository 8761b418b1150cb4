"""Live jobs and the queue, on a real Redis."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from redis import Redis as BlockingRedis
from redis.asyncio import Redis as AsyncRedis
from rq.job import Job as QueuedJob
from rq.serializers import JSONSerializer

from app.domain.errors import QueueFull, QueueUnavailable, TooMany
from app.domain.jobs import Job, JobKind, JobState
from app.domain.recipes import PtqStatic
from app.jobs.live import LEAST_EVENTS, LiveJobs, read_job
from app.jobs.queue import RUN, JobQueue
from tests.running import Redis

NOW = datetime.now(UTC)


def new_job() -> Job:
    return Job(id=secrets.token_hex(16), kind=JobKind.QUANTIZE, created_at=datetime.now(UTC), model="m:1")


def with_live(redis: Redis, scenario: Callable[[LiveJobs], Awaitable[None]]) -> None:
    async def run() -> None:
        async with AsyncRedis.from_url(redis.url) as client:
            await client.flushall()
            await scenario(LiveJobs(client))

    asyncio.run(run())


def test_a_saved_job_reads_back_the_same(redis: Redis) -> None:
    async def scenario(live: LiveJobs) -> None:
        job = new_job().start(NOW)
        await live.save(job)
        assert await live.get(job.id) == job
        with BlockingRedis.from_url(redis.url) as client:
            assert read_job(client, job.id) == job
        assert await live.get("unknown") is None

    with_live(redis, scenario)


def test_jobs_are_listed_newest_first_and_counted_by_state(redis: Redis) -> None:
    async def scenario(live: LiveJobs) -> None:
        jobs = [new_job() for _ in range(3)]
        for job in jobs:
            await live.save(job)
        await live.save(jobs[0].start(NOW))
        assert [job.id for job in await live.newest(2)] == [jobs[2].id, jobs[1].id]
        counts = await live.count()
        assert (counts[JobState.QUEUED], counts[JobState.RUNNING], counts[JobState.FAILED]) == (2, 1, 0)

    with_live(redis, scenario)


def test_a_record_that_cannot_be_read_is_passed_over_in_lists_and_named_when_asked_for(redis: Redis) -> None:
    async def scenario(live: LiveJobs) -> None:
        broken, sound = new_job(), new_job()
        await live.save(broken)
        await live.save(sound)
        with BlockingRedis.from_url(redis.url) as client:
            client.set(f"octet:job:{broken.id}", b'{"of": "another Octet"}')
        assert [job.id for job in await live.newest(10)] == [sound.id]
        assert (await live.count())[JobState.QUEUED] == 2
        with pytest.raises(QueueUnavailable, match=f"record of job {broken.id} cannot be read"):
            await live.get(broken.id)
        assert await live.save(broken.start(NOW))

    with_live(redis, scenario)


def test_a_job_that_redis_has_dropped_is_neither_counted_nor_listed(redis: Redis) -> None:
    async def scenario(live: LiveJobs) -> None:
        old, new = new_job().start(NOW).succeed(NOW), new_job().start(NOW).succeed(NOW)
        await live.save(old)
        await live.save(new)
        with BlockingRedis.from_url(redis.url) as client:
            client.zadd("octet:jobs:succeeded", {old.id: NOW.timestamp() - 1})  # seven days have gone by
            client.delete(f"octet:job:{old.id}")
            assert (await live.count())[JobState.SUCCEEDED] == 1
            assert client.zrange("octet:jobs", 0, -1) == [new.id.encode()]

    with_live(redis, scenario)


def test_a_job_that_was_never_queued_is_forgotten(redis: Redis) -> None:
    async def scenario(live: LiveJobs) -> None:
        await live.save(job := new_job())
        await live.forget(job.id)
        assert (await live.newest(10), sum((await live.count()).values())) == ([], 0)

    with_live(redis, scenario)


def test_progress_told_late_does_not_undo_a_cancel(redis: Redis) -> None:
    async def scenario(live: LiveJobs) -> None:
        running = new_job().start(NOW)
        assert await live.save(running)
        assert await live.save(cancelled := running.cancel(NOW))
        assert not await live.save(replace(running, percent=50.0))
        assert await live.get(running.id) == cancelled
        assert [event async for event in live.follow(running.id)][-1][1] == cancelled  # type: ignore[index]

    with_live(redis, scenario)


def test_a_follower_sees_every_state_until_the_last(redis: Redis) -> None:
    async def scenario(live: LiveJobs) -> None:
        job = new_job()
        await live.save(job)
        await live.save(started := job.start(NOW))

        async def finish_later() -> None:
            await live.save(replace(started, percent=50.0))
            await live.save(started.succeed(NOW))

        async with asyncio.TaskGroup() as group:
            group.create_task(finish_later())
            seen = [event async for event in live.follow(job.id) if event is not None]
        assert [state.state for _, state in seen] == ["queued", "running", "running", "succeeded"]
        resumed = [event async for event in live.follow(job.id, after=seen[1][0]) if event is not None]
        assert resumed == seen[2:]

    with_live(redis, scenario)


def test_the_events_of_a_large_job_take_no_more_memory_than_those_of_a_small_one(redis: Redis) -> None:
    async def scenario(live: LiveJobs) -> None:
        names = tuple(f"{number:0200d}" for number in range(1000))
        job = replace(new_job(), recipe=PtqStatic(float_layers=names)).start(NOW)
        for percent in range(50):
            await live.save(replace(job, percent=float(percent)))
        with BlockingRedis.from_url(redis.url) as client:
            assert client.xlen(f"octet:events:{job.id}") == LEAST_EVENTS

    with_live(redis, scenario)


def test_only_so_many_follow_at_once(redis: Redis) -> None:
    async def run() -> None:
        async with AsyncRedis.from_url(redis.url) as client:
            live, job = LiveJobs(client, followers=client, most_followers=1), new_job()
            await live.save(job)
            async with aclosing(live.follow(job.id)) as first:
                assert await anext(first) is not None
                with pytest.raises(TooMany, match="1 clients"):
                    await anext(live.follow(job.id))
            assert await anext(live.follow(job.id)) is not None

    asyncio.run(run())


def test_a_log_keeps_its_order(redis: Redis) -> None:
    async def scenario(live: LiveJobs) -> None:
        await live.append_log("j", ["one", "two"])
        await live.append_log("j", ["three"])
        assert await live.log("j") == "one\ntwo\nthree\n"
        await live.drop_log("j")
        assert await live.log("j") == ""

    with_live(redis, scenario)


def test_an_idempotency_key_belongs_to_the_first_job(redis: Redis) -> None:
    async def scenario(live: LiveJobs) -> None:
        assert await live.claim("key", "first") == "first"
        assert await live.claim("key", "second") == "first"
        await live.release("key")
        assert await live.claim("key", "third") == "third"

    with_live(redis, scenario)


def test_a_claim_that_nobody_keeps_ends_within_a_minute(redis: Redis) -> None:
    async def scenario(live: LiveJobs) -> None:
        await live.claim("key", "first")
        with BlockingRedis.from_url(redis.url) as client:
            assert 0 < client.ttl("octet:idempotency:key") <= 60
            await live.keep_claim("key")
            assert client.ttl("octet:idempotency:key") > 80_000

    with_live(redis, scenario)


def test_without_redis_the_queue_is_unavailable() -> None:
    async def scenario() -> None:
        async with AsyncRedis.from_url("redis://127.0.0.1:9") as client:
            with pytest.raises(QueueUnavailable):
                await LiveJobs(client).get("x")
        with BlockingRedis.from_url("redis://127.0.0.1:9") as blocking, pytest.raises(QueueUnavailable):
            await queue_of(blocking).submit("x")

    asyncio.run(scenario())


def test_a_queued_job_is_an_id_and_nothing_else(redis: Redis) -> None:
    with BlockingRedis.from_url(redis.url) as client:
        client.flushall()
        asyncio.run(queue_of(client).submit("abc"))
        queued = QueuedJob.fetch("abc", connection=client, serializer=JSONSerializer)
        assert (queued.func_name, queued.args, queued.kwargs) == (RUN, ["abc"], {})
        assert asyncio.run(queue_of(client).depth()) == 1


def test_a_full_queue_takes_no_more(redis: Redis) -> None:
    with BlockingRedis.from_url(redis.url) as client:
        client.flushall()
        queue = queue_of(client, most_queued=2)
        asyncio.run(queue.submit("one"))
        asyncio.run(queue.submit("two"))
        with pytest.raises(QueueFull, match="2 jobs wait"):
            asyncio.run(queue.submit("three"))


def test_jobs_that_wait_for_others_fill_the_queue_too(redis: Redis) -> None:
    with BlockingRedis.from_url(redis.url) as client:
        client.flushall()
        queue = queue_of(client, most_queued=2)
        asyncio.run(queue.submit("import"))
        asyncio.run(queue.submit("quantize", after=["import"]))
        with pytest.raises(QueueFull, match="2 jobs wait"):
            asyncio.run(queue.submit("third", after=["import"]))


def test_a_job_waits_for_those_before_it_and_a_stopped_one_leaves_the_queue(redis: Redis) -> None:
    with BlockingRedis.from_url(redis.url) as client:
        client.flushall()
        queue = queue_of(client)
        asyncio.run(queue.submit("import"))
        asyncio.run(queue.submit("quantize", after=["import", "gone"]))
        assert asyncio.run(queue.depth()) == 1
        asyncio.run(queue.stop("import"))
        assert asyncio.run(queue.depth()) == 1
        assert QueuedJob.fetch("quantize", connection=client, serializer=JSONSerializer).get_status() == "queued"


def queue_of(client: BlockingRedis, *, most_queued: int = 100) -> JobQueue:
    return JobQueue(client, timeout_seconds=60, attempts=3, most_queued=most_queued)
