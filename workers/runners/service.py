"""A runner's heart: one thread receives from host and gateways, the others compute what the scheduler starts."""

import itertools
import logging
import os
import queue
import selectors
import threading
import time
from collections.abc import Iterable, Sequence

from app.domain.errors import DeadlineExceeded, OctetError, RunnerCrashed
from app.domain.runners import (
    Attach,
    Cancel,
    Closing,
    Connect,
    Detach,
    Drain,
    Form,
    Infer,
    Inspect,
    Load,
    LoadFailed,
    Part,
    Ready,
    Refusal,
)
from app.domain.serving import RunnerStatus, Tuning
from workers.runners.computing import Arrays, Asked, Compute, Computed, Computer
from workers.runners.connection import Connection
from workers.runners.counters import Counters
from workers.runners.memory import memory_use
from workers.runners.peers import LONGEST_ERROR, Peer, Waiting
from workers.runners.scheduler import Lane, Scheduler, Setting, Start, Task
from workers.runners.segments import Board, map_segment, mark_begun
from workers.runners.sessions import EngineBroken, Sessions, open_sessions
from workers.runners.wording import outward

log = logging.getLogger(__name__)

_MILLISECOND_NS = 1_000_000


def serve(host: Connection) -> None:
    """Load what the first message names, then answer gateways until the host says drain or is gone."""
    first = host.receive()
    if first is None or not isinstance(first[0], Load):
        return
    load, began = first[0], time.monotonic()
    try:
        sessions, tuning = open_sessions(load)
    except (OSError, RuntimeError) as error:
        log.exception("The artifact cannot be loaded")
        host.send(LoadFailed(message=outward(error)[:LONGEST_ERROR]))
        return
    Service(host, load=load, sessions=sessions, tuning=tuning, load_seconds=time.monotonic() - began).run()


def _exit_deaf(failure: threading.ExceptHookArgs) -> None:
    """End the process: short of a thread it would hold memory and answer nothing."""
    log.critical("A thread of the runner failed", exc_info=failure.exc_value)
    os._exit(1)


