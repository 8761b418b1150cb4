"""`octet serve`, `gateway` and `worker`: become that process. The client imports none of them."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

app = typer.Typer()

_PANEL = "Each option sets an environment variable"


def _option(variable: str, text: str) -> typer.models.OptionInfo:
    return typer.Option(envvar=variable, rich_help_panel=_PANEL, help=text)  # type: ignore[no-any-return]


Host = Annotated[str | None, _option("OCTET_HOST", "Address to bind to.")]
Port = Annotated[int | None, _option("OCTET_PORT", "Port to bind to; 0 takes a free one.")]
DataDir = Annotated[Path | None, _option("OCTET_DATA_DIR", "Folder for the local store, Redis' file and scratch.")]
StoreUrl = Annotated[str | None, _option("OCTET_STORE_URL", "s3://bucket/prefix, or a folder.")]
RedisUrl = Annotated[str | None, _option("OCTET_REDIS_URL", "redis://host:port/0")]
Processes = Annotated[int | None, _option("OCTET_GATEWAY_PROCESSES", "Gateway processes.")]
LogLevel = Annotated[str | None, _option("OCTET_LOG_LEVEL", "debug, info, warning or error.")]


@app.command("serve", help="Start all of Octet on this machine: Redis, gateway, worker, runners on demand.")
@app.command("gateway", help="Start a gateway: the HTTP API and the runners it needs.")
def launch(
    context: typer.Context,
    *,
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    store_url: StoreUrl = None,
    redis_url: RedisUrl = None,
    processes: Processes = None,
    log_level: LogLevel = None,
) -> None:
    """Become what the command is called."""
    _become(
        ["app.launcher", context.info_name or ""],
        host=host,
        port=port,
        data_dir=data_dir,
        store_url=store_url,
        redis_url=redis_url,
        gateway_processes=processes,
        log_level=log_level,
    )


@app.command()
def worker(
    *,
    data_dir: DataDir = None,
    store_url: StoreUrl = None,
    redis_url: RedisUrl = None,
    log_level: LogLevel = None,
) -> None:
    """Start a worker: takes jobs from Redis, one at a time."""
    _become(
        ["workers"],
        data_dir=data_dir,
        store_url=store_url,
        redis_url=redis_url,
        log_level=log_level,
    )


def _become(program: Sequence[str], **variables: str | int | Path | None) -> NoReturn:
    given = {f"OCTET_{name.upper()}": str(value) for name, value in variables.items() if value is not None}
    # the same process id: signals of a supervisor or of Ctrl-C reach the service itself
    os.execve(sys.executable, [sys.executable, "-m", *program], {**os.environ, **given})  # noqa: S606
