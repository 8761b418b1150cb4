"""The `octet` command line: puts the commands together, and turns every expected error into one line and an exit code.

Exit codes: 0 done, 1 a job or the service failed, 2 the request itself is wrong, 130 Ctrl-C.
"""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from app import __version__
from app.client import console
from app.client.client import DEFAULT_URL
from app.client.commands import datasets, jobs, models, predict, processes, quantize
from app.client.commands.session import Session
from app.domain.errors import InvalidInput, OctetError


class Commands(TyperGroup):
    """The root command: expected errors become one red line."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - the library's own type is private
        try:
            return super().invoke(ctx)
        except OctetError as error:
            console.print_error(error)
            raise typer.Exit(2 if isinstance(error, InvalidInput) else 1) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            console.print_error(error)
            raise typer.Exit(1) from error


app = typer.Typer(
    name="octet",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Octet: send a trained model, get it back quantized, with proof, and serve it.",
)
app.add_typer(models.app, name="models")
app.add_typer(datasets.app, name="datasets")
app.add_typer(jobs.app, name="jobs")
for commands in (quantize.app, predict.app, processes.app):
    app.add_typer(commands)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.out().print(f"octet {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    url: Annotated[str, typer.Option(envvar="OCTET_URL", help="Where Octet answers.")] = DEFAULT_URL,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Read the options that stand before the command."""
    context.obj = Session(url=url)


def main() -> None:
    """Run the command line; the entry point of `octet`."""
    app()


if __name__ == "__main__":
    main()
