"""The metrics, one module each, named as in the domain's table: each says which answers it applies to."""

from collections.abc import Sequence
from importlib import import_module

from app.domain.evidence import MetricScore
from app.domain.metrics import METRICS
from workers.measure.answers import Answers
from workers.measure.statistics import resampled
from workers.measure.tallies import Counted, Sampled, Tally


class Metrics:
    """Every metric that applies, over all rows: give it batch after batch, then ask for the scores.

    Args:
        forms: their names, float32 first and the variant last.
        rows: how many will come.
        names: which metrics to try; all by default.
    """

    def __init__(self, forms: Sequence[str], *, rows: int, names: Sequence[str] = tuple(METRICS)) -> None:
        self._forms = tuple(forms)
        self._rows = rows
        self._names = tuple(names)
        self._tallies: dict[str, Tally] | None = None

    def add(self, answers: Answers) -> None:
        """Take one batch; the first one decides which metrics apply.

        Raises:
            DatasetUnfit: a label that is no class of the model.
        """
        if self._tallies is None:
            self._tallies = tallies(answers, rows=self._rows, names=self._names)
        for tally in self._tallies.values():
            tally.add(answers)

    def scores(self) -> tuple[MetricScore, ...]:
        """Sum up, in the table's order; no row, no scores."""
        results = {name: tally.result() for name, tally in (self._tallies or {}).items()}
        sampled = {name: found for name, found in results.items() if isinstance(found, Sampled)}
        resamples = dict(zip(sampled, resampled([found.sample for found in sampled.values()]), strict=True))
        scores: list[MetricScore] = []
        for name, found in results.items():
            if isinstance(found, Sampled):
                scores.append(found.score(name, self._forms, resamples[name]))
            elif isinstance(found, Counted):
                scores.append(found.score(name, self._forms))
        return tuple(scores)


def tallies(first: Answers, *, rows: int, names: Sequence[str]) -> dict[str, Tally]:
    """Return the tallies of those metrics that apply to answers like these."""
    made = {name: import_module(f"{__name__}.{name}").tally(first, rows=rows) for name in names}
    return {name: tally for name, tally in made.items() if tally is not None}
