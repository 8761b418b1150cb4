"""Requests in every form that a server takes, and how their answers are compared with the golden ones."""

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import orjson

from benchmarks.serving import http
from benchmarks.serving.load import Call
from benchmarks.serving.peers.engine import FLOAT32, JPEG, JSON, UINT8
from benchmarks.serving.subject import Subject

Body = Literal["float32", "uint8", "jpeg", "json"]
BODIES: tuple[Body, ...] = ("float32", "uint8", "jpeg", "json")
PIXELS: frozenset[Body] = frozenset({"uint8", "jpeg"})
"""Bodies that need the picture's preprocessing in the graph."""

Floats = npt.NDArray[np.float32]
Read = Callable[[http.Answer], Floats]
"""Takes the logits out of an answer of status 200."""

NPY = "application/x-npy"
_HEADER_LENGTH = "Inference-Header-Content-Length"
_LONGEST_MEMORY = 8


def calls(
    path: str, bodies: Sequence[tuple[Mapping[str, str], bytes]], *, subject: Subject, body: Body, read: Read
) -> list[Call]:
    """Return one call for every row: its headers and bytes, checked against its golden logits."""
    golden = subject.golden_jpeg if body == "jpeg" else subject.golden
    made = []
    for (headers, data), row in zip(bodies, golden, strict=True):
        head, content = http.request(path, headers=headers, body=data)
        made.append(Call(head=head, body=content, check=checker(row, noise=subject.noise, read=read)))
    return made


def checker(golden: Floats, *, noise: float, read: Read) -> Callable[[http.Answer], bool]:
    """Return what says whether an answer is the golden one; bytes that were once right are right at a glance."""
    known: set[bytes] = set()

    def check(answer: http.Answer) -> bool:
        if answer.status != http.OK:
            return False
        if answer.body in known:
            return True
        try:
            logits = read(answer)
        except (ValueError, KeyError, IndexError, TypeError):
            return False
        right = logits.size == golden.size and float(np.sqrt(np.mean((logits.reshape(-1) - golden) ** 2))) <= noise
        if right and len(known) < _LONGEST_MEMORY:
            known.add(answer.body)
        return right

    return check


def plain(subject: Subject, body: Body) -> list[tuple[Mapping[str, str], bytes]]:
    """Return each row as peers take it: the bytes alone, and what they are in `Content-Type`."""
    if body == "jpeg":
        return [({"Content-Type": JPEG}, jpeg) for jpeg in subject.jpegs]
    if body == "uint8":
        return [({"Content-Type": UINT8}, row.tobytes()) for row in subject.pixels]
    if body == "json":
        return [({"Content-Type": JSON}, b'{"data":' + _numbers(row) + b"}") for row in subject.floats]
    return [({"Content-Type": FLOAT32}, row.tobytes()) for row in subject.floats]


def raw_logits(answer: http.Answer) -> Floats:
    """Read an answer that is the logits' bytes."""
    return np.frombuffer(answer.body, np.float32)


def npy(subject: Subject) -> list[tuple[Mapping[str, str], bytes]]:
    """Return each float row as NumPy's file, wanting one back."""
    return [({"Content-Type": NPY, "Accept": NPY}, npy_bytes(row[None])) for row in subject.floats]


def npy_bytes(array: npt.NDArray[np.float32]) -> bytes:
    """Write NumPy's file of a float32 array."""
    shape = ", ".join(map(str, array.shape))
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape},), }}".encode()
    padded = text.ljust(-(-(len(text) + 11) // 64) * 64 - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + array.tobytes()


def npy_logits(answer: http.Answer) -> Floats:
    """Read an answer that is NumPy's file."""
    begin = 10 + int.from_bytes(answer.body[8:10], "little")
    return np.frombuffer(answer.body, np.float32, offset=begin)


def jpegs(subject: Subject) -> list[tuple[Mapping[str, str], bytes]]:
    """Return each row as a JPEG, wanting NumPy's file back."""
    return [({"Content-Type": JPEG, "Accept": NPY}, jpeg) for jpeg in subject.jpegs]


def protocol_json(subject: Subject) -> list[tuple[Mapping[str, str], bytes]]:
    """Return each float row in the Open Inference Protocol's JSON."""
    made: list[tuple[Mapping[str, str], bytes]] = []
    for row in subject.floats:
        tensor = {"name": subject.input_name, "shape": [1, *row.shape], "datatype": "FP32"}
        text = orjson.dumps({"inputs": [tensor]})[:-3] + b',"data":' + _numbers(row) + b"}]}"
        made.append(({"Content-Type": JSON}, text))
    return made


def protocol_json_logits(answer: http.Answer) -> Floats:
    """Read the only output of an answer in the protocol's JSON."""
    return np.array(orjson.loads(answer.body)["outputs"][0]["data"], np.float32)


def protocol_base64(subject: Subject) -> list[tuple[Mapping[str, str], bytes]]:
    """Return each float row as MLServer takes bytes in its protocol: in base64."""
    made: list[tuple[Mapping[str, str], bytes]] = []
    for row in subject.floats:
        data = base64.b64encode(row.tobytes()).decode()
        parameters = {"content_type": "base64"}
        tensor = {
            "name": subject.input_name,
            "shape": [1],
            "datatype": "BYTES",
            "data": [data],
            "parameters": parameters,
        }
        made.append(({"Content-Type": JSON}, orjson.dumps({"inputs": [tensor]})))
    return made


def protocol_base64_logits(answer: http.Answer) -> Floats:
    """Read the only output of an answer in base64."""
    return np.frombuffer(base64.b64decode(orjson.loads(answer.body)["outputs"][0]["data"][0]), np.float32)


def protocol_binary(subject: Subject, body: Body) -> list[tuple[Mapping[str, str], bytes]]:
    """Return each row in the protocol's binary form: a JSON header, then the tensor's bytes; wants the same back."""
    rows: Sequence[npt.NDArray[np.generic]] = list(subject.pixels if body == "uint8" else subject.floats)
    datatype = "UINT8" if body == "uint8" else "FP32"
    return [binary_request(subject.input_name, row[None], datatype=datatype) for row in rows]


def binary_request(name: str, array: npt.NDArray[np.generic], *, datatype: str) -> tuple[Mapping[str, str], bytes]:
    """Write one tensor in the protocol's binary form."""
    size = {"binary_data_size": array.nbytes}
    tensor = {"name": name, "shape": list(array.shape), "datatype": datatype, "parameters": size}
    header = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    return {"Content-Type": FLOAT32, _HEADER_LENGTH: str(len(header))}, header + array.tobytes()


def protocol_binary_logits(answer: http.Answer) -> Floats:
    """Read the only output of an answer in the protocol's binary form."""
    length = http.header(answer.head, _HEADER_LENGTH.lower().encode())
    if length is None:
        raise ValueError("The answer has no binary section.")
    return np.frombuffer(answer.body[int(length) :], np.float32)


def _numbers(row: Floats) -> bytes:
    return orjson.dumps(row.reshape(-1), option=orjson.OPT_SERIALIZE_NUMPY)
