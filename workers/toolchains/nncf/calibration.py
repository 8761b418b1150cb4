"""Calibration rows as NNCF takes them: an iterable it may walk more than once, one row in memory at a time."""

from collections.abc import Iterator
from pathlib import Path

from app.domain.tensors import Signature
from workers.data.batches import Tensors, batches
from workers.stages import Progress, RowSource

SHARE = 0.7
"""How much of the technique's time goes into calibrating, for the progress shown."""


class CalibrationRows:
    """The rows of a source in batches of one, so that every row counts alike in the statistics."""

    def __init__(self, source: RowSource, signature: Signature, *, scratch: Path, progress: Progress) -> None:
        self._source = source
        self._signature = signature
        self._scratch = scratch
        self._progress = progress

    def __len__(self) -> int:
        return len(self._source.rows)

    def __iter__(self) -> Iterator[Tensors]:
        rows = batches(self._source, self._signature, scratch=self._scratch, size=1)
        for done, batch in enumerate(rows, start=1):
            # told before the row goes out: NNCF does not come back after the last one
            self._progress(SHARE * done / len(self), f"calibrating: {done} of {len(self)} rows")
            yield batch.inputs
