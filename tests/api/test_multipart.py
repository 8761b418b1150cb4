"""The multipart reader by itself."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.api.multipart import MOST_TEXT_BYTES, MultipartReader
from app.domain.errors import RequestInvalid

CONTENT_TYPE = "multipart/form-data; boundary=frontier"

contents = st.binary(max_size=200).map(lambda data: data.replace(b"frontier", b"")) | st.sampled_from(
    [b"\r\n--front", b"\r\n--\r\n", b"--frontie\r\n", b"\r", b"\n\r\n-"]
)


def form(parts: Sequence[tuple[str, str | None, bytes]]) -> bytes:
    body = b""
    for name, filename, content in parts:
        file = f'; filename="{filename}"' if filename is not None else ""
        body += f'--frontier\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        body += content + b"\r\n"
    return body + b"--frontier--\r\n"


def read(
    body: bytes, cuts: Sequence[int] = (), content_type: str = CONTENT_TYPE
) -> list[tuple[str, str | None, bytes]]:
    async def chunks() -> AsyncIterator[bytes]:
        edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
        for start, end in pairwise(edges):
            yield body[start:end]

    async def parts() -> list[tuple[str, str | None, bytes]]:
        reader = MultipartReader(chunks(), content_type=content_type)
        return [
            (part.name, part.filename, b"".join([chunk async for chunk in part.chunks]))
            async for part in reader.parts()
        ]

    return asyncio.run(parts())


@settings(max_examples=150, deadline=None)
@given(data=st.lists(contents, min_size=1, max_size=4), cuts=st.lists(st.integers(0, 10_000), max_size=30))
def test_any_chunking_gives_the_same_parts(data: list[bytes], cuts: list[int]) -> None:
    parts = [(f"part{number}", None if number % 2 else "a.bin", content) for number, content in enumerate(data)]
    assert read(form(parts), cuts) == parts


@given(length=st.integers(0, 120))
def test_a_form_that_is_cut_off_is_refused(length: int) -> None:
    body = form([("name", None, b"net"), ("file", "net.onnx", b"12345")])
    with pytest.raises(RequestInvalid):
        read(body[:length])


@pytest.mark.parametrize("body", [b"", b"random bytes", b"--other\r\n\r\n", b"--frontier\r\nbad header\r\n\r\nx"])
def test_bytes_that_are_no_form_are_refused(body: bytes) -> None:
    with pytest.raises(RequestInvalid):
        read(body)


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=" + "x" * 1000])
def test_an_unusable_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(RequestInvalid):
        read(form([("a", None, b"1")]), content_type=content_type)


def test_a_part_without_a_name_is_refused() -> None:
    with pytest.raises(RequestInvalid, match="no name"):
        read(b"--frontier\r\nContent-Type: text/plain\r\n\r\nx\r\n--frontier--\r\n")


def test_too_many_parts_are_refused() -> None:
    with pytest.raises(RequestInvalid, match="32 parts"):
        read(form([(f"part{number}", None, b"") for number in range(33)]))


def test_text_fields_are_bounded_and_utf8() -> None:
    async def text_of(body: bytes) -> str:
        async def chunks() -> AsyncIterator[bytes]:
            yield body

        async for part in MultipartReader(chunks(), content_type=CONTENT_TYPE).parts():
            return await part.text()
        return ""

    assert asyncio.run(text_of(form([("name", None, "größe".encode())]))) == "größe"
    for content in (b"x" * (MOST_TEXT_BYTES + 1), b"\xff"):
        with pytest.raises(RequestInvalid):
            asyncio.run(text_of(form([("name", None, content)])))
