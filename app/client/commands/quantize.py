"""`octet quantize`, `quantize-file`, `evaluate`, `report` and `download`: the main job."""

from pathlib import Path
from typing import Annotated

import typer

from app.client import console
from app.client.commands import recipes
from app.client.commands.models import LabelsFile, PreprocessingFile, VariantName, read_labels, read_preprocessing
from app.client.commands.recipes import make_recipe, recipe_options
from app.client.commands.session import AsJson, HtmlFile, connect, follow, save_page, show_report
from app.client.problems import succeeded
from app.domain.errors import RequestInvalid

app = typer.Typer()

Dataset = Annotated[str | None, typer.Option(metavar="DATASET")]
PublishAs = Annotated[str | None, typer.Option("--variant", help="Name to publish under; default: the recipe's.")]
RowsFile = Annotated[Path | None, typer.Option(exists=True, dir_okay=False)]


@app.command()
def quantize(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="name or name:version")],
    *,
    calibration: Dataset = None,
    evaluation: Dataset = None,
    variant: PublishAs = None,
    technique: recipes.Technique = None,
    toolchain: recipes.Toolchain = None,
    recipe: recipes.RecipeFile = None,
    auto: recipes.Auto = False,
    max_drop: recipes.MaxDrop = None,
    metric: recipes.Metric = None,
    max_latency_ms: recipes.MaxLatency = None,
    max_size_bytes: recipes.MaxSize = None,
    time_limit: recipes.TimeLimit = None,
    bits: recipes.Bits = None,
    rounding: recipes.Rounding = None,
    group_size: recipes.GroupSize = None,
    activations: recipes.Activations = None,
    weights: recipes.Weights = None,
    activation_granularity: recipes.ActivationGranularity = None,
    weight_granularity: recipes.WeightGranularity = None,
    observer: recipes.Observer = None,
    bias_correction: recipes.BiasCorrection = None,
    smooth_quant: recipes.SmoothQuant = None,
    calibration_rows: recipes.CalibrationRows = None,
    seed: recipes.Seed = None,
    float_layers: recipes.FloatLayers = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait: print the job.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a variant of an uploaded model, show the progress live, then the report.

    A budget asks for a search: octet quantize resnet20 --calibration cifar --max-drop 0.005
    """
    options = recipe_options(
        auto=auto,
        bits=bits,
        technique=technique,
        toolchain=toolchain,
        max_drop=max_drop,
        metric=metric,
        max_latency_ms=max_latency_ms,
        max_size_bytes=max_size_bytes,
        time_limit_seconds=time_limit,
        rounding=rounding,
        group_size=group_size,
        activations=activations,
        weights=weights,
        activation_granularity=activation_granularity,
        weight_granularity=weight_granularity,
        observer=observer,
        bias_correction=bias_correction,
        smooth_quant=smooth_quant,
        calibration_rows=calibration_rows,
        seed=seed,
        float_layers=tuple(float_layers) if float_layers else None,
    )
    octet, made = connect(context), make_recipe(recipe, options)
    job = octet.quantize(model, recipe=made, calibration=calibration, evaluation=evaluation, variant=variant)
    if detach:
        console.print_json(job) if as_json else console.out().print(job.id)
        return
    done = succeeded(follow(octet, job))
    show_report(octet.report(f"{done.model}@{done.variant}"), as_json=as_json)


@app.command("quantize-file")
def quantize_file(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="FILE")],
    *,
    calibration: Annotated[Path, typer.Option(exists=True, dir_okay=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the artifact goes: a file or a folder.")],
    evaluation: RowsFile = None,
    preprocessing: PreprocessingFile = None,
    labels: LabelsFile = None,
    name: Annotated[str | None, typer.Option(help="Name in the catalogue.")] = None,
    variant: PublishAs = None,
    technique: recipes.Technique = None,
    recipe: recipes.RecipeFile = None,
    auto: recipes.Auto = False,
    max_drop: recipes.MaxDrop = None,
    bias_correction: recipes.BiasCorrection = None,
    calibration_rows: recipes.CalibrationRows = None,
    as_json: AsJson = False,
) -> None:
    """From file to file in one go: send a model and rows, get the quantized artifact back, with its report."""
    options = recipe_options(
        auto=auto,
        bits=None,
        technique=technique,
        max_drop=max_drop,
        bias_correction=bias_correction,
        calibration_rows=calibration_rows,
    )
    if not (output if output.is_dir() else output.absolute().parent).is_dir():
        raise RequestInvalid(f"There is no folder {output.parent} to write {output.name} into: make it first.")
    octet = connect(context)
    job = octet.quantize_once(
        model,
        calibration=calibration,
        evaluation=evaluation,
        recipe=make_recipe(recipe, options),
        preprocessing=read_preprocessing(preprocessing) if preprocessing else None,
        labels=read_labels(labels) if labels else None,
        name=name,
        variant=variant,
    )
    done = succeeded(follow(octet, job))
    made = f"{done.model}@{done.variant}"
    console.say(f"{made} is in {octet.download(made, to=output)}.")
    show_report(octet.report(made), as_json=as_json)


@app.command()
def evaluate(
    context: typer.Context,
    variant: VariantName,
    evaluation: Annotated[str, typer.Option(metavar="DATASET")],
    as_json: AsJson = False,
) -> None:
    """Measure a published variant again, on other rows."""
    octet = connect(context)
    done = succeeded(follow(octet, octet.evaluate(variant, evaluation=evaluation)))
    show_report(octet.job_report(done.id), as_json=as_json)


@app.command()
def report(context: typer.Context, variant: VariantName, html: HtmlFile = None, as_json: AsJson = False) -> None:
    """Show what was measured about a variant."""
    octet = connect(context)
    if html is not None:
        save_page(octet.report_page(variant), html, as_json=as_json)
        return
    show_report(octet.report(variant), as_json=as_json)


@app.command()
def download(
    context: typer.Context,
    variant: VariantName,
    output: Annotated[Path, typer.Option("--output", "-o", help="A file or a folder.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Download a variant's artifact, resumed where it broke off and checked against its SHA-256."""
    path = connect(context).download(variant, to=output)
    if as_json:
        console.print_json({"path": path})
        return
    console.out().print(str(path), markup=False, soft_wrap=True)
