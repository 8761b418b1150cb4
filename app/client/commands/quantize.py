"""`octet quantize`, `quantize-file`, `evaluate`, `report` and `download`: the main job."""

from pathlib import Path
from typing import Annotated

import typer

from app.client import console
from app.client.commands import recipes
from app.client.commands.models import LabelsFile, PreprocessingFile, VariantName, read_labels, read_preprocessing
from app.client.commands.recipes import make_recipe, recipe_options, technique_for
from app.client.commands.session import AsJson, HtmlFile, connect, follow, save_page, show_report
from app.client.commands.uploads import dataset_for
from app.client.problems import succeeded
from app.domain.errors import RequestInvalid

app = typer.Typer()

_ROWS = "DATASET_OR_FILE"
Rows = Annotated[str | None, typer.Option(metavar=_ROWS)]
PublishAs = Annotated[str | None, typer.Option("--variant", help="Name to publish under; default: the recipe's.")]
RowsFile = Annotated[Path | None, typer.Option(exists=True, dir_okay=False)]


@app.command()
def quantize(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="name or name:version")],
    *,
    calibration: Rows = None,
    evaluation: Rows = None,
    training: Annotated[str | None, typer.Option(metavar=_ROWS, help="Rows that train; asks for qat.")] = None,
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
    activation_bits: recipes.ActivationBits = None,
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
    int8_layers: recipes.Int8Layers = None,
    loss: recipes.Loss = None,
    teacher: recipes.Teacher = None,
    temperature: recipes.Temperature = None,
    epochs: recipes.Epochs = None,
    steps: recipes.Steps = None,
    batch_size: recipes.BatchSize = None,
    optimizer: recipes.Optimizer = None,
    learning_rate: recipes.LearningRate = None,
    schedule: recipes.Schedule = None,
    scales: recipes.Scales = None,
    flip: recipes.Flip = None,
    crop: recipes.Crop = None,
    held_out: recipes.HeldOut = None,
    patience: recipes.Patience = None,
    processes: recipes.TrainingProcesses = None,
    compression: recipes.Compression = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait: print the job.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a variant of an uploaded model, show the progress live, then the report.

    A budget asks for a search: octet quantize resnet20 --calibration cifar --max-drop 0.005

    Rows to train on ask for training: octet quantize resnet20 --training cifar --bits 4 --evaluation cifar-test
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
        activation_bits=activation_bits,
        activation_granularity=activation_granularity,
        weight_granularity=weight_granularity,
        observer=observer,
        bias_correction=bias_correction,
        smooth_quant=smooth_quant,
        calibration_rows=calibration_rows,
        seed=seed,
        float_layers=tuple(float_layers) if float_layers else None,
        int8_layers=tuple(int8_layers) if int8_layers else None,
        loss=loss,
        teacher=teacher,
        temperature=temperature,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        schedule=schedule,
        scales=scales,
        flip=flip,
        crop=crop,
        held_out=held_out,
        patience=patience,
        processes=processes,
        compression=compression,
    )
    octet, made = connect(context), make_recipe(recipe, options, default=technique_for(training))
    job = octet.quantize(
        model,
        recipe=made,
        calibration=dataset_for(octet, calibration),
        evaluation=dataset_for(octet, evaluation),
        training=dataset_for(octet, training),
        variant=variant,
    )
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
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the artifact goes: a file or a folder.")],
    calibration: RowsFile = None,
    evaluation: RowsFile = None,
    training: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Rows that train; asks for qat.")
    ] = None,
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
    made = make_recipe(recipe, options, default=technique_for(training))
    if calibration is None and training is None and made.needs_calibration:
        raise RequestInvalid(f"Technique {made.technique} needs rows: name a file with --calibration.")
    octet = connect(context)
    job = octet.quantize_once(
        model,
        calibration=calibration,
        evaluation=evaluation,
        training=training,
        recipe=made,
        preprocessing=read_preprocessing(preprocessing) if preprocessing else None,
        labels=read_labels(labels) if labels else None,
        name=name,
        variant=variant,
    )
    done = succeeded(follow(octet, job))
    found = f"{done.model}@{done.variant}"
    console.say(f"{found} is in {octet.download(found, to=output)}.")
    show_report(octet.report(found), as_json=as_json)


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
