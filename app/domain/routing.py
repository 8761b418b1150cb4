"""Routing: which variant of a model answers when the caller names none."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One numbered decision; the highest number is in force and the others are its history.

    Attributes:
        version: which version of the model answers.
        variant: which variant of that version.
    """

    number: int
    model: str
    version: int
    variant: str
    created_at: datetime
