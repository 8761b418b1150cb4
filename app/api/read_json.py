"""JSON text to Python, whatever its size. Knows no request."""

import orjson

from app.api import json_numbers
from app.domain.errors import RequestInvalid


def read_json(data: bytes | memoryview) -> object:
    """Parse JSON; long lists of numbers become arrays, see `app.api.json_numbers`.

    Raises:
        RequestInvalid: it is none; NaN and Infinity are not JSON either.
    """
    try:
        return json_numbers.read(data)
    except json_numbers.Irregular:
        return _read_any(data)


def _read_any(data: bytes | memoryview) -> object:
    try:
        content: object = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise RequestInvalid(f"The body is not valid JSON ({str(error)[:120]}): send JSON text in UTF-8.") from error
    return content
