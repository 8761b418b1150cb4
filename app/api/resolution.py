"""Which variant answers, remembered for a moment: a prediction usually costs the store nothing."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from random import Random

from fastapi import Request

from app.catalogue.routing import Candidates, Routing
from app.domain.errors import ModelNotFound, OctetError, RequestInvalid, Unavailable
from app.domain.names import Reference
from app.domain.preprocessing import ImagePreprocessing
from app.domain.routing import Split
from app.domain.variants import Variant

KEEP_SECONDS = 1.0
RENEW_SECONDS = 0.5
IN_USE_SECONDS = 10.0
WITHOUT_STORE_SECONDS = 300.0
MISSING_SECONDS = 0.5
PREPARE_SECONDS = 5.0
MOST_KEPT = 1024
AFFINITY = "Octet-Affinity"
LONGEST_AFFINITY = 256

Prepare = Callable[[Variant], Awaitable[None]]
"""Make a variant ready to answer, unless it is."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A variant, how images become its input, and what its classes are called."""

    variant: Variant
    preprocessing: ImagePreprocessing | None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """Who may answer for a reference, as it was read at `read_at`; it is in force until `until`.

    Attributes:
        renew_at: from when on it is read again beside the requests, so that none of them waits for the store.
    """

    answers: Mapping[str, Resolved]
    split: Split
    read_at: float
    renew_at: float
    until: float

    def choose(self, affinity: str | None, random: Random) -> Resolved:
        name = self.split.at_random(random) if affinity is None else self.split.for_key(affinity)
        return self.answers[name]

    def variants(self) -> frozenset[Variant]:
        return frozenset(resolved.variant for resolved in self.answers.values())


