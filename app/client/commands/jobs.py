"""`octet jobs`: list, show, follow, cancel, log."""

import sys
from typing import Annotated

import typer

from app.client import console, training_progress
from app.client.commands.session import AsJson, HtmlFile, JobId, connect, follow, save_page, show_outcome, show_report
from app.domain.jobs import Job

app = typer.Typer(no_args_is_help=True, help="Jobs: what is going on, and what came of it.")


@app.command("list")
def list_jobs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    jobs = connect(context).jobs(limit=limit)
    if as_json:
        console.print_json(jobs)
        return
    lines = [(job.id, job.kind, job.model or job.dataset or "", job.state, f"{job.percent:.0f} %") for job in jobs]
    console.print_table(("job", "kind", "of", "state", "done"), lines)


@app.command()
def show(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job as it stands."""
    _show(connect(context).job(job_id), as_json=as_json)


@app.command("follow")
def follow_job(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Follow a job until it is final; exit 1 if it fails."""
    octet = connect(context)
    show_outcome(follow(octet, octet.job(job_id)), as_json=as_json)


@app.command()
def cancel(
    context: typer.Context,
    job_id: JobId,
    keep_best: Annotated[
        bool, typer.Option("--keep-best", help="Only end its training: the best so far is measured and published.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Stop a job."""
    _show(connect(context).cancel(job_id, keep_best=keep_best), as_json=as_json)


@app.command()
def log(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Print what a job's processes printed."""
    text = connect(context).log(job_id)
    if as_json:
        console.print_json({"job": job_id, "log": text})
        return
    sys.stdout.write(text)


@app.command()
def report(context: typer.Context, job_id: JobId, html: HtmlFile = None, as_json: AsJson = False) -> None:
    """Show what an evaluate job measured, or a quantize job that failed on what it had measured."""
    octet = connect(context)
    if html is not None:
        save_page(octet.job_report_page(job_id), html, as_json=as_json)
        return
    show_report(octet.job_report(job_id), as_json=as_json)


def _show(job: Job, *, as_json: bool) -> None:
    if as_json:
        console.print_json(job)
        return
    facts = {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "model": job.model,
        "dataset": job.dataset,
        "calibration": job.calibration,
        "evaluation": job.evaluation,
        "training": job.training,
        "variant": job.variant,
        "done": f"{job.percent:.0f} %",
        "step": job.step,
        "trained": training_progress.whole(job.training_progress) if job.training_progress else None,
        "attempt": str(job.attempt),
        "error": f"{job.error.code}: {job.error.message}" if job.error else None,
    }
    steps = [("took", f"{time.step}, {time.seconds:.1f} s") for time in job.steps]
    console.print_facts([*((name, value) for name, value in facts.items() if value), *steps])