class Service:
    """Holds one variant for one host and any number of gateways."""

    def __init__(
        self, host: Connection, *, load: Load, sessions: Sessions, tuning: Tuning, load_seconds: float
    ) -> None:
        self._host = host
        self._load = load
        self._sessions = sessions
        self._tuning = tuning
        self._load_seconds = load_seconds
        self._axes = {spec.name: spec.batch_axis or 0 for spec in load.variant.signature.inputs}
        self._lock = threading.Lock()
        self._scheduler = Scheduler(_setting(load, tuning))
        self._counters = Counters(rows_per_second=tuning.throughput.rows_per_second)
        self._board = Board()
        self._waiting: dict[int, Waiting] = {}
        self._serials = itertools.count()
        self._peers: dict[int, Peer] = {}
        self._selector = selectors.DefaultSelector()
        self._bell = os.eventfd(0)
        self._draining = False
        lanes = max(1, tuning.throughput.streams)
        self._work: list[queue.SimpleQueue[Start]] = [queue.SimpleQueue() for _ in range(lanes)]

    def run(self) -> None:
        """Serve until drained; return at once when the host is gone."""
        threading.excepthook = _exit_deaf
        for number in range(len(self._work)):
            threading.Thread(target=self._compute, args=(number,), name=f"lane {number}", daemon=True).start()
        session = self._sessions.get(self._tuning.latency.streams)
        self._host.send(
            Ready(
                engine_version=session.engine_version,
                float_precision=session.float_precision,
                load_seconds=self._load_seconds,
                tuning=self._tuning,
            ),
            descriptor=os.dup(self._board.descriptor),
        )
        self._selector.register(self._host.fileno(), selectors.EVENT_READ)
        self._selector.register(self._bell, selectors.EVENT_READ)
        while not (self._draining and not self._peers):
            self._receive()
        os._exit(0)  # nobody waits for anything: what the engine would tear down in order, the kernel does at once

    def _receive(self) -> None:
        for key, _ in self._selector.select(self._patience()):
            if key.fd == self._host.fileno():
                self._hear_host()
            elif key.fd == self._bell:
                os.eventfd_read(self._bell)
            else:
                self._hear_gateway(self._peers[key.fd])
        if self._load.knobs.max_queue_delay_ms:
            with self._lock:
                starts, late = self._next(time.monotonic_ns())
            self._refuse_late(late)
            self._hand_out(starts)

    def _patience(self) -> float | None:
        with self._lock:
            wakes_at = self._scheduler.wakes_at_ns()
        return None if wakes_at is None else max(0.0, (wakes_at - time.monotonic_ns()) / 1e9)

    def _hear_host(self) -> None:
        match self._host.receive():
            case None:
                os._exit(0)
            case Connect(), int(descriptor):
                self._connect(descriptor)
            case Inspect(), _:
                self._host.send(self._status())
            case Drain(), _:
                self._draining = True
                for peer in self._peers.values():
                    peer.send(Closing())
            case other:
                raise RuntimeError(f"The host sent {other} out of turn.")

    def _connect(self, descriptor: int) -> None:
        peer = Peer(Connection(descriptor))
        self._peers[descriptor] = peer
        self._selector.register(descriptor, selectors.EVENT_READ)
        if self._draining:
            peer.send(Closing())

    def _hear_gateway(self, peer: Peer) -> None:
        match peer.connection.receive():
            case None:
                self._forget(peer)
            case Infer() as request, _ if request.segment not in peer.segments:
                unknown = RunnerCrashed("The request's memory did not reach its runner: send it again.")
                peer.send(Refusal(id=request.id, code=unknown.code, message=unknown.message))
            case Infer() as request, _:
                self._enqueue(peer, request)
            case Cancel() as cancel, _:
                self._cancel(peer, cancel.id)
            case Attach() as attach, int(descriptor):
                peer.segments[attach.segment] = map_segment(descriptor, attach.size_bytes)
            case Detach() as detach, _:
                peer.segments.pop(detach.segment, None)
            case other:
                log.error("A gateway sent %s out of turn: disconnected", type(other).__name__)
                self._forget(peer)

    def _forget(self, peer: Peer) -> None:
        """Drop what a gateway asked that is gone."""
        descriptor = peer.connection.fileno()
        self._selector.unregister(descriptor)
        del self._peers[descriptor]
        with self._lock:
            for number in [number for number, waiting in self._waiting.items() if waiting.peer is peer]:
                if self._scheduler.drop(number) is not None:
                    del self._waiting[number]
            self._show()
        peer.connection.close()

    def _enqueue(self, peer: Peer, request: Infer) -> None:
        number, now = next(self._serials), time.monotonic_ns()
        asked = Asked(request=request, segment=peer.segments[request.segment], arrived_ns=now)
        task = Task(
            key=number,
            group=self._group(request, number),
            rows=request.rows,
            priority=request.priority,
            arrived_ns=now,
            deadline_ns=request.deadline_ns,
            alone=request.alone,
        )
        with self._lock:
            self._waiting[number] = Waiting(peer, asked)
            self._scheduler.add(task)
            starts, late = self._next(now)
        self._refuse_late(late)
        self._hand_out(starts)

    def _group(self, request: Infer, number: int) -> tuple[object, ...]:
        """Return what requests must share to be joined: the form, and every tensor's shape without its rows."""
        if request.form == "images":
            specs = self._load.variant.signature.inputs
            free = any(size is None for spec in specs for size in spec.row_shape)
            return (request.form, number) if free else (request.form,)
        axes = self._axes if request.form == "tensors" else {}
        return (request.form, *(_row_shape(part, axes.get(part.name, 0)) for part in request.inputs))

    def _cancel(self, peer: Peer, request_id: int) -> None:
        with self._lock:
            asked = [
                number
                for number, one in self._waiting.items()
                if one.peer is peer and one.asked.request.id == request_id and self._scheduler.drop(number)
            ]
            if not asked:
                return
            waiting = self._waiting.pop(asked[0])
            self._counters.refused["cancelled"] += 1
            self._show()
        waiting.refuse(DeadlineExceeded("The request was cancelled before it ran."))

    def _next(self, now_ns: int) -> tuple[list[Start], list[Waiting]]:
        """Return what starts now and what is too late to start. The lock is held."""
        late = [self._waiting.pop(task.key) for task in self._scheduler.expire(now_ns)]  # type: ignore[call-overload]
        self._counters.refused["deadline"] += len(late)
        starts = list(self._scheduler.start(now_ns))
        self._show()
        return starts, late

    def _show(self) -> None:
        self._board.show(rows=self._scheduler.waiting_rows, rows_per_second=self._counters.rows_per_second)

    def _hand_out(self, starts: Iterable[Start]) -> None:
        for start in starts:
            self._work[start.lane.number].put(start)

    def _refuse_late(self, late: Iterable[Waiting]) -> None:
        for waiting in late:
            waiting.refuse(DeadlineExceeded("The request waited until its deadline: send fewer at a time."))

    def _compute(self, number: int) -> None:
        """Compute what this lane is given, and go on with what the scheduler starts here next."""
        computer, mine = Computer(self._load), self._work[number]
        while True:
            start: Start | None = mine.get()
            while start is not None:
                start = self._run(start, computer)

    def _run(self, start: Start, computer: Computer) -> Start | None:
        began = time.monotonic()
        with self._lock:
            waiting = [self._waiting.pop(task.key) for task in start.tasks]  # type: ignore[call-overload]
            for one in waiting:
                one.peer.running += 1
        for one in waiting:
            mark_begun(one.asked.segment)
        answered = self._answer(waiting, start.lane, computer)
        rows = sum(one.asked.request.rows for one in waiting)
        with self._lock:
            self._scheduler.finish(start.lane)
            lanes = self._tuning.throughput.streams if start.lane.mode == "throughput" else 1
            if answered:
                self._counters.worked(rows, seconds=time.monotonic() - began, lanes=lanes)
            for one in waiting:
                one.peer.running -= 1
                one.peer.end_if_lost()
            starts, late = self._next(time.monotonic_ns())
            waits_for_others = self._scheduler.wakes_at_ns() is not None
        if waits_for_others:
            os.eventfd_write(self._bell, 1)  # the receiving thread looks anew at how long it may sleep
        self._refuse_late(late)
        mine = next((one for one in starts if one.lane.number == start.lane.number), None)
        self._hand_out(one for one in starts if one is not mine)
        return mine

    def _answer(self, waiting: Sequence[Waiting], lane: Lane, computer: Computer) -> bool:
        """Answer a batch, and return whether it was. If not, each request runs by itself and fails for itself alone."""
        try:
            computed = computer.compute([one.asked for one in waiting], self._runs_in(lane))
        except Exception as error:  # noqa: BLE001 - the runner's boundary: `_fail` tells and logs it
            if len(waiting) == 1:
                self._fail(waiting[0], error)
            if isinstance(error, EngineBroken):
                log.critical("The engine fails on what it could do before: this runner ends, and another one starts")
                os._exit(1)
            if len(waiting) > 1:
                for one in waiting:
                    self._answer([one], lane, computer)
            return False
        self._count(waiting, computed)
        for one, (answer, descriptor) in zip(waiting, computed.answers, strict=True):
            one.peer.send(answer, descriptor=descriptor)
        return True

    def _runs_in(self, lane: Lane) -> Compute:
        """Return the engine, in one lane."""
        streams = (self._tuning.latency if lane.mode == "latency" else self._tuning.throughput).streams

        def run(form: Form, inputs: Arrays) -> Arrays:
            return self._sessions.infer(inputs, streams=streams, lane=lane.number, pixels=form == "pixels")

        return run

    def _fail(self, waiting: Waiting, error: Exception) -> None:
        if not isinstance(error, OctetError):
            log.error("Request %d failed", waiting.asked.request.id, exc_info=error)
            error = RunnerCrashed(f"The runner could not answer: {outward(error)}")
        with self._lock:
            self._counters.refused["failed"] += 1
        waiting.refuse(error)

    def _count(self, waiting: Sequence[Waiting], computed: Computed) -> None:
        with self._lock:
            self._counters.ran(
                [one.asked.request.rows for one in waiting],
                queue_ns=computed.queue_ns,
                input_ns=computed.input_ns,
                compute_ns=computed.compute_ns,
                output_ns=computed.output_ns,
            )

    def _status(self) -> RunnerStatus:
        variant, memory = self._load.variant, memory_use()
        with self._lock:
            counted = self._counters
            return RunnerStatus(
                model=variant.model,
                version=variant.version,
                variant=variant.name,
                instance=self._load.instance,
                pid=os.getpid(),
                engine=self._tuning.engine,
                load_seconds=self._load_seconds,
                pss_bytes=memory.pss_bytes,
                peak_bytes=memory.peak_bytes,
                in_flight=len(self._scheduler),
                queued_rows=self._scheduler.waiting_rows,
                last_inference_ns=counted.last_inference_ns,
                rows=counted.rows,
                queue=counted.queue.seen(),
                input=counted.input.seen(),
                compute=counted.compute.seen(),
                output=counted.output.seen(),
                batches=counted.batch_statistics(),
                refused=dict(counted.refused),
                mode=self._scheduler.last_mode,
                tuning=self._tuning,
                knobs=self._load.knobs,
            )


def _setting(load: Load, tuning: Tuning) -> Setting:
    """Return what the scheduler keeps to: rows are joined where that was measured to pay, or the user says so."""
    mode = load.knobs.mode
    if mode == "auto" and tuning.latency.streams == tuning.throughput.streams > 1:
        mode = "throughput"  # one session serves both: there is nothing to switch
    return Setting(
        mode=mode,
        lanes=tuning.throughput.streams,
        latency_rows=1,
        throughput_rows=min(load.knobs.max_batch_size or tuning.throughput.batch, load.max_batch_size),
        max_queue_delay_ns=int(load.knobs.max_queue_delay_ms * _MILLISECOND_NS),
    )


def _row_shape(part: Part, axis: int) -> tuple[object, ...]:
    return part.name, part.shape[:axis], part.shape[axis + 1 :]
