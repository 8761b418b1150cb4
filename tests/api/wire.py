"""HTTP by hand over a real socket: requests that no client would send, and answers one by one as they come."""

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from app.domain.errors import OctetError
from tests.api.harness import Api
from tests.graphs import small
from tests.running import wait_until

LENGTH = "Inference-Header-Content-Length"
INFER = "/v2/models/twice/infer"
LONG = 50_000
"""Numbers in a row whose bytes go past the parser into shared memory."""

Row = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The sentence of an error in the protocol's form. Fails if it is none, or tells what it should not."""
        assert self.status >= 400, self
        assert self.headers["content-type"].startswith("application/problem+json"), self
        members = json.loads(self.body)
        assert members["status"] == self.status
        assert members["error"] == members["detail"]
        check_discreet(self.body)
        return str(members["error"])

    def numbers(self) -> Row:
        """The output of `twice`. Fails if it is an error."""
        assert self.status == 200, self
        found: Row = np.frombuffer(self.body[int(self.headers[LENGTH.lower()]) :], np.float32)
        return found


def check_discreet(text: bytes) -> None:
    """Fail if a text tells of the inside: a stack trace, shared memory, a path of the machine."""
    told = text.lower()
    for secret in (b"traceback", b'file "', b"memfd", b"octet-tensors", b"/dev/shm", b"/proc/", b".py", b".cpp"):
        assert secret not in told, text
    for folder in (str(Path.home()), str(Path(__file__).parents[2]), "/tmp/"):  # noqa: S108 - looked for, not used
        assert folder.encode().lower() not in told, text


class Wire:
    """One connection."""

    def __init__(self, port: int, *, timeout: float = 30) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self._file = self.socket.makefile("rb")

    def send(self, *pieces: bytes) -> None:
        """Send pieces as one packet, as far as the kernel can."""
        self.socket.sendall(b"".join(pieces))

    def answer(self) -> Answer:
        """Read one answer. Fails if the connection ends before it is whole."""
        first = self._file.readline()
        assert first, "the connection has ended without an answer"
        lines = iter(self._file.readline, b"\r\n")
        headers = {name.lower(): value for name, value in (line.decode().rstrip().split(": ", 1) for line in lines)}
        return Answer(status=int(first.split()[1]), headers=headers, body=self._body(headers))

    def ended(self) -> bool:
        """Wait for the end of the connection; return whether nothing came before."""
        try:
            return self._file.read(1) == b""
        except ConnectionError:
            return True

    def hang_up(self) -> None:
        """Send no more."""
        with suppress(OSError):  # it may be closed already
            self.socket.shutdown(socket.SHUT_WR)

    def everything(self) -> bytes:
        """Read to the end."""
        try:
            return self._file.read()
        except ConnectionError:
            return b""

    def close(self) -> None:
        """Leave."""
        self._file.close()
        self.socket.close()

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if "content-length" in headers:
            return self._exactly(int(headers["content-length"]))
        body = b""
        while headers.get("transfer-encoding") == "chunked" and (size := int(self._file.readline(), 16)):
            body += self._exactly(size)
            self._file.readline()
        return body

    def _exactly(self, size: int) -> bytes:
        found = self._file.read(size)
        assert len(found) == size, "the connection has ended in the middle of an answer"
        return found


@contextmanager
def wire(api: Api) -> Iterator[Wire]:
    """Connect, and leave when the block ends."""
    opened = Wire(api.port)
    try:
        yield opened
    finally:
        opened.close()


def twice() -> onnx.ModelProto:
    """Build a graph that doubles x, float32[batch, any]: of any row one can say what its answer must be."""
    node = helper.make_node("Add", ["x", "x"], ["y"])
    return small([node], inputs={"x": ("batch", "m")}, outputs={"y": ("batch", "m")}, weights={})


def row(size: int = 8, *, seed: int = 0) -> Row:
    """Return one row of small whole numbers, which float32 doubles exactly."""
    drawn: Row = np.random.default_rng(seed).integers(-1000, 1000, size).astype(np.float32)
    return drawn


def head(length: int | str, *lines: str, path: str = INFER, method: str = "POST") -> bytes:
    """Write a request's line and headers; `length` is its `Content-Length`, empty for none."""
    announced = [f"Content-Length: {length}"] if length != "" else []
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: octet", *announced, *lines, "", ""]).encode()


def tensor(x: Row, **other: Any) -> dict[str, Any]:
    """Describe a row that comes as bytes, with whatever else is said of it."""
    described = {"name": "x", "datatype": "FP32", "shape": [1, x.size], "parameters": {"binary_data_size": x.nbytes}}
    return described | other


def content(x: Row, *inputs: Mapping[str, Any], rest: bytes | None = None, **members: Any) -> tuple[bytes, int]:
    """Write a binary request's body; return it and its JSON's length. By default it is a good one."""
    text = {"inputs": inputs or [tensor(x)], "parameters": {"binary_data_output": True}} | members
    json_bytes = json.dumps(text).encode()
    return json_bytes + (x.tobytes() if rest is None else rest), len(json_bytes)


def request(x: Row, *lines: str, path: str = INFER) -> bytes:
    """Write a good request, whole."""
    body, length = content(x)
    return head(len(body), f"{LENGTH}: {length}", *lines, path=path) + body


def lent(api: Api) -> int:
    """Count the segments' bytes that somebody uses now."""
    desks = api.services.pool._desks.values()
    return sum(desk.segments.size_bytes - desk.segments._idle_bytes for desk in desks)


def check_well(api: Api, *, port: int | None = None) -> None:
    """Check that a neighbour is answered right, short and long, and that no memory stays in use."""
    neighbour = Wire(port or api.port)
    try:
        for size in (8, LONG):
            x = row(size, seed=size)
            neighbour.send(request(x))
            assert np.array_equal(neighbour.answer().numbers(), 2 * x)
    finally:
        neighbour.close()
    check_nothing_held(api)


def check_nothing_held(api: Api) -> None:
    """Wait until nobody uses a segment, and no bytes count as held."""
    wait_until(lambda: lent(api) == 0, what="every segment is given back")
    wait_until(lambda: api.services.intake._held_bytes == 0, what="no bytes are held")


def refused(error: type[OctetError], answer: Answer) -> bool:
    """Whether an answer is this error."""
    return bool(answer.error) and json.loads(answer.body)["code"] == error.code
