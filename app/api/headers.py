"""A request's headers where every microsecond counts: Starlette's look through all of them at every question."""

from starlette.datastructures import Headers
from starlette.types import Scope


def header(scope: Scope, name: bytes) -> str:
    """Return the first header of that name, in lower case, empty if there is none."""
    for each, value in scope["headers"]:
        if each == name:
            return bytes(value).decode("latin-1")
    return ""


class PlainHeaders(Headers):
    """Headers that are read once, into a dictionary; of several with one name the first counts, as everywhere."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope=scope)
        self._plain: dict[str, str] = {}
        for name, value in scope["headers"]:
            self._plain.setdefault(name.decode("latin-1"), value.decode("latin-1"))

    def get(self, key: str, default: str | None = None) -> str | None:  # type: ignore[override]
        """Return a header, in whatever case it is asked for."""
        return self._plain.get(key.lower(), default)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.lower() in self._plain

    def __getitem__(self, key: str) -> str:
        return self._plain[key.lower()]
