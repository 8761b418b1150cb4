"""`octet models`: upload, list, show, and choose which variant answers."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from rich.filesize import decimal

from app.client import console
from app.client.commands.session import AsJson, connect
from app.client.commands.uploads import ReadableFile, UploadName, Wait, facts_of, name_of, send
from app.client.records import ModelVersion
from app.domain.errors import RequestInvalid
from app.domain.preprocessing import ImagePreprocessing
from app.domain.routing import Route
from app.domain.variants import Variant

app = typer.Typer(no_args_is_help=True, help="Models: upload, list, show, route.")

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="name or name:version")]
VariantName = Annotated[str, typer.Argument(metavar="VARIANT", help="such as resnet20@int8 or resnet20:3@int8")]
PreprocessingFile = Annotated[
    Path | None,
    typer.Option("--preprocessing", exists=True, dir_okay=False, help="JSON file: how an image becomes the input."),
]


LabelsFile = Annotated[
    Path | None,
    typer.Option("--labels", exists=True, dir_okay=False, help="Text file: the name of a class on each line."),
]
By = Annotated[str | None, typer.Option(help="Who decides; default: this machine's address.")]
Note = Annotated[str | None, typer.Option(help="Why; kept with the decision.")]


@app.command()
def upload(
    context: typer.Context,
    file: ReadableFile,
    *,
    name: UploadName = None,
    preprocessing: PreprocessingFile = None,
    labels: LabelsFile = None,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Upload a model: .pt2 (torch.export), .onnx, or a .zip of ONNX with external data."""
    octet = connect(context)
    spec = read_preprocessing(preprocessing) if preprocessing else None
    names = read_labels(labels) if labels else None
    uploaded = send(
        octet,
        file,
        lambda opened: octet.upload_model(opened, name=name or name_of(file), preprocessing=spec, labels=names),
        again=octet.model,
        wait=wait,
    )
    _show(uploaded, [], as_json=as_json)


@app.command("list")
def list_models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the newest version of each model."""
    models = connect(context).models()
    if as_json:
        console.print_json(models)
        return
    lines = [(model.reference, model.state, model.file, decimal(model.size_bytes)) for model in models]
    console.print_table(("model", "state", "file", "size"), lines)


@app.command()
def show(context: typer.Context, model: ModelName, as_json: AsJson = False) -> None:
    """Show a model: what it takes and gives, and its variants."""
    octet = connect(context)
    found = octet.model(model)
    _show(found, octet.variants(found.reference) if found.manifest else [], as_json=as_json)


@app.command()
def routing(context: typer.Context, model: ModelName, as_json: AsJson = False) -> None:
    """Show which variant answers when a request names none, and what was decided before."""
    found = connect(context).routing(model)
    if as_json:
        console.print_json(found)
        return
    lines = [
        (
            str(route.number),
            answering(route),
            f"{route.created_at:%Y-%m-%d %H:%M:%S}",
            route.by or "",
            route.note or "",
        )
        for route in sorted({found.current, *found.history}, key=lambda route: -route.number)
    ]
    console.print_table(("number", "variant", "since", "by", "note"), lines)


@app.command()
def promote(
    context: typer.Context, variant: VariantName, *, by: By = None, note: Note = None, as_json: AsJson = False
) -> None:
    """Let this variant answer when a request names none."""
    _show_route(connect(context).route(variant, by=by, note=note), as_json=as_json)


@app.command()
def split(
    context: typer.Context,
    model: ModelName,
    weights: Annotated[list[str], typer.Argument(metavar="VARIANT=WEIGHT…", help="such as float32=0.9 int8=0.1")],
    *,
    by: By = None,
    note: Note = None,
    as_json: AsJson = False,
) -> None:
    """Let several variants share the requests that name none."""
    route = connect(context).split(model, read_weights(weights), by=by, note=note)
    _show_route(route, as_json=as_json)


@app.command()
def load(context: typer.Context, variant: VariantName) -> None:
    """Start a variant's runner, so that the first prediction does not wait."""
    connect(context).load(variant)
    console.say(f"{variant} is ready.")


@app.command()
def unload(context: typer.Context, variant: VariantName) -> None:
    """Stop a variant's runner."""
    connect(context).unload(variant)
    console.say(f"{variant} is unloaded.")


def read_weights(words: Sequence[str]) -> dict[str, float]:
    """Read `int8=0.9` and the like.

    Raises:
        RequestInvalid: a word has another form, or a variant comes twice.
    """
    pairs = [word.partition("=") for word in words]
    try:
        weights = {name: float(weight) for name, _, weight in pairs}
    except ValueError as error:
        raise RequestInvalid(f"{' '.join(words)} are no weights: write them as float32=0.9 int8=0.1.") from error
    if len(weights) < len(pairs):
        raise RequestInvalid(f"{' '.join(words)} names a variant twice: give each one weight.")
    return weights


def read_labels(path: Path) -> tuple[str, ...]:
    """Read the names of classes from a file with one on each line.

    Raises:
        RequestInvalid: it is not UTF-8.
    """
    try:
        return tuple(path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n"))
    except UnicodeDecodeError as error:
        raise RequestInvalid(f"{path} is not UTF-8 text: write the name of a class on each line.") from error


def answering(route: Route) -> str:
    """Return `resnet20:1@int8`, or `resnet20:1@float32 90 %, @int8 10 %`."""
    shares = [f"@{name} {100 * share:.3g} %" if route.weights else f"@{name}" for name, share in route.shares.items()]
    return f"{route.model}:{route.version}{', '.join(shares)}"


def read_preprocessing(path: Path) -> ImagePreprocessing:
    """Read a preprocessing from a JSON file.

    Raises:
        RequestInvalid: it is not one.
    """
    known = [field.name for field in fields(ImagePreprocessing)]
    try:
        given = from_json(path.read_bytes())
        unknown = sorted(set(given) - set(known)) if isinstance(given, dict) else []
        if unknown:
            raise RequestInvalid(f"{path} has an unknown field {unknown[0]!r}: a preprocessing has {', '.join(known)}.")
        return TypeAdapter(ImagePreprocessing).validate_python(given, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise RequestInvalid(f"{path} is not a preprocessing: {place}: {first['msg']}.") from error
    except ValueError as error:
        raise RequestInvalid(f"{path} is not JSON ({error}): write a JSON object.") from error


def _show(model: ModelVersion, variants: list[Variant], *, as_json: bool) -> None:
    if as_json:
        console.print_json(model)
        return
    facts = facts_of(model)
    if model.manifest:
        signature = model.manifest.signature
        facts += [("takes", f"{spec.name}: {spec.describe()}") for spec in signature.inputs]
        facts += [("gives", f"{spec.name}: {spec.describe()}") for spec in signature.outputs]
        if model.manifest.preprocessing:
            facts.append(("preprocessing", to_json(model.manifest.preprocessing).decode()))
        facts.append(("parameters", f"{model.manifest.parameters:,}"))
    if model.label_count is not None:
        facts.append(("labels", f"{model.label_count:,}"))
    facts += [("variant", f"{variant.name}, {decimal(variant.artifact.size_bytes)}") for variant in variants]
    console.print_facts(facts)


def _show_route(route: Route, *, as_json: bool) -> None:
    if as_json:
        console.print_json(route)
        return
    answer = "answers" if route.weights is None else "answer"
    console.out().print(f"{answering(route)} {answer} for {route.model} now.", markup=False, soft_wrap=True)
