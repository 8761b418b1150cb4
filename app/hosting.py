"""Composition root of what starts runners: inside the only gateway process, or as a process beside several of them.

`python -m app.hosting SOCKET` is that process.
"""

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from app import __version__
from app.catalogue.cache import ArtifactCache
from app.catalogue.store import Store, open_store
from app.catalogue.variants import Variants
from app.domain.serving import Knobs, Servable
from app.serving.host import RunnerHost
from app.serving.terms import PoolLimits
from app.settings import Settings, read_settings
from app.telemetry.instruments import Instruments
from app.telemetry.logs import configure
from app.telemetry.runners import RunnerReadings

log = logging.getLogger(__name__)

_READ_EVERY_SECONDS = 5.0
_SHARE_OF_MEMORY = 0.8


class HostInstruments:
    """Tells Prometheus what happens to runners.

    Attributes:
        on_change: called when a runner became ready, or is so no more.
    """

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments
        self.on_change: Callable[[], None] = lambda: None

    def restarted(self, variant: Servable) -> None:
        """Count a runner that died."""
        self._instruments.runner_restarts.labels(*_labels(variant)).inc()
        self._instruments.used(_labels(variant))

    def retried(self, variant: Servable) -> None:
        """Count a request that is sent again."""
        self._instruments.request_retries.labels(*_labels(variant)).inc()

    def loaded(self, count: int) -> None:
        """Show how many runners are ready."""
        self._instruments.variants_loaded.set(count)
        self.on_change()


@asynccontextmanager
async def open_host(
    settings: Settings, *, store: Store, variants: Variants, instruments: Instruments
) -> AsyncIterator[RunnerHost]:
    """Open a host; its runners are drained when the block ends."""
    open_more_files()
    cache = ArtifactCache(store, variants, folder=settings.cache_dir, most_bytes=settings.cache_bytes)
    cache.sweep()
    observer = HostInstruments(instruments)
    host = RunnerHost(fetch=cache.fetch, observer=observer, limits=pool_limits(settings))
    readings = RunnerReadings(instruments, ask=host.statuses, held=host.held)
    observer.on_change = readings.notice
    reading = asyncio.create_task(readings.repeat(every=_READ_EVERY_SECONDS))
    try:
        yield host
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        await host.aclose()


def pool_limits(settings: Settings) -> PoolLimits:
    """Return what gateways and host keep to."""
    return PoolLimits(
        max_loaded=settings.max_loaded_variants,
        total_memory_bytes=settings.runners_memory_bytes or int(_SHARE_OF_MEMORY * _memory_bytes()),
        threads=settings.runner_threads,
        start_timeout_seconds=settings.runner_start_timeout_seconds,
        request_timeout_seconds=settings.predict_timeout_seconds,
        max_batch_size=settings.max_batch_size,
        max_queued=settings.max_queued_predictions,
        max_answer_bytes=settings.max_answer_bytes,
        memory_bytes=settings.runner_memory_bytes,
        knobs=Knobs(
            instances=settings.runner_instances,
            mode=settings.runner_mode,
            max_queue_delay_ms=settings.runner_max_queue_delay_ms,
        ),
    )


def open_more_files() -> None:
    """Let this process open as many files as it is allowed to: every segment, runner and client takes some."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _labels(variant: Servable) -> tuple[str, str, str]:
    return variant.model, str(variant.version), variant.name


async def _run(settings: Settings, path: Path) -> None:
    """Host runners for the gateways that connect to `path`, until told to stop."""
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    store = open_store(settings.store, s3=settings.s3)
    instruments = Instruments(version=__version__)
    async with open_host(settings, store=store, variants=Variants(store), instruments=instruments) as host:
        listening = asyncio.create_task(host.listen(path))
        await asyncio.wait([listening, asyncio.create_task(stopping.wait())], return_when=asyncio.FIRST_COMPLETED)
        if listening.done():
            await listening  # a host that nobody can reach ends with why
        listening.cancel()
        await asyncio.wait([listening])


def main() -> int:
    """Run the host; return the exit status."""
    settings = read_settings()
    configure(settings.log_level)
    path = Path(sys.argv[1])
    path.unlink(missing_ok=True)  # left by one that was killed
    asyncio.run(_run(settings, path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
