"""`octet datasets`: upload and list."""

import typer

from app.client import console
from app.client.commands.session import AsJson, connect
from app.client.commands.uploads import ReadableFile, UploadName, Wait, facts_of, name_of, send
from app.client.records import DatasetVersion

app = typer.Typer(no_args_is_help=True, help="Datasets: rows that calibrate or evaluate.")


@app.command()
def upload(
    context: typer.Context, file: ReadableFile, name: UploadName = None, wait: Wait = True, as_json: AsJson = False
) -> None:
    """Upload a dataset: .npz or .safetensors (arrays named as the model's inputs, labels), or a .zip image folder."""
    octet = connect(context)
    uploaded = send(
        octet,
        file,
        lambda opened: octet.upload_dataset(opened, name=name or name_of(file)),
        again=octet.dataset,
        wait=wait,
    )
    if as_json:
        console.print_json(uploaded)
        return
    console.print_facts([*facts_of(uploaded), *_rows_of(uploaded)])


@app.command("list")
def list_datasets(context: typer.Context, as_json: AsJson = False) -> None:
    """List the newest version of each dataset."""
    datasets = connect(context).datasets()
    if as_json:
        console.print_json(datasets)
        return
    lines = [
        (dataset.reference, dataset.state, *(value for _, value in _rows_of(dataset) or [("", "")] * 3))
        for dataset in datasets
    ]
    console.print_table(("dataset", "state", "rows", "arrays", "labels"), lines)


def _rows_of(dataset: DatasetVersion) -> list[tuple[str, str]]:
    facts = dataset.manifest
    if facts is None:
        return []
    arrays = ", ".join(f"{array.name}: {array.dtype}{list(array.row_shape)}" for array in facts.arrays)
    return [
        ("rows", f"{facts.rows:,}"),
        ("arrays", arrays or "images"),
        ("labels", "yes" if facts.labelled else "no"),
    ]