class Resolver:
    """Remembers for at most a second who may answer, so a new route is in force everywhere after that.

    Where requests are being answered, variants that come in with a new route are prepared first, for `PREPARE_SECONDS`
    at most, and those of the old one go on answering meanwhile. While the store is out of reach, what was read last
    answers for `WITHOUT_STORE_SECONDS`. That there is no such model is remembered for `MISSING_SECONDS`, and no other
    failure.

    Args:
        prepare: loads a variant; None lets the first request do it.
        random: chooses by weights where a request brings no affinity.
    """

    def __init__(
        self,
        routing: Routing,
        *,
        prepare: Prepare | None = None,
        clock: Callable[[], float] = time.monotonic,
        random: Random | None = None,
    ) -> None:
        self._routing = routing
        self._prepare = prepare
        self._clock = clock
        self._random = random or Random()  # noqa: S311 - it spreads load, it keeps no secret
        self._kept: dict[Reference, _Kept] = {}
        self._missing: dict[Reference, tuple[str, float]] = {}
        self._readings: dict[Reference, asyncio.Task[_Kept]] = {}
        self._tasks: set[asyncio.Task[_Kept] | asyncio.Task[None]] = set()

    async def resolve(self, reference: Reference, *, affinity: str | None = None) -> Resolved:
        """Return what answers for a reference.

        Args:
            affinity: the same key gets the same variant, in every process, as long as the weights do not change.

        Raises:
            ModelNotFound, ModelNotReady, VariantNotFound: nothing can.
        """
        return (await self._in_force(reference)).choose(affinity, self._random)

    async def resolve_all(self, reference: Reference) -> tuple[Resolved, ...]:
        """Return everything that may answer for a reference: several where weights decide.

        Raises:
            ModelNotFound, ModelNotReady, VariantNotFound: nothing can.
        """
        return tuple((await self._in_force(reference)).answers.values())

    def forget(self) -> None:
        """Ask the store again next time, and take what it says at once: a route has changed, and is prepared."""
        self._kept.clear()
        self._missing.clear()
        self._readings.clear()

    async def aclose(self) -> None:
        """Stop what goes on beside the requests."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _in_force(self, reference: Reference) -> _Kept:
        kept, now = self._kept.get(reference), self._clock()
        if kept is None or now >= kept.until:
            self._check_missing(reference, now=now)
            return await asyncio.shield(self._reading(reference))
        if now >= kept.renew_at:
            self._reading(reference)
        return kept

    def _check_missing(self, reference: Reference, *, now: float) -> None:
        """Raise what the store said a moment ago."""
        message, until = self._missing.get(reference, ("", -math.inf))
        if now < until:
            raise ModelNotFound(message)

    def _reading(self, reference: Reference) -> asyncio.Task[_Kept]:
        """Return the task that reads the store for a reference; there is one at a time."""
        task = self._readings.get(reference)
        if task is None:
            task = self._readings[reference] = asyncio.create_task(self._read(reference))
            self._tasks.add(task)
            task.add_done_callback(lambda ended: self._read_ended(reference, ended))
        return task

    def _read_ended(self, reference: Reference, task: asyncio.Task[_Kept]) -> None:
        self._tasks.discard(task)
        if self._readings.get(reference) is task:
            del self._readings[reference]
        if not task.cancelled() and (error := task.exception()) is not None:
            # whoever waits is told too; if nobody does, the first request after `until` asks again
            log.debug("%s cannot be resolved: %s", reference, error)

    async def _read(self, reference: Reference) -> _Kept:
        found = await self._found(reference)
        if self._readings.get(reference) is not asyncio.current_task():
            return found  # `forget` came in between, so this may be older than the change
        old = self._kept.get(reference)
        if old is not None and self._must_prepare(found, instead_of=old):
            self._begin_to_prepare(reference, found.variants() - old.variants())
            found = replace(old, renew_at=math.inf, until=math.inf)
        if len(self._kept) >= MOST_KEPT:
            self._kept.clear()
        self._kept[reference] = found
        return found

    async def _found(self, reference: Reference) -> _Kept:
        """Ask the store; while it is out of reach, go on with what it said last."""
        now, old = self._clock(), self._kept.get(reference)
        try:
            return _kept_of(await self._routing.resolve(reference), now=now)
        except ModelNotFound as error:
            if len(self._missing) >= MOST_KEPT:
                self._missing.clear()
            if self._readings.get(reference) is asyncio.current_task():
                self._missing[reference] = error.message, now + MISSING_SECONDS
            raise
        except Unavailable as error:
            until = -math.inf if old is None else old.read_at + WITHOUT_STORE_SECONDS
            if old is None or now >= until:
                raise
            if old.until != until:  # the first time
                log.warning("%s goes on being answered as it was, for the store is out of reach: %s", reference, error)
            return replace(old, renew_at=now + RENEW_SECONDS, until=until)

    def _must_prepare(self, found: _Kept, *, instead_of: _Kept) -> bool:
        """Whether new variants come in where the old ones are in use; where they are not, nobody gains by waiting."""
        in_use = found.read_at - instead_of.read_at < IN_USE_SECONDS
        return self._prepare is not None and in_use and not found.variants() <= instead_of.variants()

    def _begin_to_prepare(self, reference: Reference, variants: frozenset[Variant]) -> None:
        task = asyncio.create_task(self._prepare_all(reference, variants))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _prepare_all(self, reference: Reference, variants: frozenset[Variant]) -> None:
        """Load what is new, then let the next request take what the store says by then, loaded or not."""
        try:
            async with asyncio.timeout(PREPARE_SECONDS):
                for variant in variants:
                    await self._load(variant)
        except TimeoutError:
            log.warning("the new route of %s is taken although its variants are not loaded yet", reference)
        finally:
            self._kept.pop(reference, None)

    async def _load(self, variant: Variant) -> None:
        if self._prepare is None:
            return
        try:
            await self._prepare(variant)
        except OctetError as error:
            log.warning("%s:%d@%s cannot be loaded: %s", variant.model, variant.version, variant.name, error)


def _kept_of(found: Candidates, *, now: float) -> _Kept:
    answers = {
        name: Resolved(variant=variant, preprocessing=found.manifest.preprocessing, labels=found.manifest.labels)
        for name, variant in found.variants.items()
    }
    return _Kept(
        answers=answers,
        split=Split(found.shares, salt=found.manifest.name),
        read_at=now,
        renew_at=now + RENEW_SECONDS,
        until=now + KEEP_SECONDS,
    )


def affinity_of(request: Request) -> str | None:
    """Return the request's affinity key; None if it has none.

    Raises:
        RequestInvalid: it is not 1 to 256 printable ASCII characters.
    """
    return checked_affinity(request.headers.get(AFFINITY))


def checked_affinity(key: str | None) -> str | None:
    """Return an affinity key unchanged if it is usable, or None.

    Raises:
        RequestInvalid: it is not 1 to 256 printable ASCII characters.
    """
    if key is not None and not (0 < len(key) <= LONGEST_AFFINITY and key.isascii() and key.isprintable()):
        raise RequestInvalid(f"{AFFINITY} is not usable: send 1 to {LONGEST_AFFINITY} printable ASCII characters.")
    return key
