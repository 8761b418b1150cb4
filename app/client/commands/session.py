"""What every command shares: the connection, the `--json` option, and following a job to its end."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from app.client import console
from app.client.client import Octet
from app.client.problems import succeeded
from app.client.report_table import report_view
from app.domain.jobs import Job
from app.domain.recipes import Qat
from app.domain.reports import Report

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for programs.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What the options before the command said."""

    url: str


def connect(context: typer.Context) -> Octet:
    """Open the client that `--url` names; it closes with the command."""
    session = context.find_object(Session)
    if session is None:
        raise RuntimeError("A command runs below the root command only.")
    return context.with_resource(Octet(session.url))


def follow(octet: Octet, job: Job) -> Job:
    """Show a job live until it is final; Ctrl-C leaves it running and says so."""
    try:
        return console.show_live(job, changes=octet.follow(job.id))
    except KeyboardInterrupt:
        best = ", with --keep-best it keeps the best so far" if isinstance(job.recipe, Qat) else ""
        console.say(
            f"Job {job.id} goes on: `octet jobs follow {job.id}` shows it, `octet jobs cancel {job.id}` stops it{best}."
        )
        raise


def show_outcome(job: Job, *, as_json: bool) -> None:
    """Print a final job if JSON was asked for, and raise its failure if it failed."""
    if as_json:
        console.print_json(job)
    succeeded(job)


HtmlFile = Annotated[
    Path | None, typer.Option("--html", dir_okay=False, help="Write the report as a page into this file instead.")
]


def save_page(page: str, path: Path, *, as_json: bool) -> None:
    """Write a report's page to a file and print where it is."""
    path.write_text(page, encoding="utf-8")
    if as_json:
        console.print_json({"path": path})
        return
    console.out().print(str(path), markup=False, soft_wrap=True)


def show_report(report: Report, *, as_json: bool) -> None:
    """Print a report as the table, or as JSON."""
    if as_json:
        console.print_json(report)
        return
    out = console.out()
    out.print(report_view(report, width=out.width))
