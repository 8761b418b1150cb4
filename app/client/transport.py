"""One HTTP connection to Octet: sends, checks, and reads answers into records. Knows no route."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, TypedDict, TypeVar, Unpack

import httpx
from pydantic import TypeAdapter, ValidationError

from app.client.problems import check, translated
from app.domain.errors import OctetError

T = TypeVar("T")

# Made once for each kind: making one takes milliseconds, and can swallow a Ctrl-C that comes in between.
_adapters: dict[type[Any], TypeAdapter[Any]] = {}


class Request(TypedDict, total=False):
    """What httpx takes to make a request, as far as Octet's routes need it."""

    params: Mapping[str, str | int]
    headers: Mapping[str, str]
    json: Mapping[str, Any]
    content: bytes | BinaryIO
    data: Mapping[str, str]
    files: Mapping[str, tuple[str, BinaryIO]]
    timeout: httpx.Timeout


def read_as(kind: type[T], body: bytes) -> T:
    """Read JSON into a record.

    Raises:
        OctetError: the answer has another form, as that of another version of Octet may.
    """
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    try:
        made: T = _adapters[kind].validate_json(body)
    except ValidationError as error:
        raise OctetError(
            f"The answer is not the {getattr(kind, '__name__', kind)} that this client knows "
            f"({error.error_count()} differences): use a client of the service's version."
        ) from error
    return made


class Transport:
    """Wraps one `httpx.Client`; every failure comes out as an `OctetError`."""

    def __init__(self, base_url: str, *, timeout_seconds: float) -> None:
        self.base_url = base_url.rstrip("/")
        self._http = httpx.Client(base_url=self.base_url, timeout=timeout_seconds)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, kind: type[T], **request: Unpack[Request]) -> T:
        """GET a record."""
        return read_as(kind, self.send("GET", path, **request).content)

    def post(self, path: str, kind: type[T], **request: Unpack[Request]) -> T:
        """POST, and read the record answered."""
        return read_as(kind, self.send("POST", path, **request).content)

    def put(self, path: str, kind: type[T], **request: Unpack[Request]) -> T:
        """PUT, and read the record answered."""
        return read_as(kind, self.send("PUT", path, **request).content)

    def send(self, method: str, path: str, **request: Unpack[Request]) -> httpx.Response:
        """Send a request and return the answer if it is a success."""
        response = self.send_unchecked(method, path, **request)
        check(response)
        return response

    def send_unchecked(self, method: str, path: str, **request: Unpack[Request]) -> httpx.Response:
        """Send a request whose error statuses are answers too."""
        with translated(self.base_url):
            return self._http.request(method, path, **request)

    @contextmanager
    def stream(self, method: str, path: str, **request: Unpack[Request]) -> Iterator[httpx.Response]:
        """Open an answer that is read as it comes. Network failures are httpx's own here: the caller may go on."""
        with self._http.stream(method, path, **request) as response:
            check(response)
            yield response
