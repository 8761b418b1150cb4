"""Packed bodies and answers: within their limits, and nothing but what they say."""

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from fastapi import Request, Response

from app.api.compression import Room, content_coding, packed_for, unpacked
from app.domain.errors import QueueFull, RequestInvalid, UnsupportedFormat, UploadTooLarge

TEXT = bytes(range(256)) * 8000
LIMIT = 4_000_000
PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
codings = pytest.mark.parametrize("coding", PACK)


def request(**headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw})


def unpack(packed: bytes, coding: str, *, most_bytes: int = LIMIT) -> tuple[bytes, list[int]]:
    counted: list[int] = []
    room = Room(most_bytes=most_bytes, advice="send less", count=counted.append)
    return asyncio.run(unpacked(memoryview(packed), coding=coding, room=room)), counted


@codings
def test_a_packed_body_comes_out_as_it_went_in_and_is_counted(coding: str) -> None:
    body, counted = unpack(PACK[coding](TEXT), coding)
    assert body == TEXT
    assert sum(counted) == len(TEXT)
    assert unpack(PACK[coding](b""), coding)[0] == b""


@codings
def test_a_bomb_is_refused_long_before_it_has_gone_off(coding: str) -> None:
    bomb = PACK[coding](bytes(200_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(UploadTooLarge, match="more than 4000000 bytes"):
            unpack(bomb, coding)
        assert tracemalloc.get_traced_memory()[1] < 4 * LIMIT
    finally:
        tracemalloc.stop()


@codings
def test_a_body_of_exactly_the_limit_is_taken(coding: str) -> None:
    assert len(unpack(PACK[coding](TEXT), coding, most_bytes=len(TEXT))[0]) == len(TEXT)
    with pytest.raises(UploadTooLarge):
        unpack(PACK[coding](TEXT), coding, most_bytes=len(TEXT) - 1)


@codings
def test_what_is_cut_off_damaged_or_followed_by_something_is_refused(coding: str) -> None:
    packed = PACK[coding](TEXT)
    wrong = [b"", packed[:-1], packed[: len(packed) // 2], packed + b"x", packed * 2, b"no such thing", TEXT]
    wrong.append(packed[:-3] + bytes(3 * [packed[-1] ^ 1]))
    for body in wrong:
        with pytest.raises(RequestInvalid, match=coding):
            unpack(body, coding)


def test_a_process_that_holds_enough_refuses_while_it_unpacks() -> None:
    def refuse(_count: int) -> None:
        raise QueueFull("full")

    room = Room(most_bytes=LIMIT, advice="send less", count=refuse)
    with pytest.raises(QueueFull):
        asyncio.run(unpacked(gzip.compress(TEXT), coding="gzip", room=room))


def test_only_one_known_coding_is_taken() -> None:
    known = {"": None, "identity": None, "gzip": "gzip", "X-GZIP": "gzip", "deflate": "deflate"}
    assert {text: content_coding(request(content_encoding=text)) for text in known} == known
    assert content_coding(request()) is None
    for text in ("br", "gzip, gzip", "gzip, deflate", "zstd"):
        with pytest.raises(UnsupportedFormat, match="gzip, deflate"):
            content_coding(request(content_encoding=text))


def answer_to(accepted: str, body: bytes = TEXT, *, media_type: str = "application/json") -> Response:
    return asyncio.run(packed_for(request(accept_encoding=accepted), Response(body, media_type=media_type)))


def test_an_answer_is_packed_for_who_asks() -> None:
    unpacks: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress}
    for accepted, coding in (
        ("gzip, deflate", "gzip"),
        ("br;q=1, deflate", "deflate"),
        ("gzip;q=0, deflate;q=0.5", "deflate"),
    ):
        answer = answer_to(accepted)
        assert answer.headers["content-encoding"] == coding
        assert answer.headers["content-length"] == str(len(answer.body))
        assert unpacks[coding](bytes(answer.body)) == TEXT


def test_an_answer_of_bytes_goes_as_it_is() -> None:
    for media_type in ("application/octet-stream", "application/x-npy", "application/x-npz"):
        answer = answer_to("gzip", media_type=media_type)
        assert ("content-encoding" in answer.headers, answer.body) == (False, TEXT)


def test_other_requests_go_on_while_a_long_answer_is_packed() -> None:
    async def turns() -> int:
        packing = asyncio.create_task(
            packed_for(request(accept_encoding="gzip"), Response(TEXT, media_type="application/json"))
        )
        counted = 0
        while not packing.done():
            await asyncio.sleep(0)
            counted += 1
        return counted

    assert asyncio.run(turns()) > 2


def test_an_answer_that_is_short_or_for_others_goes_as_it_is() -> None:
    for answer in (answer_to("gzip", b"x" * 1024), answer_to(""), answer_to("br, zstd"), answer_to("gzip; q=0")):
        assert "content-encoding" not in answer.headers
