"""What happens on the wire: answers while the client still sends, clients that leave, a disk that is full."""

import socket
from pathlib import Path

import pytest

from app.domain.errors import StoreFull
from tests.api.harness import Api, publish_dataset, publish_model
from tests.running import wait_until

CHUNK = b"x" * 65_536


def connect(api: Api, *lines: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", api.port), timeout=30)
    connection.sendall("\r\n".join([*lines, "Host: octet", "", ""]).encode())
    return connection


def send_chunk(connection: socket.socket, data: bytes) -> None:
    connection.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def test_413_arrives_while_the_client_still_sends(api: Api) -> None:
    with connect(api, "POST /v1/models?name=net HTTP/1.1", "Transfer-Encoding: chunked") as connection:
        for _ in range(64):  # 4 MiB, twenty times the limit
            send_chunk(connection, CHUNK)
        connection.sendall(b"0\r\n\r\n")
        answer = connection.makefile("rb").read()  # to the end: the connection is closed
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"upload_too_large"' in answer
    assert api.stored() == []


def test_413_arrives_although_the_client_waits_for_it_before_it_sends_on(api: Api) -> None:
    with connect(api, "POST /v1/models?name=net HTTP/1.1", "Content-Length: 100000000") as connection:
        connection.sendall(CHUNK)
        answer = connection.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer


def test_who_asks_first_is_not_told_to_go_on(api: Api) -> None:
    asked = ("POST /v1/models?name=net HTTP/1.1", "Content-Length: 100000000", "Expect: 100-continue")
    with connect(api, *asked) as connection:
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_client_that_leaves_leaves_nothing_behind(api: Api) -> None:
    with connect(api, "POST /v1/models?name=net HTTP/1.1", "Content-Length: 150000") as connection:
        connection.sendall(CHUNK)
        wait_until(lambda: "models/net/1/claim" in api.stored(), what="the upload has begun")
    wait_until(lambda: not (api.store_folder / "models" / "net").exists(), what="the upload is undone")
    assert api.client.get("/v1/jobs").json() == {"jobs": []}


def test_a_form_that_is_cut_off_leaves_nothing_behind(api: Api) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="net.onnx"\r\n\r\n12345'
    answer = api.client.post("/v1/models", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")
    assert api.stored() == []


def test_a_full_disk_leaves_nothing_behind(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_arguments: object, **_options: object) -> None:
        raise StoreFull("The store has no room left.")

    monkeypatch.setattr(api.services.models, "receive", full)
    answer = api.client.post("/v1/models", params={"name": "net"}, content=b"1")
    assert (answer.status_code, answer.json()["code"]) == (503, "store_full")
    assert api.stored() == []


def test_a_full_queue_leaves_no_upload_and_no_job(api: Api, tmp_path: Path) -> None:
    publish_model(api, tmp_path)
    publish_dataset(api)
    before = api.stored()
    api.services.queue._most_queued = 0
    answer = api.client.post("/v1/models", params={"name": "net"}, content=b"1")
    assert (answer.status_code, answer.json()["code"]) == (503, "queue_full")
    asked = {"kind": "quantize", "model": "net", "calibration": "rows", "recipe": {"technique": "ptq_static"}}
    assert api.client.post("/v1/jobs", json=asked).json()["code"] == "queue_full"
    assert api.stored() == before
    assert api.client.get("/v1/jobs").json() == {"jobs": []}
