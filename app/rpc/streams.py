"""Many messages in, many answers out: worked on side by side, given in order."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

MOST_AHEAD = 16


async def in_order(
    asked: AsyncIterator[Asked], answer: Callable[[Asked], Coroutine[None, None, Answer]], *, ahead: int = MOST_AHEAD
) -> AsyncGenerator[Answer, None]:
    """Give the answers in the order of what was asked, while at most `ahead` of them are worked on.

    What is still worked on when the generator is closed is cancelled.
    """
    room = asyncio.Semaphore(ahead)
    begun: asyncio.Queue[asyncio.Task[Answer] | None] = asyncio.Queue()
    working: set[asyncio.Task[Answer]] = set()

    async def read() -> None:
        try:
            await room.acquire()
            async for each in asked:
                task = asyncio.create_task(answer(each))
                working.add(task)
                begun.put_nowait(task)
                await room.acquire()
        finally:
            begun.put_nowait(None)

    reading = asyncio.create_task(read())
    try:
        while (task := await begun.get()) is not None:
            yield await task
            working.discard(task)
            room.release()
        await reading
    finally:
        for left in (reading, *working):
            left.cancel()
        await asyncio.gather(reading, *working, return_exceptions=True)


async def until(over: asyncio.Event, asked: AsyncIterator[Asked]) -> AsyncGenerator[Asked, None]:
    """Give what is asked until an event is set."""
    end = asyncio.ensure_future(over.wait())
    coming: asyncio.Future[Asked] | None = None
    try:
        while True:
            coming = asyncio.ensure_future(anext(asked))
            await asyncio.wait((coming, end), return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                return
            try:
                yield coming.result()
            except StopAsyncIteration:
                return
    finally:
        for left in (coming, end):
            if left is not None:
                left.cancel()
