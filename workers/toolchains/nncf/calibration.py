"""Calibration rows as NNCF takes them: an iterable it may walk more than once, one row in memory at a time."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from app.domain.tensors import Signature
from workers.data.batches import Tensors, batches
from workers.stage_records.common import Progress, RowSource

SHARE = 0.7
"""How much of the technique's time goes into calibrating, for the progress shown."""


class CalibrationRows:
    """The rows of a source in batches of one, so that every row counts alike in the statistics.

    Some statistics stop after the first `ahead` rows. A dataset may be sorted by class, so those are spread evenly
    over the source; the others follow. Walked again, it tells no progress: the share told never falls.

    Args:
        most: how many rows to give at all, evenly spread; None for every row.
        ahead: how many rows come first.
    """

    def __init__(
        self,
        source: RowSource,
        signature: Signature,
        *,
        scratch: Path,
        progress: Progress,
        most: int | None = None,
        ahead: int = 0,
    ) -> None:
        self._source = source
        self._signature = signature
        self._scratch = scratch
        self._progress = progress
        rows = _spread(source.rows, most or len(source.rows))
        first = _spread(rows, ahead)
        chosen = set(first)
        self._parts = [part for part in (first, tuple(row for row in rows if row not in chosen)) if part]

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[Tensors]:
        done, tell = 0, self._progress
        self._progress = _silence
        for part in self._parts:
            source = replace(self._source, rows=part)
            for batch in batches(source, self._signature, scratch=self._scratch, size=1):
                done += 1
                # told before the row goes out: NNCF does not come back after the last one
                tell(SHARE * done / len(self), f"calibrating: {done} of {len(self)} rows")
                yield batch.inputs


def first_row(source: RowSource, signature: Signature, *, scratch: Path) -> Tensors:
    """Return one row, as the graph takes it, and tell nobody."""
    first = replace(source, rows=source.rows[:1])
    return next(batches(first, signature, scratch=scratch, size=1)).inputs


def _silence(_share: float, _words: str) -> None:
    """Tell nothing."""


def _spread(rows: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return `count` of the rows, evenly spread, ascending; all of them if there are fewer."""
    if count >= len(rows):
        return rows
    return tuple(rows[index * len(rows) // count] for index in range(count))
