"""What the service itself costs: a model that adds one to sixteen numbers, and requests good and bad to it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import orjson

from benchmarks.serving import calls, charts, http, octet
from benchmarks.serving.load import Call, Outcome
from benchmarks.serving.octet import EmbeddedOctet
from benchmarks.serving.outcome import Result, table
from benchmarks.serving.peers.engine import JPEG, JSON
from benchmarks.serving.points import closed
from benchmarks.serving.servers import Running, ServerDidNotStart, ask
from benchmarks.serving.subject import NOOP, NOOP_WIDTH, Subject

GATEWAYS = (1, 2)
CONNECTIONS = (1, 16, 64)
_INFER, _PREDICT = f"/v2/models/{NOOP}/infer", f"/v1/models/{NOOP}/predict"
_ROWS = 8
_BELOW_500, _FROM_400 = 500, 400


def noop(subject: Subject, *, seconds: float) -> Result:
    """Count the requests a second that one and two gateway processes answer when the model costs nothing."""
    rows: list[list[str]] = []
    curves: dict[str, list[tuple[float, float]]] = {}
    numbers: dict[str, object] = {}
    for gateways in GATEWAYS:
        server = EmbeddedOctet(settings={"OCTET_GATEWAY_PROCESSES": str(gateways)})
        with server.started(subject) as (client, root):
            door, wanted = good_calls(octet.port_of(client))
            running = Running(port=octet.port_of(client), root=root.pid, cold_seconds=0, calls=wanted)
            for connections in CONNECTIONS:
                before = time.process_time()
                point = closed(running, connections=connections, seconds=seconds, warm_seconds=1)
                share = (time.process_time() - before) / (seconds + 1)
                rows.append(
                    [
                        f"{gateways} gateway process(es), {door}", str(connections), f"{point.per_second:.0f}",
                        f"{point.per_second / gateways:.0f}", f"{point.p50_ms:.2f}/{point.p99_ms:.2f}",
                        f"{point.cpu_ms:.3f}", f"{share:.0%}", str(point.errors + point.refused),
                    ]
                )  # fmt: skip
                curves.setdefault(f"{gateways} gateway process(es)", []).append((connections, point.per_second))
                numbers[f"{gateways}-{connections}"] = asdict(point)
    head = [
        "",
        "clients",
        "requests/s",
        "per process",
        "p50/p99 ms",
        "CPU ms / request",
        "of a core for the load",
        "errors",
    ]
    text = f"### No-op model, {NOOP_WIDTH} float32 numbers\n\n{table(head, rows)}\n"
    plot = charts.lines("No-op model", curves, across="clients", up="requests / s")
    return Result(name="noop", text=text, plot=plot, numbers=numbers)


def good_calls(port: int) -> tuple[str, list[Call]]:
    """Return the way in that answers rightly, and requests to the no-op model for it.

    Raises:
        ServerDidNotStart: none does.
    """
    said: dict[str, str] = {}
    for door, wanted in _doors().items():
        outcome = ask(port, wanted[0])
        if outcome is Outcome.RIGHT:
            return door, wanted
        said[door] = outcome.name.lower()
    raise ServerDidNotStart(f"Octet gave no right answer to the no-op model: {said}.")


def _doors() -> dict[str, list[Call]]:
    rows = np.random.default_rng(3).normal(0, 1, (_ROWS, 1, NOOP_WIDTH)).astype(np.float32)
    binary: list[Call] = []
    files: list[Call] = []
    for row in rows:
        golden = (row + 1).reshape(-1)
        headers, body = calls.binary_request("x", row, datatype="FP32")
        binary.append(_call(_INFER, headers, body, golden=golden, read=calls.protocol_binary_logits))
        headers = {"Content-Type": calls.NPY, "Accept": calls.NPY}
        files.append(_call(_PREDICT, headers, calls.npy_bytes(row), golden=golden, read=calls.npy_logits))
    return {octet.BINARY: binary, octet.NPY: files}


def _call(path: str, headers: Mapping[str, str], body: bytes, *, golden: calls.Floats, read: calls.Read) -> Call:
    head, content = http.request(path, headers=headers, body=body)
    return Call(head=head, body=content, check=calls.checker(golden, noise=1e-5, read=read))


def bad_calls() -> list[Call]:
    """Return requests that must be refused with a status of the 400s, in words, without a trace."""
    wide = calls.npy_bytes(np.zeros((1, NOOP_WIDTH + 1), np.float32))
    row = [0.0] * NOOP_WIDTH
    tensor = {"name": "x", "shape": [1, NOOP_WIDTH], "datatype": "FP32", "data": row}
    json = {"Content-Type": JSON}
    npy = {"Content-Type": calls.NPY}
    bad: Sequence[tuple[str, Mapping[str, str], bytes]] = [
        (_PREDICT, npy, wide),
        (_PREDICT, npy, wide[:40]),
        (_PREDICT, npy, b"\x00" * 64),
        (_PREDICT, json, b""),
        (_PREDICT, json, b'{"inputs": {"x": [[1, 2'),
        (_PREDICT, json, b"[" * 2000),
        (_INFER, json, orjson.dumps({"inputs": [tensor | {"shape": [2, NOOP_WIDTH]}]})),
        (_INFER, json, orjson.dumps({"inputs": [tensor | {"datatype": "FP99"}]})),
        (_INFER, json, orjson.dumps({"inputs": [tensor | {"name": "y"}]})),
        (_INFER, {**json, "Inference-Header-Content-Length": "999999"}, orjson.dumps({"inputs": [tensor]})),
        ("/v2/models/no-such-model/infer", json, orjson.dumps({"inputs": [tensor]})),
        (_PREDICT, {"Content-Type": JPEG}, b"\xff\xd8\xff\xe0 no picture"),
    ]
    return [_bad(path, headers, body) for path, headers, body in bad]


def _bad(path: str, headers: Mapping[str, str], body: bytes) -> Call:
    def refused(answer: http.Answer) -> bool:
        clear = b'"error"' in answer.body and b"Traceback" not in answer.body
        return _FROM_400 <= answer.status < _BELOW_500 and clear

    head, content = http.request(path, headers=headers, body=body)
    return Call(head=head, body=content, check=refused)
