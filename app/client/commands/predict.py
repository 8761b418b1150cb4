"""`octet predict` and `octet status`: ask a model, ask the service."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from app.client import console
from app.client.commands.session import AsJson, connect
from app.client.records import Array, Class, Prediction
from app.domain.names import Reference

app = typer.Typer()

MOST_ROWS = 10


@app.command()
def predict(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="name, name:version or name:version@variant")],
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help=".npy, .npz, .json, .jpg or .png")],
    *,
    variant: Annotated[str | None, typer.Option(help="Which variant answers; default: the model's routing.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Name so many of the highest classes of every row.")] = None,
    affinity: Annotated[str | None, typer.Option(help="The same key gets the same of several variants.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the outputs to this .npz.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a model for an answer."""
    asked = Reference.parse(model)
    reference = Reference(name=asked.name, version=asked.version, variant=variant or asked.variant)
    answer = connect(context).predict(str(reference), file, top_k=top_k, affinity=affinity)
    if output:
        np.savez(output, **answer.outputs)  # type: ignore[arg-type]
    if as_json:
        outputs = {name: array.tolist() for name, array in answer.outputs.items()}
        top = {} if answer.top is None else {"top": answer.top}
        console.print_json({**_facts(answer), "outputs": outputs, **top})
        return
    _show(answer)


@app.command()
def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show whether the service can answer; exit 1 if it cannot."""
    octet = connect(context)
    readiness = octet.ready()
    if as_json:
        console.print_json(readiness)
    else:
        checks = readiness.checks.items()
        console.print_facts([("url", octet.base_url), ("status", readiness.status), *checks])
    if readiness.status != "ready":
        raise typer.Exit(1)


def _facts(answer: Prediction) -> dict[str, str | int | float]:
    return {
        "model": answer.model,
        "version": answer.version,
        "variant": answer.variant,
        "queue_ms": answer.queue_ms,
        "compute_ms": answer.compute_ms,
    }


def _show(answer: Prediction) -> None:
    console.print_facts(
        [
            ("answered by", f"{answer.model}:{answer.version}@{answer.variant}"),
            ("took", f"{answer.compute_ms:.2f} ms, and {answer.queue_ms:.2f} ms in the queue"),
        ]
    )
    if answer.top is not None:
        _show_top(answer.top)
        return
    for name, array in answer.outputs.items():
        if array.ndim == 2 and array.shape[1] > 1:  # noqa: PLR2004 - rows and classes
            _show_classes(name, array)
        else:
            console.print_facts([(name, f"{array.dtype}{list(array.shape)}"), ("", np.array2string(array))])


def _show_classes(name: str, scores: Array) -> None:
    shown = scores[:MOST_ROWS].astype(np.float64)
    lines = [(str(row), str(values.argmax()), f"{values.max():.4g}") for row, values in enumerate(shown)]
    console.print_table((f"row of {name}", "highest", "value"), lines)
    if len(scores) > MOST_ROWS:
        console.say(f"{len(scores) - MOST_ROWS} more rows: --json or --output gives all of them.")


def _show_top(top: tuple[tuple[Class, ...], ...]) -> None:
    lines = [
        (str(row), found.label or str(found.index), "not a number" if found.score is None else f"{found.score:.4g}")
        for row, classes in enumerate(top[:MOST_ROWS])
        for found in classes
    ]
    console.print_table(("row", "class", "value"), lines)
    if len(top) > MOST_ROWS:
        console.say(f"{len(top) - MOST_ROWS} more rows: --json or --output gives all of them.")
