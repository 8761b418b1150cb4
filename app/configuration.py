"""`docs/configuration.md`, written from `Settings`: `python -m app.configuration`. Reads no environment."""

import sys
from pathlib import Path

from pydantic.fields import FieldInfo

from app.settings import PREFIX, Settings, allowed

_INTRODUCTION = """\
# Configuration

Every environment variable that Octet reads, the same for `octet serve`, `gateway` and `worker`. This page is written by
`python -m app.configuration`.

| variable | default | must be | says |
| --- | --- | --- | --- |
"""


def page() -> str:
    """Return the page."""
    return _INTRODUCTION + "".join(_row(name, field) for name, field in Settings.model_fields.items())


def _row(name: str, field: FieldInfo) -> str:
    cells = (f"`{PREFIX}{name.upper()}`", _default(field.default), allowed(field), field.description or "")
    return f"| {' | '.join(cells)} |\n"


def _default(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, (bool, Path)):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(page())
