"""What an experiment gives: a table for a reader, a plot, and the numbers themselves."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One experiment's outcome.

    Attributes:
        name: of the plot's file, too.
        text: Markdown.
        plot: SVG.
        numbers: what the text was made of, as JSON can say it.
    """

    name: str
    text: str
    plot: str
    numbers: object = field(default_factory=dict)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table; the first column is text, the others are numbers."""
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ruler, *rows])
