"""Pydantic's findings as one sentence that names the field and what is allowed."""

from collections.abc import Mapping, Sequence
from typing import Any

_UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}
_LONGEST = 300


def explain(errors: Sequence[Any], *, of: str, allowed: Sequence[str] = ()) -> str:
    """Write the first of pydantic's errors as a sentence.

    Args:
        of: what was being read, such as `recipe`.
        allowed: field names, to list behind an unknown one.
    """
    if not errors:
        return f"The {of} cannot be read."
    first: Mapping[str, Any] = errors[0]
    field = ".".join(str(step) for step in first["loc"] if step not in ("body", "query", "path", "header"))
    if first["type"] in _UNKNOWN:
        listed = f": take {', '.join(allowed)}" if allowed else ": see /docs for what is known"
        return f"The {of} has an unknown field {field[:80]!r}{listed}."
    if first["type"] == "missing":
        return f"The {of} lacks {field[:80]!r}: send it."
    if first["type"] == "json_invalid":
        return f"The {of} is not valid JSON ({first.get('ctx', {}).get('error', first['msg'])})."
    where = f" in {field[:80]!r}" if field else ""
    return f"The {of} is not valid{where}: {_lowered(str(first['msg']))}."[:_LONGEST]


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:].rstrip(".")
