"""Where a job's training stands, in words: for a terminal's line below the bar, and for a log's now and then."""

from app.domain.jobs import Job, JobState
from app.domain.training import TrainingProgress

_MOST_LINES = 20  # of a whole training
_MINUTE, _HOUR = 60, 3600


def now_training(job: Job) -> TrainingProgress | None:
    """Return where training stands while it is what the job does; None before and after."""
    return job.training_progress if job.state is JobState.RUNNING and "training" in job.step else None


def numbers(progress: TrainingProgress) -> str:
    """Return losses, learning rate and speed; what is not known yet is left out."""
    known = (("loss", progress.loss), ("held-out", progress.score), ("best", progress.best_score))
    losses = [f"{name} {value:.4g}" for name, value in known if value is not None]
    rates = [f"learning rate {progress.learning_rate:.2g}", f"{progress.rows_per_second:,.0f} rows/s"]
    return ", ".join([*losses, *rates])


def left(progress: TrainingProgress) -> str:
    """Return the time until the last step, such as `3 min 20 s`."""
    seconds = max(0, round(progress.seconds_left))
    if seconds < _MINUTE:
        return f"{seconds} s"
    if seconds < _HOUR:
        return f"{seconds // _MINUTE} min {seconds % _MINUTE} s"
    return f"{seconds // _HOUR} h {seconds % _HOUR // _MINUTE} min"


def whole(progress: TrainingProgress) -> str:
    """Return everything as one line."""
    return f"step {progress.step} of {progress.steps}, {numbers(progress)}, {left(progress)} left"


class Rarely:
    """Lets a word through when the held-out rows were looked at anew, but not before another 5 % of the steps."""

    def __init__(self) -> None:
        self._last: TrainingProgress | None = None

    def due(self, progress: TrainingProgress) -> bool:
        """Return whether this word is to be shown, and remember it if so."""
        last = self._last
        if last is not None and progress.step >= last.step:  # less: another attempt, or another training
            looked = (progress.score, progress.best_score) != (last.score, last.best_score)
            if not looked or (progress.step - last.step) * _MOST_LINES < progress.steps:
                return False
        self._last = progress
        return True
