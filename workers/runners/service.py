"""The runner's two threads: one receives, one computes in order of arrival. Batching will go at the queue between."""

import hashlib
import logging
import mmap
import os
import queue
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.errors import AnswerTooLarge, DeadlineExceeded, OctetError, RunnerCrashed, SignatureMismatch
from app.domain.runners import Answer, Attach, Detach, Infer, Load, LoadFailed, MeasureMemory, Ready, Refusal, Stop
from app.domain.tensors import TensorSpec
from workers.data.preprocessing import preprocess_for
from workers.runners.connection import Connection
from workers.runners.engines import ENGINES, Session
from workers.runners.memory import memory_use
from workers.runners.segments import lay_out, map_segment, new_segment, storage, view, write

log = logging.getLogger(__name__)

LONGEST_ERROR = 2000


def serve(connection: Connection) -> None:
    """Load what the first message names, then answer until the gateway says stop or is gone."""
    first = connection.receive()
    if first is None or not isinstance(first[0], Load):
        return
    load, started = first[0], time.monotonic()
    try:
        session = open_session(load)
    except (OSError, RuntimeError) as error:
        connection.send(LoadFailed(message=str(error)[:LONGEST_ERROR]))
        return
    seconds = time.monotonic() - started
    connection.send(
        Ready(engine_version=session.engine_version, float_precision=session.float_precision, load_seconds=seconds)
    )
    Service(connection, load=load, session=session).run()


def open_session(load: Load) -> Session:
    """Read the artifact once, check its SHA-256, give those very bytes to the engine, and run it once.

    Raises:
        RuntimeError: the bytes are not the artifact's, or the engine cannot hold them as `load.execution` says.
        OSError: the file cannot be read.
    """
    artifact = Path(load.path).read_bytes()
    digest = hashlib.sha256(artifact).hexdigest()
    if digest != load.sha256:
        raise RuntimeError(f"The artifact's bytes have SHA-256 {digest}, but its record says {load.sha256}.")
    threads = load.threads or len(os.sched_getaffinity(0))
    session = ENGINES[load.execution.engine](artifact, load.execution, load.signature, threads)
    if session.float_precision != load.execution.float_precision:
        raise RuntimeError(
            f"The variant computes in {load.execution.float_precision}, "
            f"but on this CPU the engine takes {session.float_precision}."
        )
    _warm_up(session, load.signature.inputs)
    return session


def _warm_up(session: Session, inputs: tuple[TensorSpec, ...]) -> None:
    """Run once on zeros, unless a size besides the batch is free: no guess fits every such graph."""
    if any(size is None for spec in inputs for size in spec.row_shape):
        return
    session.infer({spec.name: np.zeros([size or 1 for size in spec.shape], storage(spec.dtype)) for spec in inputs})


def _exit_deaf(failure: threading.ExceptHookArgs) -> None:
    """End the process: without the thread that receives, it would hold memory and hear nothing."""
    log.critical("The runner cannot receive any more", exc_info=failure.exc_value)
    os._exit(1)


class Service:
    """Answers one gateway about one loaded variant."""

    def __init__(self, connection: Connection, *, load: Load, session: Session) -> None:
        self._connection = connection
        self._signature = load.signature
        self._max_answer_bytes = load.max_answer_bytes
        self._session = session
        self._segments: dict[int, mmap.mmap] = {}
        self._requests: queue.SimpleQueue[Infer | None] = queue.SimpleQueue()

    def run(self) -> None:
        """Answer requests in order of arrival until `Stop`; return at once when the gateway is gone."""
        threading.excepthook = _exit_deaf
        threading.Thread(target=self._receive, name="receive", daemon=True).start()
        while (request := self._requests.get()) is not None:
            self._answer(request)

    def _receive(self) -> None:
        while (received := self._connection.receive()) is not None:
            match received:
                case Infer() as request, _:
                    self._requests.put(request)
                case Attach() as attach, int(descriptor):
                    self._segments[attach.segment] = map_segment(descriptor, attach.size_bytes)
                case Detach() as detach, _:
                    del self._segments[detach.segment]
                case MeasureMemory(), _:
                    self._connection.send(memory_use())
                case Stop(), _:
                    self._requests.put(None)
                case other:
                    raise RuntimeError(f"The gateway sent {other} out of turn.")
        os._exit(0)

    def _answer(self, request: Infer) -> None:
        """Answer or refuse one request; whatever it breaks, it breaks for itself alone."""
        try:
            self._compute(request)
        except OctetError as error:
            self._refuse(request, error)
        except Exception as error:
            log.exception("Request %d failed", request.id)
            self._refuse(request, RunnerCrashed(f"The runner could not answer: {error}"))

    def _refuse(self, request: Infer, error: OctetError) -> None:
        self._connection.send(Refusal(id=request.id, code=error.code, message=error.message[:LONGEST_ERROR]))

    def _compute(self, request: Infer) -> None:
        started = time.monotonic_ns()
        if started > request.deadline_ns:
            raise DeadlineExceeded("The request waited for its runner until its deadline: send fewer at a time.")
        segment = self._segments[request.segment]
        inputs = self._inputs(request, segment)
        begun = time.perf_counter()
        outputs = self._session.infer(inputs)
        seconds = time.perf_counter() - begun
        self._send(request, segment, outputs, started_ns=started, compute_seconds=seconds)

    def _inputs(self, request: Infer, segment: mmap.mmap) -> dict[str, npt.NDArray[Any]]:
        if request.image is None:
            return {part.name: view(segment, part) for part in request.inputs}
        if len(self._signature.inputs) != 1:
            raise SignatureMismatch("An image fits a model with one input only: send arrays named as the inputs.")
        spec = self._signature.inputs[0]
        row = preprocess_for(spec, segment[: request.image.size_bytes], request.image.preprocessing)
        return {spec.name: row}

    def _send(
        self,
        request: Infer,
        segment: mmap.mmap,
        outputs: dict[str, npt.NDArray[Any]],
        *,
        started_ns: int,
        compute_seconds: float,
    ) -> None:
        """Write the outputs behind the inputs, or into a segment of their own if they do not fit, and say where."""
        self._check_size(outputs)
        overflow, overflow_bytes = None, 0
        parts, end = lay_out(outputs, self._signature.outputs, start=request.outputs_at)
        if end > len(segment):
            parts, overflow_bytes = lay_out(outputs, self._signature.outputs, start=0)
            overflow = new_segment(overflow_bytes)
            segment = map_segment(os.dup(overflow), overflow_bytes)
        write(segment, parts, outputs)
        answer = Answer(
            id=request.id,
            outputs=parts,
            overflow_bytes=overflow_bytes,
            started_ns=started_ns,
            compute_seconds=compute_seconds,
            rows=request.rows,
        )
        self._connection.send(answer, descriptor=overflow)

    def _check_size(self, outputs: dict[str, npt.NDArray[Any]]) -> None:
        size = sum(array.nbytes for array in outputs.values())
        if size > self._max_answer_bytes:
            raise AnswerTooLarge(
                f"The answer has {size:,} bytes, over the limit of {self._max_answer_bytes:,}: "
                "send fewer rows, or raise OCTET_MAX_ANSWER_BYTES."
            )
