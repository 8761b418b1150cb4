"""Inference requests made to break something, over real sockets: each is refused with a sentence, and nothing else is
harmed: not the connection, not the neighbours, not the memory that tensors travel in.
"""

import gzip
import io
import json
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper
from PIL import Image

from app.domain.preprocessing import ImagePreprocessing
from tests.api.harness import Api, publish_model, running_api
from tests.api.wire import (
    INFER,
    LENGTH,
    LONG,
    Answer,
    Row,
    check_discreet,
    check_well,
    content,
    head,
    request,
    row,
    tensor,
    twice,
    wire,
)
from tests.graphs import small

MOST_BYTES = 2**20
EYE = "/v2/models/eye/infer"
SMALL, LARGE = row(8), row(LONG, seed=1)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The application with `twice`, which takes any row, and `eye`, which takes images."""
    folder = tmp_path_factory.mktemp("target")
    nowhere = f"unix://{folder}/nobody-listens.sock"
    limits = {"max_predict_bytes": MOST_BYTES, "max_json_bytes": 2**18, "max_answer_bytes": 2**22}
    with running_api(folder / "data", redis_url=nowhere, **limits) as running:
        publish_model(running, folder, name="twice", graph=twice())
        publish_model(running, folder, name="four", graph=fours())
        publish_model(running, folder, name="eye", preprocessing=ImagePreprocessing(resize=8, crop=8))
        check_well(running)
        yield running


def fours() -> onnx.ModelProto:
    """Build a graph that fails on rows whose length is no multiple of four."""
    node = helper.make_node("Reshape", ["x", "to"], ["y"])
    weights = {"to": np.array([-1, 4], np.int64)}
    return small([node], inputs={"x": ("batch", "m")}, outputs={"y": ("batch", 4)}, weights=weights)


def check_refused(api: Api, sent: bytes, *, status: int = 422, words: str = "", lives: bool = True) -> Answer:
    """Send a request that must be refused; the connection must live on and the neighbours be answered right."""
    with wire(api) as connection:
        connection.send(sent)
        answer = connection.answer()
        assert (answer.status, words in answer.error) == (status, True), answer
        assert ("connection" not in answer.headers) == lives
        if lives:
            connection.send(request(SMALL))
            assert np.array_equal(connection.answer().numbers(), 2 * SMALL)
    check_well(api)
    return answer


def posted(body: bytes, length: int | str, *lines: str, path: str = INFER) -> bytes:
    return head(len(body), f"{LENGTH}: {length}", *lines, path=path) + body


WRONG_TENSORS: list[tuple[dict[str, Any], str]] = [
    ({"parameters": {"binary_data_size": SMALL.nbytes - 4}}, "lie behind"),
    ({"parameters": {"binary_data_size": SMALL.nbytes + 4}}, "lie behind"),
    ({"parameters": {"binary_data_size": -1}}, "binary_data_size of -1"),
    ({"parameters": {"binary_data_size": 2**63}}, "lie behind"),
    ({"parameters": {"binary_data_size": 1e300}}, ""),
    ({"shape": [2, 8]}, "needs"),
    ({"shape": [1, -8]}, "shape"),
    ({"shape": [-1]}, "shape"),
    ({"shape": [2**62, 2**62, 0]}, "shape"),
    ({"shape": [2**31, 2**33]}, "shape"),
    ({"shape": [1] * 100}, "shape"),
    ({"shape": [[1], [8]]}, "not valid"),
    ({"shape": [1, 8.5]}, "not valid"),
    ({"shape": [True, 8]}, "not valid"),
    ({"shape": []}, "needs"),
    ({"datatype": "FP64"}, "takes FP32"),
    ({"datatype": "BYTES"}, ""),
    ({"datatype": "float32"}, "takes FP32"),
    ({"datatype": "x" * 100_000}, "takes FP32"),
    ({"datatype": 5}, "not valid"),
    ({"name": "\u0000../../etc/passwd"}, "no input"),
    ({"name": "z" * 100_000}, "no input"),
    ({"data": [1, 2]}, "either data or"),
    ({"parameters": {"shared_memory_region": "octet"}, "data": [1]}, "shared_memory_region"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG_TENSORS)
def test_a_tensor_that_is_not_what_it_says_is_refused(target: Api, wrong: dict[str, Any], words: str) -> None:
    body, length = content(SMALL, tensor(SMALL, **wrong))
    check_refused(target, posted(body, length), words=words)


@pytest.mark.parametrize("cut", [1, 4, LARGE.nbytes])
def test_a_long_section_that_is_too_short_is_refused(target: Api, cut: int) -> None:
    body, length = content(LARGE, rest=LARGE.tobytes()[:-cut])
    check_refused(target, posted(body, length), words="lie behind")


def test_a_long_section_that_is_too_long_is_refused(target: Api) -> None:
    body, length = content(LARGE, rest=LARGE.tobytes() + b"\x00" * 70_000)
    check_refused(target, posted(body, length), words="lie behind")


@pytest.mark.parametrize("length", ["-1", "1e3", "999999", "9" * 400, "0x10", "٣", "1 2", "", "nan"])
def test_a_length_of_the_json_that_cannot_be_is_refused(target: Api, length: str) -> None:
    check_refused(target, posted(content(LARGE)[0], length).replace("٣".encode(), b"\xd9\xa3"), words=LENGTH)


@pytest.mark.parametrize("off", [-1, 1, 3])
def test_a_length_of_the_json_that_is_a_little_wrong_is_refused(target: Api, off: int) -> None:
    body, length = content(LARGE)
    check_refused(target, posted(body, length + off))


def test_numbers_that_are_none_come_back_as_they_are(target: Api) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 3e38, -0.0, 1e-45], np.float32)
    with wire(target) as connection, np.errstate(over="ignore"):
        connection.send(request(x))
        assert np.array_equal(connection.answer().numbers(), 2 * x, equal_nan=True)


def test_numbers_that_are_none_are_null_in_a_json_answer(target: Api) -> None:
    x = np.array([np.nan, np.inf], np.float32)
    body = json.dumps({"inputs": [tensor(x)]}).encode()
    with wire(target) as connection:
        connection.send(posted(body + x.tobytes(), len(body)))
        assert json.loads(connection.answer().body)["outputs"][0]["data"] == [None, None]


@pytest.mark.parametrize("text", [b"[NaN]", b"[Infinity]", b"[1e999]", b"[-1e400]", b'["1"]', b"[null]", b"{}"])
def test_numbers_that_json_does_not_have_are_refused(target: Api, text: bytes) -> None:
    body = b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":%s}]}' % text
    check_refused(target, head(len(body)) + body)


def test_ten_thousand_inputs_are_refused(target: Api) -> None:
    names = [
        {"name": f"x{n}", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 1}} for n in range(2000)
    ]
    body, length = content(SMALL, *names, rest=b"x" * 2000)
    check_refused(target, posted(body, length), words="no input")
    tiny = b",".join(b'{"name":"%d","shape":[],"datatype":"","data":1}' % n for n in range(5000))
    body = b'{"inputs":[%s]}' % tiny
    check_refused(target, head(len(body)) + body)


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"inputs":' * 20_000, b'{"inputs":' + b"[" * 900 + b"]" * 900 + b"}"]
)
def test_json_that_is_deep_is_refused(target: Api, text: bytes) -> None:
    check_refused(target, head(len(text)) + text)
    check_refused(target, head(len(text), "Content-Type: application/json", path="/predict?model=twice") + text)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"parameters": {"priority": -1}}, "priority"),
        ({"parameters": {"priority": 2**31}}, "priority"),
        ({"parameters": {"priority": "high"}}, "not valid"),
        ({"parameters": {"timeout": -1}}, "timeout"),
        ({"parameters": {"timeout": 1e300}}, ""),
        ({"parameters": {"binary_data_output": 3}}, "not valid"),
        ({"outputs": [{"name": "y"}] * 2}, "twice"),
        ({"outputs": [{"name": str(n)} for n in range(5000)]}, "no output"),
        ({"id": 5}, "not valid"),
        ({"colour": "red"}, "not valid"),
    ],
)
def test_a_wish_that_cannot_be_is_refused(target: Api, members: dict[str, Any], words: str) -> None:
    body, length = content(LARGE, **members)
    check_refused(target, posted(body, length), words=words)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e400", "-0.0", "1e-400", "soon", "", "1,5", "0x10"])
def test_a_deadline_that_is_none_is_refused(target: Api, text: str) -> None:
    body, length = content(SMALL)
    check_refused(target, posted(body, length, f"X-Request-Timeout-Ms: {text}"), words="X-Request-Timeout-Ms")


def test_a_deadline_that_nothing_can_keep_ends_the_request_alone(target: Api) -> None:
    with wire(target) as connection:
        for text in ("1e-300", "1e-9"):
            connection.send(request(LARGE, f"X-Request-Timeout-Ms: {text}"))
            answer = connection.answer()
            assert answer.status in (503, 504)
            assert answer.error
            if "connection" in answer.headers:
                break
    check_well(target)


@pytest.mark.parametrize("path", ["/v2/models/{}/infer", "/v2/models/twice/versions/{}/infer", "/v1/models/{}/predict"])
def test_a_thousand_models_that_are_not_there_leave_nothing_behind(target: Api, path: str) -> None:
    before = len(target.app.state.resolver._kept)
    with wire(target) as connection:
        for number in range(1000):
            connection.send(request(SMALL, path=path.format(765_000 + number)))
            answer = connection.answer()
            assert (answer.status, bool(answer.error)) == (404, True)
    assert len(target.app.state.resolver._kept) == before
    check_well(target)
    assert not re.search(r'="[^"]*765\d{3}', target.client.get("/metrics").text)  # in any label


@pytest.mark.parametrize(
    "name", ["..%2f..%2fetc", "%00", "a" * 5000, "%ff%fe", "TWICE", "twice%40", "twice:0", "twice:99999999999"]
)
def test_a_model_that_cannot_be_is_refused(target: Api, name: str) -> None:
    with wire(target) as connection:
        connection.send(request(LARGE, path=f"/v2/models/{name}/infer"))
        answer = connection.answer()
        assert (answer.status in (404, 422), bool(answer.error)) == (True, True)
    check_well(target)


def bombs() -> dict[str, tuple[str, bytes]]:
    zeros = b"\x00" * (64 * MOST_BYTES)
    flat = zlib.compress(zeros, 9)
    small = content(SMALL)[0]
    return {
        "gzip": ("gzip", gzip.compress(zeros)),
        "deflate": ("deflate", flat),
        "stacked": ("gzip", gzip.compress(gzip.compress(zeros))),
        "named twice": ("gzip, gzip", gzip.compress(gzip.compress(small))),
        "one in another": ("deflate, gzip", gzip.compress(flat)),
        "another coding": ("br", small),
        "no gzip": ("gzip", small),
        "cut off": ("gzip", gzip.compress(small)[:-9]),
        "something behind": ("gzip", gzip.compress(small) + b"x"),
        "two members": ("gzip", gzip.compress(small) * 2),
    }


@pytest.mark.parametrize("kind", list(bombs()))
def test_what_is_packed_to_harm_is_refused(target: Api, kind: str) -> None:
    coding, packed = bombs()[kind]
    for lines in ((f"{LENGTH}: {content(SMALL)[1]}",), ()):
        with wire(target) as connection:
            connection.send(head(len(packed), f"Content-Encoding: {coding}", *lines), packed)
            answer = connection.answer()
            assert answer.status in (413, 415, 422), answer
            assert answer.error
        check_well(target)


def png(width: int, height: int) -> bytes:
    """Write a PNG that says how large it is, and has next to nothing in it."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\x00" * 1000))]
    chunks = [
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in [*parts, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def picture(kind: str, *, side: int = 16, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((side, side), 50).convert("RGB").save(stream, kind, **options)
    return stream.getvalue()


def scans(count: int) -> bytes:
    """Write a JPEG that comes in very many scans."""
    whole = picture("JPEG", progressive=True)
    at = whole.rindex(b"\xff\xda")
    return whole[:at] + whole[at:-2] * count + whole[-2:]


def images() -> dict[str, bytes]:
    jpeg = picture("JPEG", side=64)
    return {
        "giant png": png(2**31 - 1, 2**31 - 1),
        "large png": png(50_000, 50_000),
        "thin png": png(2**31 - 1, 1),
        "no pixels": png(0, 0),
        "empty png": png(64, 64),
        "png bomb": picture("PNG", side=64)[:40] + zlib.compress(b"\x00" * 2**24),
        "many scans": scans(5000),
        "many segments": jpeg[:2] + b"\xff\xfe\x00\x02" * 5000 + jpeg[2:],
        "cut jpeg": jpeg[: len(jpeg) // 2],
        "head of a jpeg": jpeg[:20],
        "gif": picture("GIF"),
        "tiff": picture("TIFF"),
        "text": b"GIF89a and no more",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    }


@pytest.mark.parametrize("kind", list(images()))
@pytest.mark.parametrize("count", [1, 200])
def test_an_image_that_harms_is_refused_in_whatever_way_it_comes(target: Api, kind: str, count: int) -> None:
    image = images()[kind]
    if count == 1:
        check_refused(target, head(len(image), "Content-Type: image/jpeg", path="/predict?model=eye") + image)
    good = picture("PNG", side=8)
    section = b"".join(struct.pack("<I", len(each)) + each for each in [good] * (count - 1) + [image])
    described = {"name": "x", "datatype": "BYTES", "shape": [count], "parameters": {"binary_data_size": len(section)}}
    body, length = content(SMALL, described, rest=section)
    check_refused(target, posted(body, length, path=EYE))


def test_what_an_engine_stumbles_over_is_not_told(target: Api) -> None:
    check_refused(target, request(row(7), path="/v2/models/four/infer"), status=502, words="could not answer")


def test_an_answer_that_is_too_large_is_refused(target: Api) -> None:
    x = np.zeros(100_000, np.float32)
    body = json.dumps({"inputs": [tensor(x)]}).encode()
    check_refused(target, posted(body + x.tobytes(), len(body)), status=413, words="too large for JSON")


mutations = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert", "repeat"]), st.integers(0, 2**20), st.binary(min_size=1, max_size=6)
    ),
    min_size=1,
    max_size=5,
)


def mutated(data: bytes, changes: list[tuple[str, int, bytes]], *, first: int) -> bytes:
    """Change some bytes, most of them among the first ones."""
    made = bytearray(data)
    for kind, place, new in changes:
        at = place % min(len(made), first) if made else 0
        match kind:
            case "set":
                made[at : at + len(new)] = new
            case "insert":
                made[at:at] = new
            case "repeat":
                made[at:at] = made[max(0, at - 40) : at]
            case _:
                del made[at : at + 1 + place % 50]
    return bytes(made)


fuzzed = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzzed
@given(changes=mutations, x=st.sampled_from([SMALL, LARGE]))
def test_whatever_a_body_is_it_gets_an_answer(target: Api, changes: list[tuple[str, int, bytes]], x: Row) -> None:
    body, length = content(x)
    with wire(target) as connection:
        connection.send(posted(mutated(body, changes, first=length + 10), length))
        answer = connection.answer()
        assert answer.status == 200 or (answer.status in (413, 422) and answer.error), answer
        connection.send(request(SMALL))
        assert np.array_equal(connection.answer().numbers(), 2 * SMALL)


@fuzzed
@given(changes=mutations, x=st.sampled_from([SMALL, LARGE]))
def test_whatever_comes_over_a_connection_the_next_one_is_answered(
    target: Api, changes: list[tuple[str, int, bytes]], x: Row
) -> None:
    whole = request(x)
    with wire(target) as connection:
        connection.send(mutated(whole, changes, first=400))
        connection.hang_up()
        received = connection.everything()
        check_discreet(received)
        assert not received.startswith(b"HTTP/1.1 5")
    check_well(target)


def test_after_all_that_no_bug_was_met(target: Api) -> None:
    assert 'status="500"' not in target.client.get("/metrics").text
