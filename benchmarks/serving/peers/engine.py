"""OpenVINO as every peer uses it: the same options, two threads, one or two streams, and a body turned into a row."""

import asyncio
import io
import os
import sys
import threading
from pathlib import Path
from typing import Any

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # OpenVINO finds no telemetry to send

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import openvino as ov  # noqa: E402
import orjson  # noqa: E402
from openvino.preprocess import PrePostProcessor  # noqa: E402
from PIL import Image  # noqa: E402

THREADS = 2
FLOATS, PIXELS = (1, 3, 224, 224), (1, 224, 224, 3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FLOAT32, UINT8, JPEG, JSON = "application/octet-stream", "application/x-uint8", "image/jpeg", "application/json"
JOBS = 64
Array = npt.NDArray[Any]


class Settings:
    """What the benchmark tells a peer, in its environment."""

    def __init__(self) -> None:
        self.artifact = Path(os.environ["BENCH_ARTIFACT"])
        self.port = int(os.environ["BENCH_PORT"])
        self.streams = int(os.environ["BENCH_STREAMS"])
        self.pixels = os.environ["BENCH_GRAPH"] == "pixels"
        self.workers = int(os.environ.get("BENCH_WORKERS", "0"))


def compiled(artifact: Path, *, streams: int, pixels: bool) -> ov.CompiledModel:
    """Compile the artifact; with `pixels` the image's preprocessing is part of the graph."""
    core = ov.Core()
    model = core.read_model(artifact)
    if pixels:
        model = _fused(model)
    options = {
        "INFERENCE_PRECISION_HINT": ov.Type.f32,
        "INFERENCE_NUM_THREADS": THREADS,
        "NUM_STREAMS": str(streams),
        "ENABLE_CPU_PINNING": False,
    }
    return core.compile_model(model, "CPU", options)


def _fused(model: ov.Model) -> ov.Model:
    steps = PrePostProcessor(model)
    given = steps.input()
    given.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    given.model().set_layout(ov.Layout("NCHW"))
    given.preprocess().convert_element_type(ov.Type.f32).scale(255.0).mean(list(MEAN)).scale(list(STD))
    return steps.build()


def array_of(media: str, body: bytes) -> Array:
    """Read a request's body."""
    if media == JPEG:
        return np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))[None]
    if media == UINT8:
        return np.frombuffer(body, np.uint8).reshape(PIXELS)
    if media == JSON:
        return np.array(orjson.loads(body)["data"], np.float32).reshape(FLOATS)
    return np.frombuffer(body, np.float32).reshape(FLOATS)


class SyncEngine:
    """For a pool of threads: each thread has an infer request of its own."""

    def __init__(self, settings: Settings) -> None:
        self._compiled = compiled(settings.artifact, streams=settings.streams, pixels=settings.pixels)
        self._own = threading.local()

    def infer(self, row: Array) -> bytes:
        """Answer with the logits' bytes."""
        request = getattr(self._own, "request", None)
        if request is None:
            request = self._own.request = self._compiled.create_infer_request()
        request.infer([row], share_inputs=True)
        return bytes(request.get_output_tensor(0).data)


class QueueEngine:
    """For an event loop: OpenVINO's AsyncInferQueue."""

    def __init__(self, settings: Settings) -> None:
        self._queue = ov.AsyncInferQueue(
            compiled(settings.artifact, streams=settings.streams, pixels=settings.pixels), JOBS
        )
        self._queue.set_callback(_answer)
        self._places = asyncio.Semaphore(JOBS)

    async def infer(self, row: Array) -> bytes:
        """Answer with the logits' bytes."""
        async with self._places:  # start_async() would block the loop where no job is free
            loop = asyncio.get_running_loop()
            future: asyncio.Future[bytes] = loop.create_future()
            self._queue.start_async([row], (loop, future), share_inputs=True)
            return await future


def _answer(request: ov.InferRequest, waiting: tuple[asyncio.AbstractEventLoop, "asyncio.Future[bytes]"]) -> None:
    loop, future = waiting
    loop.call_soon_threadsafe(_set, future, request.get_output_tensor(0).data.tobytes())


def _set(future: "asyncio.Future[bytes]", logits: bytes) -> None:
    if not future.done():
        future.set_result(logits)
