"""A variant's open sessions: one for each number of streams, and once pixels come, one more of each for them."""

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.runners import Load
from app.domain.serving import CurvePoint, Servable, Tuning
from app.domain.variants import Engine
from workers.runners.engines import ENGINES, Session
from workers.runners.segments import storage
from workers.runners.tuning import GAIN, Run, space, tune

Arrays = Mapping[str, npt.NDArray[Any]]

log = logging.getLogger(__name__)

FREE_SIZE = 64
"""The guess for a size that a signature leaves free, such as a text's length."""

LARGEST_DIFFERENCE = 0.05
"""Of two engines' answers to random rows: roundings in int8 differ by a step here and there, errors by far more."""


class EngineBroken(Exception):
    """The engine failed on a request, and since then fails on what it could do before."""


class Sessions:
    """Opens what is asked for, once, and runs it.

    Args:
        artifact: the file's bytes, kept only while a session may still have to be opened from them.
    """

    def __init__(self, artifact: bytes, variant: Servable, *, engine: Engine, threads: int) -> None:
        self.engine = engine
        self._artifact: bytes | None = artifact
        self._variant = variant
        self.threads = threads
        self._opening = threading.Lock()
        self._open: dict[tuple[int, bool], Session] = {}
        self._proven: dict[bool, dict[str, npt.NDArray[Any]]] = {}

    def infer(self, inputs: Arrays, *, streams: int, lane: int, pixels: bool = False) -> Arrays:
        """Run once; the answer is valid until the lane's next call.

        Raises:
            RuntimeError: the engine failed on these inputs.
            EngineBroken: and on all others from now on. OpenVINO 2026.4.1 does so where a MatMul's shapes do not fit.
        """
        session = self.get(streams, pixels=pixels)
        try:
            outputs = session.infer(inputs, lane=lane)
        except RuntimeError as error:
            self._check_sound(session, lane, error, pixels=pixels)
            raise
        if pixels not in self._proven:
            self._proven[pixels] = {name: np.zeros_like(array) for name, array in inputs.items()}
        return outputs

    def _check_sound(self, session: Session, lane: int, failure: RuntimeError, *, pixels: bool) -> None:
        proven = self._proven.get(pixels)
        if proven is None:
            return
        try:
            session.infer(proven, lane=lane)
        except RuntimeError:
            raise EngineBroken(str(failure)) from failure

    def get(self, streams: int, *, pixels: bool = False) -> Session:
        """Return the session with so many streams, for the model's own tensors or for pixels.

        Raises:
            RuntimeError: the engine cannot hold the artifact as its record says.
        """
        session = self._open.get((streams, pixels))
        if session is not None:
            return session
        with self._opening:
            if (streams, pixels) not in self._open:
                self._open[streams, pixels] = self._opened(streams, pixels=pixels)
            return self._open[streams, pixels]

    def reopen(self) -> None:
        """Drop every session: an engine may be broken for good after shapes that did not fit."""
        self._open.clear()
        self._proven.clear()

    def keep(self, streams: set[int]) -> None:
        """Drop the sessions with other numbers of streams, and the artifact's bytes unless pixels may come."""
        self._open = {key: session for key, session in self._open.items() if key[0] in streams}
        if self._variant.preprocessing is None:
            self._artifact = None

    def _opened(self, streams: int, *, pixels: bool) -> Session:
        execution = self._variant.execution
        if self._artifact is None:
            raise RuntimeError(f"No session with {streams} streams was kept.")
        session = ENGINES[self.engine]()(
            self._artifact,
            execution,
            self._variant.signature,
            streams=streams,
            threads=self.threads,
            pixels=self._variant.preprocessing if pixels else None,
        )
        if session.float_precision != execution.float_precision:
            raise RuntimeError(
                f"The variant computes in {execution.float_precision}, "
                f"but on this CPU the engine takes {session.float_precision}."
            )
        return session


def open_sessions(load: Load) -> tuple[Sessions, Tuning]:
    """Read the artifact once, check its SHA-256, give those very bytes to the engine, tune it and warm it up.

    Raises:
        RuntimeError: the bytes are not the artifact's, or the engine cannot hold them as their record says.
        OSError: the file cannot be read.
    """
    variant, artifact = load.variant, _checked(Path(load.path), load.variant.artifact.sha256)
    threads = load.threads or len(os.sched_getaffinity(0))

    def opened(engine: Engine) -> Sessions:
        return Sessions(artifact, variant, engine=engine, threads=threads)

    recorded, choice = variant.execution.engine, load.knobs.engine
    if load.tuning is not None:
        sessions, tuning = opened(load.tuning.engine), load.tuning
    elif choice == "auto":
        sessions, tuning = _fastest(
            load, [opened(engine) for engine in sorted(ENGINES, key=lambda one: one != recorded)]
        )
    else:
        sessions = opened(recorded if choice == "recorded" else choice)
        tuning = _tuned(load, sessions)
    used = {tuning.latency.streams, tuning.throughput.streams}
    for streams in used:
        _warm_up(sessions, variant, streams, measured=bool(tuning.curve))
    sessions.keep(used)
    return sessions, tuning


