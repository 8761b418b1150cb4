"""What tests of serving share: variants made on the spot, a pool that serves them, an observer that remembers."""

import asyncio
import hashlib
import itertools
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from app.domain.preprocessing import ImagePreprocessing
from app.domain.serving import RunnerStatus, Servable
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Artifact, Execution, Precision, Variant
from app.serving.host import RunnerHost
from app.serving.pool import RunnerPool
from app.serving.terms import PoolLimits
from tests.running import clean_environment, program, wait_until

TIMEOUT_SECONDS = 30.0


@pytest.fixture
def loop_of_gateways() -> tuple[str, dict[str, Any]]:
    """For a module's `anyio_backend`: run every test in the loop that gateways have; a host beside them shares it."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def both_loops(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """For a module's `anyio_backend`: run every test in both event loops."""
    return "asyncio", {"use_uvloop": request.param}


def variant_of(
    graph: onnx.ModelProto, folder: Path, *, name: str = "float32", precision: Precision = "float32"
) -> Variant:
    """Save the graph in `folder` as an artifact and return its record, with the signature the graph declares."""
    data = graph.SerializeToString()
    digest = hashlib.sha256(data).hexdigest()
    (folder / f"{digest}.onnx").write_bytes(data)
    return Variant(
        model="model",
        version=1,
        name=name,
        artifact=Artifact(file=f"{digest}.onnx", size_bytes=len(data), sha256=digest),
        execution=Execution(float_precision=precision),
        signature=Signature(
            inputs=tuple(_spec(value) for value in graph.graph.input),
            outputs=tuple(_spec(value) for value in graph.graph.output),
        ),
        recipe=None,
        job="0" * 32,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    sizes = tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim)
    return TensorSpec(name=value.name, dtype=DType(dtype), shape=sizes)


class Watch:
    """An observer that remembers what it was told.

    Attributes:
        on_loaded: called when a runner is ready, before it is asked anything.
    """

    def __init__(self) -> None:
        self.restarts = 0
        self.retries = 0
        self.counts: list[int] = []
        self.fetches = 0
        self.on_loaded: Callable[[], object] = lambda: None

    def restarted(self, variant: Servable) -> None:
        del variant
        self.restarts += 1

    def retried(self, variant: Servable) -> None:
        del variant
        self.retries += 1

    def loaded(self, count: int) -> None:
        self.counts.append(count)
        if count:
            self.on_loaded()


@asynccontextmanager
async def hosting(
    folder: Path, *, watch: Watch | None = None, limits: PoolLimits | None = None
) -> AsyncIterator[RunnerHost]:
    """Open a host that serves the artifacts of `folder`, and close it."""
    told = watch or Watch()

    async def fetch(variant: Servable) -> Path:
        told.fetches += 1
        return folder / variant.artifact.file

    host = RunnerHost(fetch=fetch, observer=told, limits=limits or PoolLimits(threads=1))
    try:
        yield host
    finally:
        await host.aclose()


@asynccontextmanager
async def gateway(
    host: RunnerHost,
    *,
    watch: Watch | None = None,
    limits: PoolLimits | None = None,
    preprocessing: ImagePreprocessing | None = None,
) -> AsyncIterator[RunnerPool]:
    """Connect a gateway's pool to a host, and close it."""

    async def describe(variant: Variant) -> Servable:
        return Servable.of(variant, preprocessing)

    pool = RunnerPool(
        host.connect, describe=describe, observer=watch or Watch(), limits=limits or PoolLimits(threads=1)
    )
    try:
        yield pool
    finally:
        await pool.aclose()


@asynccontextmanager
async def serving(
    folder: Path, *, watch: Watch | None = None, limits: PoolLimits | None = None
) -> AsyncIterator[RunnerPool]:
    """Open a host for one pool that serves the artifacts of `folder`, and close both."""
    told = watch or Watch()
    async with hosting(folder, watch=told, limits=limits) as host, gateway(host, watch=told, limits=limits) as pool:
        yield pool


