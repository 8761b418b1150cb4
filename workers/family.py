"""A process and all that it has started, held so that their end can be awaited although others are told of it."""

import asyncio
import os
import select
import signal
from contextlib import suppress

from workers import usage


class Family:
    """Those that live below one process, as often as somebody looked."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._held: dict[int, int] = {}
        self._lock = asyncio.Lock()

    def look(self) -> None:
        """Hold those that were started since the last look, and let go of those that have ended."""
        for pid in [pid for pid, descriptor in self._held.items() if _has_ended(descriptor)]:
            os.close(self._held.pop(pid))
        for pid in usage.family(self._pid):
            if pid not in self._held:
                with suppress(OSError):  # it has ended meanwhile
                    self._held[pid] = os.pidfd_open(pid)

    def end(self) -> None:
        """Kill all of them. The first is stopped before: it then starts no others while they are looked for."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGSTOP)
        self.look()
        self._kill()

    async def gone(self) -> None:
        """Kill those that outlived the first, wait until none of them runs any more, and hold none."""
        async with self._lock:
            self._kill()
            while self._held:
                pid, descriptor = next(iter(self._held.items()))
                await _end_of(descriptor)
                os.close(self._held.pop(pid))

    def _kill(self) -> None:
        for descriptor in self._held.values():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)


def _has_ended(descriptor: int) -> bool:
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(0))


async def _end_of(descriptor: int) -> None:
    if _has_ended(descriptor):
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
