"""`docs/report.schema.json`, written from the `Report` record: `python -m app.report_schema`. Reads no environment."""

import json
import sys
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from app.domain.reports import Report

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MEDIA_TYPE = "application/schema+json"


@cache
def report_schema() -> dict[str, Any]:
    """Return the JSON schema that every report validates against, those of the first schema version included."""
    return {"$schema": DIALECT, **TypeAdapter(Report).json_schema()}


def page() -> str:
    """Return the file."""
    return json.dumps(report_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