@contextmanager
def host_process(folder: Path, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m app.hosting` at the socket `path` for the artifacts of `folder/cache`; kill it in the end."""
    told = {"OCTET_DATA_DIR": str(folder), "OCTET_RUNNER_THREADS": "1"}
    command = [sys.executable, "-m", "app.hosting", str(path)]
    with program(command, env=clean_environment() | told) as process:
        wait_until(lambda: _listens(path), what="the host listens")
        yield process


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        return probe.connect_ex(os.fspath(path)) == 0


@contextmanager
def socket_path() -> Iterator[Path]:
    """Yield a path for a socket, which may have at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="octet-test-") as short:
        yield Path(short) / "host.sock"


@asynccontextmanager
async def distant(path: Path) -> AsyncIterator[RunnerPool]:
    """Connect a gateway's pool to the host that listens at `path`, and close it."""

    async def describe(variant: Variant) -> Servable:
        return Servable.of(variant, None)

    async def connect() -> socket.socket:
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            end.connect(os.fspath(path))
        except OSError:
            end.close()
            raise
        return end

    pool = RunnerPool(connect, describe=describe, observer=Watch(), limits=PoolLimits(threads=1))
    try:
        yield pool
    finally:
        await pool.aclose()


def pids(host: RunnerHost) -> list[int]:
    """Return the process ids of a host's ready runners."""
    return [pid for held in host.held() for pid in held.pids]


def pid(host: RunnerHost) -> int:
    """Return the process id of a host's only ready runner."""
    (only,) = pids(host)
    return only


@contextmanager
def stopped(number: int) -> Iterator[None]:
    """Let a process stand still for as long as the block lasts."""
    os.kill(number, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(number, signal.SIGCONT)


async def figures(host: RunnerHost) -> RunnerStatus:
    """Ask a host's only runner how it fares."""
    (status,) = await host.statuses()
    return status


async def figures_at_rest(host: RunnerHost) -> RunnerStatus:
    """Ask a host's only runner how it fares until it holds no request: it answers one before it lays it aside."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while (status := await figures(host)).in_flight:
            continue
    return status


def asked(pool: RunnerPool) -> int:
    """Count the requests that a runner was sent and has not answered."""
    return sum(line.in_flight for desk in pool._desks.values() for line in desk.lines)


def begun(pool: RunnerPool) -> int:
    """Count those of them that it has begun to compute."""
    lines = [line for desk in pool._desks.values() for line in desk.lines]
    return sum(sent.segment.begun for line in lines for sent in line._sent.values())


FOREVER = 2**31 - 1
"""What `spinner` takes about half an hour for."""


def spinner() -> onnx.ModelProto:
    """Build a graph that answers x, int64[n, 1], after as many turns as its largest number says."""
    value, constant, integer = helper.make_tensor_value_info, helper.make_tensor, TensorProto.INT64
    body = helper.make_graph(
        [helper.make_node("Add", ["c", "one"], ["c2"]), helper.make_node("Identity", ["go"], ["go2"])],
        "turn",
        [value("i", integer, []), value("go", TensorProto.BOOL, []), value("c", integer, [])],
        [value("go2", TensorProto.BOOL, []), value("c2", integer, [])],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Loop", ["most", "yes", "zero"], ["turns"], body=body),
        helper.make_node("Sub", ["turns", "most"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    constants = [
        constant("one", integer, [], [1]),
        constant("zero", integer, [], [0]),
        constant("yes", TensorProto.BOOL, [], [1]),
    ]
    graph = helper.make_graph(
        nodes, "spin", [value("x", integer, ["n", 1])], [value("y", integer, ["n", 1])], constants
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def turns(*numbers: int) -> dict[str, npt.NDArray[np.int64]]:
    """Return inputs for `spinner`, a row for every number."""
    return {"x": np.array(numbers, np.int64)[:, None]}


async def pids_of(pool: RunnerPool) -> list[int]:
    """Return the process ids of the ready runners."""
    return [pid for held in await pool.held() for pid in held.pids]


async def pid_of(pool: RunnerPool) -> int:
    """Return the process id of the only ready runner."""
    (pid,) = await pids_of(pool)
    return pid


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, at most `TIMEOUT_SECONDS`."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():  # noqa: ASYNC110  (it turns true in another process, which sets no event here)
            await asyncio.sleep(0.002)


def ended(pid: int) -> bool:
    """Wait for a process to end, at most `TIMEOUT_SECONDS`; return whether it has."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        readable, _, _ = select.select([descriptor], [], [], TIMEOUT_SECONDS)
        return bool(readable)
    finally:
        os.close(descriptor)


@contextmanager
def files_left(count: int) -> Iterator[None]:
    """Let this process open only so many more files for as long as the block lasts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = (number for number in itertools.count() if not Path(f"/proc/self/fd/{number}").is_symlink())
    limit = next(itertools.islice(free, count, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_descriptors() -> int:
    """Count this process's descriptors."""
    return len(list(Path("/proc/self/fd").iterdir()))
