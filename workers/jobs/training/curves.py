"""How many points of the curves a report keeps, and which. Knows nothing of jobs."""

from collections.abc import Sequence
from itertools import pairwise

from app.domain.training import TrainingPoint


def thinned(points: Sequence[TrainingPoint], *, best_step: int, most: int) -> tuple[TrainingPoint, ...]:
    """Join neighbours evenly until at most `most` points are left, at least 3.

    The first point, the last, and the one of the best step end a group of their own, so their scores stay. A joined
    point has the loss of all its steps, and the last score among them.
    """
    if len(points) <= most:
        return tuple(points)
    last = len(points) - 1
    ends = {round(last * number / (most - 2)) for number in range(most - 1)}
    ends |= {next((place for place, point in enumerate(points) if point.step == best_step), 0)}
    groups = (
        _joined(points[before + 1 : end + 1], after=points[before].step) for before, end in pairwise(sorted(ends))
    )
    return (points[0], *groups)


def _joined(group: Sequence[TrainingPoint], *, after: int) -> TrainingPoint:
    """Join points that follow upon a step."""
    steps = [max(1, end - begin) for begin, end in pairwise([after, *(point.step for point in group)])]
    losses = [(point.loss, count) for point, count in zip(group, steps, strict=True) if point.loss is not None]
    total = sum(count for _, count in losses)
    looked = next((point for point in reversed(group) if point.score is not None), group[-1])
    return TrainingPoint(
        step=group[-1].step,
        loss=sum(loss * (count / total) for loss, count in losses) if losses else None,
        learning_rate=group[-1].learning_rate,
        score=looked.score,
        agreement=looked.agreement,
    )