def _fastest(load: Load, candidates: Sequence[Sessions]) -> tuple[Sessions, Tuning]:
    """Measure every engine and return the fastest; the first of them is the recorded one, which wins a tie.

    An engine that cannot run the artifact, or whose answers are not the recorded one's, is left out.
    """
    recorded = candidates[0]
    best, tuning = recorded, _tuned(load, recorded)
    curve = list(tuning.curve)
    for sessions in candidates[1:] if curve else ():
        try:
            found = _tuned(load, sessions)
            difference = _difference(recorded, sessions, load.variant)
        except RuntimeError as error:
            log.info("%s is not tried: %s", sessions.engine, error)
            continue
        curve += found.curve
        if difference > LARGEST_DIFFERENCE:
            log.warning("%s answers otherwise than %s, by %.1f %%", sessions.engine, recorded.engine, 100 * difference)
        elif found.throughput.rows_per_second > tuning.throughput.rows_per_second * GAIN:
            best, tuning = sessions, found
    return best, replace(tuning, curve=tuple(curve))


def _difference(one: Sessions, other: Sessions, variant: Servable) -> float:
    """Return how far two engines' answers to the same random rows lie apart: root mean square, over the answers'."""
    inputs = _noise(variant)
    mine = {name: array.astype(np.float64) for name, array in one.get(1).infer(inputs).items()}
    theirs = other.get(1).infer(inputs)
    apart = [
        np.sqrt(np.mean((mine[name] - theirs[name]) ** 2)) / max(np.sqrt(np.mean(mine[name] ** 2)), 1e-12)
        for name in mine
    ]
    return float(max(apart, default=0.0))


def _noise(variant: Servable) -> dict[str, npt.NDArray[Any]]:
    random = np.random.default_rng(0)
    return {
        name: random.standard_normal(array.shape).astype(array.dtype) if array.dtype.kind == "f" else array
        for name, array in zeros(variant, 2).items()
    }


def _checked(path: Path, sha256: str) -> bytes:
    artifact = path.read_bytes()
    digest = hashlib.sha256(artifact).hexdigest()
    if digest != sha256:
        raise RuntimeError(f"The artifact's bytes have SHA-256 {digest}, but its record says {sha256}.")
    return artifact


def _tuned(load: Load, sessions: Sessions) -> Tuning:
    """Measure; where sizes besides the rows are free, with a guess, and not at all if the graph does not take that."""
    variant = load.variant
    allowed = space(load.knobs, threads=sessions.threads, most_rows=load.max_batch_size)

    def prepare(streams: int, rows: int) -> Run:
        return _run(sessions.get(streams), zeros(variant, rows))

    try:
        return tune(allowed, prepare, engine=sessions.engine)
    except RuntimeError as error:
        if not _free(variant):
            raise
        log.info("%s is not measured: its graph takes no sizes of %d (%s)", variant.title, FREE_SIZE, error)
        sessions.reopen()
        unknown = CurvePoint(
            streams=1,
            threads=sessions.threads,
            busy=1,
            batch=1,
            p50_seconds=0.0,
            rows_per_second=0.0,
            engine=sessions.engine,
        )
        return Tuning(curve=(), latency=unknown, throughput=replace(unknown, streams=allowed.pinned or 1))


def _warm_up(sessions: Sessions, variant: Servable, streams: int, *, measured: bool) -> None:
    session = sessions.get(streams)
    if measured or not _free(variant):
        run = _run(session, zeros(variant, 1))
        for lane in range(session.lanes):
            run(lane)


def _run(session: Session, inputs: Arrays) -> Callable[[int], None]:
    def run(lane: int) -> None:
        session.infer(inputs, lane=lane)

    return run


def _free(variant: Servable) -> bool:
    return any(size is None for spec in variant.signature.inputs for size in spec.row_shape)


def zeros(variant: Servable, rows: int) -> dict[str, npt.NDArray[Any]]:
    """Return inputs of so many rows that are all zero; other free sizes are `FREE_SIZE`."""
    made = {}
    for spec in variant.signature.inputs:
        free = [rows if axis == spec.batch_axis else FREE_SIZE for axis in range(len(spec.shape))]
        shape = [instead if size is None else size for size, instead in zip(spec.shape, free, strict=True)]
        made[spec.name] = np.zeros(shape, storage(spec.dtype))
    return made
