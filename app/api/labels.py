"""Names of a model's classes as an upload brings them: a JSON list in a field, or a file with a name on each line."""

import json

from pydantic import TypeAdapter, ValidationError

from app.api.multipart import Part
from app.api.validation import explain
from app.domain.errors import RequestInvalid

LABELS = "labels"
MOST_LABELS_BYTES = 4 * 2**20

_LIST = TypeAdapter(tuple[str, ...])


async def read_labels(part: Part) -> str:
    """Read the form's part `labels` as JSON: a file whose name does not end in `.json` has a name on each line.

    Raises:
        RequestInvalid: it is longer than 4 MiB, or not UTF-8.
    """
    text = await part.text(most_bytes=MOST_LABELS_BYTES)
    if part.filename is None or part.filename.lower().endswith(".json"):
        return text
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n").split("\n")
    return json.dumps(lines)


def parse_labels(text: str | None) -> tuple[str, ...] | None:
    """Read labels from JSON; None stays None.

    Raises:
        RequestInvalid: it is no list of strings.
    """
    if text is None:
        return None
    try:
        return _LIST.validate_json(text)
    except ValidationError as error:
        raise RequestInvalid(
            explain(error.errors()[:1], of="list of labels") + " Send a JSON list of strings, or a file of lines."
        ) from error
