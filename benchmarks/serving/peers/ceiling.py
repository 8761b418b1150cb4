"""The ceiling: the same engine asked in its own process, without any server. Prints one JSON object.

    python -m benchmarks.serving.peers.ceiling ROWS.npz SECONDS JOBS ...

One job is a synchronous call with all threads; more are as many jobs of an AsyncInferQueue, with one stream and two.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from benchmarks.serving.peers.engine import Array, compiled

WARM = 20
_kept: list[ov.AsyncInferQueue] = []


def main() -> None:
    """Measure every number of jobs with one and two streams."""
    rows, seconds, jobs = Path(sys.argv[1]), float(sys.argv[2]), [int(word) for word in sys.argv[3:]]
    kept = np.load(rows)
    pixels = "pixels" in kept
    inputs = [row[None] for row in kept["pixels" if pixels else "floats"]]
    artifact = Path(os.environ["BENCH_ARTIFACT"])
    found: list[dict[str, Any]] = []
    for streams in (1, 2):
        model = compiled(artifact, streams=streams, pixels=pixels)
        for count in jobs:
            if count == 1 and streams == 1:
                found.append(_sync(model, inputs, kept["golden"], seconds=seconds))
            elif count > 1:
                found.append(_queue(model, inputs, kept["golden"], seconds=seconds, jobs=count, streams=streams))
    json.dump(found, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # an AsyncInferQueue that has called back was seen to wait for ever in its destructor


def _sync(model: ov.CompiledModel, inputs: list[Array], golden: Array, *, seconds: float) -> dict[str, Any]:
    request = model.create_infer_request()
    wrong = 0
    latencies: list[float] = []
    for number in range(WARM):
        request.infer([inputs[number % len(inputs)]], share_inputs=True)
    used, began = time.process_time(), time.perf_counter()
    while (before := time.perf_counter()) < began + seconds:
        number = len(latencies) % len(inputs)
        request.infer([inputs[number]], share_inputs=True)
        logits = request.get_output_tensor(0).data[0]
        latencies.append(time.perf_counter() - before)
        wrong += not np.allclose(logits, golden[number], atol=1e-3)
    return _result(latencies, wrong, jobs=1, streams=1, seconds=time.perf_counter() - began, used=used)


def _queue(
    model: ov.CompiledModel, inputs: list[Array], golden: Array, *, seconds: float, jobs: int, streams: int
) -> dict[str, Any]:
    queue = ov.AsyncInferQueue(model, jobs)
    _kept.append(queue)
    latencies: list[float] = []
    wrong = [0]

    def end(request: ov.InferRequest, asked: tuple[int, float]) -> None:
        number, before = asked
        latencies.append(time.perf_counter() - before)
        wrong[0] += not np.allclose(request.get_output_tensor(0).data[0], golden[number], atol=1e-3)

    queue.set_callback(end)
    for number in range(WARM):
        queue.start_async([inputs[number % len(inputs)]], (number % len(inputs), 0.0), share_inputs=True)
    queue.wait_all()
    latencies.clear()
    used, began, count = time.process_time(), time.perf_counter(), 0
    while time.perf_counter() < began + seconds:
        number = count % len(inputs)
        queue.get_idle_request_id()  # blocks until there is one: a job's time begins after that
        queue.start_async([inputs[number]], (number, time.perf_counter()), share_inputs=True)
        count += 1
    queue.wait_all()
    return _result(latencies, wrong[0], jobs=jobs, streams=streams, seconds=time.perf_counter() - began, used=used)


def _result(
    latencies: list[float], wrong: int, *, jobs: int, streams: int, seconds: float, used: float
) -> dict[str, Any]:
    ordered = sorted(latencies)
    return {
        "jobs": jobs,
        "streams": streams,
        "wrong": wrong,
        "per_second": len(ordered) / seconds,
        "cpu_ms": 1000 * (time.process_time() - used) / len(ordered),
        **{
            f"p{share}_ms": 1000 * ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (50, 95, 99)
        },
    }


if __name__ == "__main__":
    main()
