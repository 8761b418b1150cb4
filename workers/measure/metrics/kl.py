"""KL: the divergence of a form's class probabilities from float32's, in nats, averaged over the rows."""

from collections.abc import Sequence

import numpy as np

from workers.measure.answers import Answers
from workers.measure.tallies import Floats, Sums, lower_is_better, means


def tally(first: Answers, *, rows: int) -> Sums | None:  # noqa: ARG001 - as every metric
    """Apply to class scores, taken as logits. Float32's own divergence is 0, so the drop is the variant's."""
    return None if first.scores is None or len(first.outputs) == 1 else means(_divergences, drop=lower_is_better)


def _divergences(answers: Answers) -> Sequence[Floats]:
    return [np.zeros(len(answers.rows)), *answers.divergences]
