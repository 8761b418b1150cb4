"""Records as JSON and back. Reading one runs its own checks, so what comes out is valid."""

from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from app.domain.errors import RecordUnreadable

Record = TypeVar("Record")


_adapters: dict[type[Any], TypeAdapter[Any]] = {}


def _adapter(record: type[Any]) -> TypeAdapter[Any]:
    if record not in _adapters:
        _adapters[record] = TypeAdapter(record)
    return _adapters[record]


def to_json(record: object) -> bytes:
    """Write a record as JSON."""
    return _adapter(type(record)).dump_json(record)


def from_json(record: type[Record], data: bytes, *, path: str) -> Record:
    """Read a record that lies under `path`.

    Raises:
        RecordUnreadable: the bytes are not such a record.
    """
    try:
        made: Record = _adapter(record).validate_json(data)
    except ValidationError as error:
        raise RecordUnreadable(f"The store's {path!r} cannot be read: restore it from a backup.") from error
    return made
