"""What the command line shows: facts on stdout, progress and errors on stderr. Knows no command."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic_core import to_json
from rich.console import Console, RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from app.client import training_progress
from app.domain.errors import OctetError
from app.domain.jobs import Job

ROOMY = 60
_STYLES = {
    "ready": "green",
    "succeeded": "green",
    "running": "cyan",
    "importing": "cyan",
    "failed": "red",
    "cancelled": "yellow",
}


def out() -> Console:
    """Return the console for what was asked for."""
    return Console(file=sys.stdout, highlight=False)


def err() -> Console:
    """Return the console for progress and errors."""
    return Console(file=sys.stderr, highlight=False)


def print_json(record: object) -> None:
    """Print a record, or several, as JSON for a program to read."""
    sys.stdout.write(to_json(record, indent=2).decode() + "\n")


def print_table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Print a table; words that name a state are coloured. The first column is kept whole where there is room."""
    console = out()
    table = Table(header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, overflow="fold", no_wrap=number == 0 and console.width >= ROOMY)
    for line in lines:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in line))
    console.print(table)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(name, Text(value, style=_STYLES.get(value, "")))
    out().print(grid)


def print_error(error: OctetError | OSError) -> None:
    """Print one red line."""
    code = f" [{error.code}]" if isinstance(error, OctetError) else ""
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
    err().print(Text(f"Error{code}: {error}{notes}", style="red"), soft_wrap=True)


def say(sentence: str) -> None:
    """Print a sentence beside the facts."""
    err().print(Text(sentence), soft_wrap=True)


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Open a file that is going to be sent; a terminal gets a bar."""
    console = err()
    with path.open("rb") as file:
        if not console.is_terminal:
            yield file
            return
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeElapsedColumn())
        with (
            Progress(*columns, console=console, transient=True) as progress,
            progress.wrap_file(file, total=path.stat().st_size, description=f"Sending {path.name}") as wrapped,
        ):
            yield wrapped


def show_live(job: Job, *, changes: Iterable[Job], on: Console | None = None) -> Job:
    """Show a job's progress until it is final, and return it: a bar in a terminal, else a line per step.

    While it trains, the bar counts training's own steps and has a line of losses below; without a terminal there is a
    line now and then.
    """
    console = on or err()
    show = _show_bar if console.is_terminal else _show_lines
    last = show(job, changes, console)
    console.print(_ending(last), soft_wrap=True)
    return last


def _show_bar(job: Job, changes: Iterable[Job], console: Console) -> Job:
    with _JobBar(console) as bar:
        bar.show(job)
        for change in changes:
            job = change
            bar.show(job)
    return job


class _JobBar(Progress):
    """A bar for what a job does, and a line of words below it where there is more to say."""

    def __init__(self, console: Console) -> None:
        text = TextColumn("{task.description}", markup=False)
        end = TextColumn("{task.fields[left]}", markup=False)
        self._words = Text()
        super().__init__(
            text, BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), end, console=console, transient=True
        )
        self._bar = self.add_task("", total=100, left="")

    def get_renderables(self) -> Iterator[RenderableType]:
        """Return what is drawn, from top to bottom."""
        yield self.make_tasks_table(self.tasks)
        if self._words:
            yield self._words

    def show(self, job: Job) -> None:
        """Draw where a job stands."""
        trained = training_progress.now_training(job)
        if trained is None:
            self._words = Text()
            self.update(self._bar, completed=job.percent, total=100, description=_what(job), left="")
            return
        self._words = Text(f"  {training_progress.numbers(trained)}", overflow="fold")
        self.update(
            self._bar,
            completed=trained.step,
            total=trained.steps,
            description=f"{_name(job)}: step {trained.step} of {trained.steps}{_attempt(job)}",
            left=f"{training_progress.left(trained)} left",
        )


def _show_lines(job: Job, changes: Iterable[Job], console: Console) -> Job:
    shown, rarely = "", training_progress.Rarely()
    for change in changes:
        job = change
        trained = training_progress.now_training(job)
        if trained is not None and not rarely.due(trained):
            continue
        told = (
            _what(job)
            if trained is None
            else f"{_name(job)}: training, {training_progress.whole(trained)}{_attempt(job)}"
        )
        if told != shown and not job.state.final:
            shown = told
            console.print(Text(f"{job.percent:3.0f} % {told}"), soft_wrap=True)
    return job


def _what(job: Job) -> str:
    return f"{_name(job)}: {job.step}{_attempt(job)}"


def _attempt(job: Job) -> str:
    return f" (attempt {job.attempt})" if job.attempt > 1 else ""


def _ending(job: Job) -> Text:
    took = ""
    if job.started_at and job.finished_at:
        took = f" in {(job.finished_at - job.started_at).total_seconds():.1f} s"
    return Text(f"{_name(job)} {job.state}{took}", style=_STYLES.get(job.state, ""))


def _name(job: Job) -> str:
    return f"{job.kind} {job.model or job.dataset or ''}".strip()
