"""As much of HTTP/1.1 as a load generator needs: a request written once, an answer read in place."""

from collections.abc import Mapping
from dataclasses import dataclass

_END = b"\r\n\r\n"
_STATUS = slice(9, 12)
OK, TIMED_OUT = 200, 504
FULL = (429, 503)


class AnswerMalformed(Exception):
    """The bytes are no HTTP/1.1 answer; the message has their beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One complete answer.

    Attributes:
        head: status line and headers, in small letters.
        closes: whether the server ends the connection after it.
    """

    status: int
    head: bytes
    body: bytes
    closes: bool


def request(path: str, *, headers: Mapping[str, str], body: bytes) -> tuple[bytes, bytes]:
    """Write a POST; head and body apart, so that one body in memory serves every request."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), body


def header(head: bytes, name: bytes) -> bytes | None:
    """Return a header's value, or None; `head` and `name` in small letters."""
    start = head.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    end = head.find(b"\r\n", start)
    return head[start : end if end >= 0 else len(head)].strip()


def answer(data: bytes | bytearray) -> Answer | None:
    """Read one answer from the bytes that have come so far; None if more must come.

    Raises:
        AnswerMalformed: they are none.
    """
    end = data.find(_END)
    if end < 0:
        return None
    head = bytes(data[:end]).lower()
    if not head.startswith(b"http/1.") or not head[_STATUS].isdigit():
        raise AnswerMalformed(f"No HTTP/1.1 answer: {bytes(data[:80])!r}.")
    body = _body(data, begin=end + len(_END), head=head)
    if body is None:
        return None
    return Answer(status=int(head[_STATUS]), head=head, body=body, closes=header(head, b"connection") == b"close")


def _body(data: bytes | bytearray, *, begin: int, head: bytes) -> bytes | None:
    length = header(head, b"content-length")
    if length is not None:
        end = begin + int(length)
        return bytes(data[begin:end]) if len(data) >= end else None
    if header(head, b"transfer-encoding") == b"chunked":
        return _chunks(data, begin=begin)
    raise AnswerMalformed(f"The answer says no length: {head[:200]!r}.")


def _chunks(data: bytes | bytearray, *, begin: int) -> bytes | None:
    parts: list[bytes] = []
    while True:
        line = data.find(b"\r\n", begin)
        if line < 0:
            return None
        size = int(bytes(data[begin:line]).split(b";")[0], 16)
        begin = line + 2 + size + 2
        if len(data) < begin:
            return None
        if size == 0:
            return b"".join(parts)
        parts.append(bytes(data[line + 2 : line + 2 + size]))
