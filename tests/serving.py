"""What tests of serving share: variants made on the spot, a pool that serves them, an observer that remembers."""

import asyncio
import hashlib
import os
import select
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import onnx

from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Artifact, Execution, Precision, Variant
from app.serving.pool import RunnerPool
from app.serving.terms import PoolLimits

TIMEOUT_SECONDS = 30.0


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
        self.on_loaded: Callable[[], None] = lambda: None

    def restarted(self, variant: Variant) -> None:
        del variant
        self.restarts += 1

    def retried(self, variant: Variant) -> None:
        del variant
        self.retries += 1

    def loaded(self, count: int) -> None:
        self.counts.append(count)
        if count:
            self.on_loaded()


@asynccontextmanager
async def serving(
    folder: Path, *, watch: Watch | None = None, limits: PoolLimits | None = None
) -> AsyncIterator[RunnerPool]:
    """Open a pool that serves the artifacts of `folder`, and close it."""
    told = watch or Watch()

    async def fetch(variant: Variant) -> Path:
        told.fetches += 1
        return folder / variant.artifact.file

    pool = RunnerPool(fetch=fetch, observer=told, limits=limits or PoolLimits(threads=1))
    try:
        yield pool
    finally:
        await pool.aclose()


def pid_of(pool: RunnerPool) -> int:
    """Return the process id of the only ready runner."""
    (pid,) = [kept.pid for kept in pool.loaded() if kept.pid is not None]
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
