"""`Octet`: every route of docs/api.md as one typed method. Knows routes; how bytes travel is `transport`'s."""

import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import httpx
from pydantic_core import to_json, to_jsonable_python

from app.client import predictions
from app.client.downloads import download
from app.client.events import QUIET_SECONDS, Event, parse, unbroken
from app.client.paths import job_path, model_path, plain, variant_path, with_variant
from app.client.predictions import Inputs
from app.client.problems import succeeded
from app.client.records import DatasetVersion, ModelVersion, Prediction, Readiness, Routing, plain_file_name, ready
from app.client.transport import Transport, read_as
from app.domain.errors import DeadlineExceeded, NameInvalid
from app.domain.jobs import Job
from app.domain.models import ReadyState
from app.domain.names import Reference
from app.domain.preprocessing import ImagePreprocessing
from app.domain.recipes import Recipe
from app.domain.reports import Report
from app.domain.routing import Route
from app.domain.variants import Variant

DEFAULT_URL = "http://127.0.0.1:8000"
IMPORT_TIMEOUT_SECONDS = 600.0


class Octet:
    """A connection to one Octet.

    References are written as everywhere: `resnet20`, `resnet20:3`, `resnet20:3@int8`. Every method raises the domain's
    errors (`app.domain.errors`), the same classes as the service does, with the request id as a note.

        with Octet("http://127.0.0.1:8000") as octet:
            octet.predict("resnet20@int8", images).output
    """

    def __init__(self, base_url: str = DEFAULT_URL, *, timeout_seconds: float = 60.0) -> None:
        self._transport = Transport(base_url, timeout_seconds=timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    @property
    def base_url(self) -> str:
        return self._transport.base_url

    # Catalogue

    def upload_model(
        self,
        source: Path | BinaryIO,
        *,
        name: str,
        preprocessing: ImagePreprocessing | None = None,
        labels: Sequence[str] | None = None,
    ) -> ModelVersion:
        """Send a model file, read from disk as it goes. It is imported next: see `wait_model`.

        Args:
            source: a path, or an open binary file whose `name` has the suffix that says its format.
            preprocessing: how an image becomes the model's input.
            labels: what its classes are called, in the order of its output.
        """
        fields = _texts({"name": name, "preprocessing": preprocessing, "labels": labels})
        with ExitStack() as files:
            file = _opened(source, files)
            filename = Path(file.name).name
            if labels is not None:  # they may be too long for an address
                return self._transport.post("/v1/models", ModelVersion, data=fields, files={"file": (filename, file)})
            return self._transport.post(
                "/v1/models", ModelVersion, params={**fields, "filename": filename}, content=file
            )

    def upload_dataset(self, source: Path | BinaryIO, *, name: str) -> DatasetVersion:
        """Send a dataset file, read from disk as it goes. It is imported next: see `wait_dataset`."""
        with ExitStack() as files:
            file = _opened(source, files)
            query = {"name": name, "filename": Path(file.name).name}
            return self._transport.post("/v1/datasets", DatasetVersion, params=query, content=file)

    def wait_model(self, reference: str, *, timeout_seconds: float = IMPORT_TIMEOUT_SECONDS) -> ModelVersion:
        """Wait until an uploaded model is imported.

        Raises:
            JobFailure: the import failed, and why.
            DeadlineExceeded: it still goes on.
        """
        model = self.model(reference)
        if model.state is ReadyState.IMPORTING:
            self.wait(model.import_job, timeout_seconds=timeout_seconds)
            model = self.model(model.reference)
        return ready(model)

    def wait_dataset(self, reference: str, *, timeout_seconds: float = IMPORT_TIMEOUT_SECONDS) -> DatasetVersion:
        """Wait until an uploaded dataset is imported; raises as `wait_model` does."""
        dataset = self.dataset(reference)
        if dataset.state is ReadyState.IMPORTING:
            self.wait(dataset.import_job, timeout_seconds=timeout_seconds)
            dataset = self.dataset(dataset.reference)
        return ready(dataset)

    def models(self) -> list[ModelVersion]:
        """List the newest version of each model."""
        return self._transport.get("/v1/models", dict[str, list[ModelVersion]])["models"]

    def model(self, reference: str) -> ModelVersion:
        """Return one version of a model."""
        return self._transport.get(model_path(reference), ModelVersion)

    def datasets(self) -> list[DatasetVersion]:
        """List the newest version of each dataset."""
        return self._transport.get("/v1/datasets", dict[str, list[DatasetVersion]])["datasets"]

    def dataset(self, reference: str) -> DatasetVersion:
        """Return one version of a dataset."""
        return self._transport.get(f"/v1/datasets/{plain(reference)}", DatasetVersion)

    def variants(self, reference: str) -> list[Variant]:
        """List what a version of a model can run as."""
        return self._transport.get(f"{model_path(reference)}/variants", dict[str, list[Variant]])["variants"]

    def variant(self, reference: str) -> Variant:
        """Return one variant, such as `resnet20@int8`."""
        return self._transport.get(variant_path(reference), Variant)

    def report(self, reference: str) -> Report:
        """Return what was measured about a variant, such as `resnet20@int8`."""
        return self._transport.get(f"{variant_path(reference)}/report", Report)

    def report_page(self, reference: str) -> str:
        """Return the same as one HTML page for a reader, which needs nothing else."""
        return self._transport.send("GET", f"{variant_path(reference)}/report.html").text

    def download(self, reference: str, *, to: Path) -> Path:
        """Bring a variant's artifact to a file, or into a folder under a name of its own; return the file's path.

        A download that broke off goes on where it stopped; the file appears whole and with the right SHA-256.
        """
        variant = self.variant(reference)
        found = Reference(name=variant.model, version=variant.version, variant=variant.name)
        target = to / plain_file_name(str(found)) if to.is_dir() else to
        return download(self._transport, f"{variant_path(str(found))}/artifact", variant.artifact, to=target)

    def routing(self, model: str) -> Routing:
        """Return which variant answers when the caller names none, and what was decided before."""
        return self._transport.get(f"{model_path(model)}/routing", Routing)

    def route(self, reference: str, *, by: str | None = None, note: str | None = None) -> Route:
        """Let this variant, such as `resnet20:1@int8`, answer from now on; without a version, the newest's.

        Args:
            by: who decides; None lets the service write this machine's address.
            note: why.
        """
        wanted = with_variant(reference)
        return self._decide(wanted, {"variant": wanted.variant}, by=by, note=note)

    def split(
        self, reference: str, weights: Mapping[str, float], *, by: str | None = None, note: str | None = None
    ) -> Route:
        """Let several variants of `resnet20` or `resnet20:1` share the requests from now on.

        Args:
            weights: by variant, such as `{"float32": 0.9, "int8": 0.1}`; they need not sum up to 1.
            by, note: as `route`.
        """
        model = Reference.parse(reference)
        if model.variant is not None:
            raise NameInvalid(f"{reference!r} names a variant, but the weights do: write {plain(reference)!r}.")
        return self._decide(model, {"weights": dict(weights)}, by=by, note=note)

    def _decide(self, model: Reference, what: Mapping[str, Any], *, by: str | None, note: str | None) -> Route:
        said = {name: text for name, text in (("by", by), ("note", note)) if text is not None}
        body = {"version": model.version or self.model(model.name).version, **what, **said}
        return self._transport.put(f"/v1/models/{model.name}/routing", Route, json=body)

    def load(self, reference: str) -> None:
        """Start a variant's runner now; return when it is ready."""
        self._transport.send("POST", f"{variant_path(reference)}/load")

    def unload(self, reference: str) -> None:
        """Stop a variant's runner."""
        self._transport.send("POST", f"{variant_path(reference)}/unload")

    # Jobs

    def quantize(
        self,
        model: str,
        *,
        recipe: Recipe,
        calibration: str | None = None,
        evaluation: str | None = None,
        training: str | None = None,
        variant: str | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Ask for a variant; follow or wait for the job that makes it.

        Args:
            recipe: any record of `app.domain.recipes`, such as `Auto(budget=Budget(max_drop=0.005))`.
            calibration: the dataset whose rows set the ranges; `cast` needs none.
            evaluation: the dataset whose rows score; None takes rows that calibration left over.
            training: the dataset whose rows train, for `Qat`; None lets the rows of `calibration` train. Where it is
                there, `calibration` may be left out.
            variant: the name to publish under; None takes the recipe's.
            idempotency_key: the same key again returns the same job.
        """
        rows = {"calibration": calibration, "evaluation": evaluation, "training": training}
        asked = {"kind": "quantize", "model": plain(model), **rows, "recipe": recipe, "variant": variant}
        return self._ask(asked, idempotency_key=idempotency_key)

    def evaluate(self, reference: str, *, evaluation: str, idempotency_key: str | None = None) -> Job:
        """Ask for a published variant, such as `resnet20@int8`, to be measured again on other rows."""
        wanted = with_variant(reference)
        model = str(Reference(name=wanted.name, version=wanted.version))
        asked = {"kind": "evaluate", "model": model, "variant": wanted.variant, "evaluation": evaluation}
        return self._ask(asked, idempotency_key=idempotency_key)

    def _ask(self, body: Mapping[str, Any], *, idempotency_key: str | None) -> Job:
        given = {name: value for name, value in to_jsonable_python(body).items() if value is not None}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._transport.post("/v1/jobs", Job, json=given, headers=headers)

    def quantize_once(
        self,
        model: Path,
        *,
        calibration: Path | None = None,
        evaluation: Path | None = None,
        training: Path | None = None,
        recipe: Recipe | None = None,
        preprocessing: ImagePreprocessing | None = None,
        labels: Sequence[str] | None = None,
        name: str | None = None,
        variant: str | None = None,
    ) -> Job:
        """Send model, rows and recipe in one request; the job it returns imports and quantizes them.

        Args:
            calibration, evaluation, training: files of rows; which of them a recipe needs, see `quantize`.
        """
        spec = {"preprocessing": preprocessing, "labels": labels}
        texts = _texts({"name": name, "recipe": recipe, **spec, "variant": variant})
        paths = {"model": model, "calibration": calibration, "evaluation": evaluation, "training": training}
        with ExitStack() as opened:
            files = {field: (path.name, _opened(path, opened)) for field, path in paths.items() if path is not None}
            return self._transport.post("/v1/quantize", Job, data=texts, files=files)

    def jobs(self, *, limit: int = 50) -> list[Job]:
        """List jobs, newest first."""
        return self._transport.get("/v1/jobs", dict[str, list[Job]], params={"limit": limit})["jobs"]

    def job(self, job_id: str) -> Job:
        """Return a job as it stands."""
        return self._transport.get(job_path(job_id), Job)

    def job_report(self, job_id: str) -> Report:
        """Return what an `evaluate` job measured, or a `quantize` job that failed on what it had measured."""
        return self._transport.get(f"{job_path(job_id)}/report", Report)

    def job_report_page(self, job_id: str) -> str:
        """Return the same as one HTML page for a reader."""
        return self._transport.send("GET", f"{job_path(job_id)}/report.html").text

    def follow(self, job_id: str, *, timeout_seconds: float = math.inf) -> Iterator[Job]:
        """Yield a job whenever it changes, until it is final; a broken connection is taken up where it broke.

        Raises:
            DeadlineExceeded: the job is not final after so long.
            Unavailable: the service stayed away for a minute.
        """
        until = time.monotonic() + timeout_seconds

        def open_stream(last_id: str | None) -> Generator[Event, None, None]:
            quiet_seconds = max(0.1, min(QUIET_SECONDS, until - time.monotonic()))
            return self._events(job_id, after=last_id, quiet_seconds=quiet_seconds)

        for event in unbroken(open_stream, until=until):
            job = read_as(Job, event.data.encode())
            yield job
            if job.state.final:
                return
        raise DeadlineExceeded(f"Job {job_id} goes on after {timeout_seconds:g} s: wait longer, or cancel it.")

    def _events(self, job_id: str, *, after: str | None, quiet_seconds: float) -> Generator[Event, None, None]:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})}
        timeout = httpx.Timeout(10.0, read=quiet_seconds)
        with self._transport.stream("GET", f"{job_path(job_id)}/events", headers=headers, timeout=timeout) as response:
            try:
                yield from parse(response.iter_lines())
            except httpx.ReadTimeout:
                return  # the service is there, the job is merely quiet: ask again

    def wait(self, job_id: str, *, timeout_seconds: float = math.inf) -> Job:
        """Wait until a job is final and return it, whatever its outcome; see `succeeded`.

        Raises:
            DeadlineExceeded: the job is not final after so long.
        """
        *_, last = self.follow(job_id, timeout_seconds=timeout_seconds)
        return last

    def wait_success(self, job_id: str, *, timeout_seconds: float = math.inf) -> Job:
        """Wait until a job has succeeded.

        Raises:
            JobFailure: it failed, as the class that its code names, or was cancelled.
            DeadlineExceeded: the job is not final after so long.
        """
        return succeeded(self.wait(job_id, timeout_seconds=timeout_seconds))

    def cancel(self, job_id: str, *, keep_best: bool = False) -> Job:
        """Stop a job.

        Args:
            keep_best: only end its training: the best so far is measured and published, and the job succeeds.

        Raises:
            Conflict: it is final; or, to keep the best of it, it does not train, or is not running yet.
        """
        query = {"keep": "best"} if keep_best else {}
        return self._transport.post(f"{job_path(job_id)}/cancel", Job, params=query)

    def log(self, job_id: str) -> str:
        """Return what a job's processes printed."""
        return self._transport.send("GET", f"{job_path(job_id)}/log").text

    # Inference and operation

    def predict(
        self, reference: str, inputs: Inputs, *, top_k: int | None = None, affinity: str | None = None
    ) -> Prediction:
        """Ask a model for an answer; `reference` may name the variant: `resnet20@int8`.

        Args:
            inputs: an array for a model with one input, arrays by name, nested lists, or an encoded image.
            top_k: also name so many of the highest classes of every row.
            affinity: where several variants share the requests, the same key gets the same one.
        """
        Reference.parse(reference)
        body = predictions.encode(inputs)
        accept = body.accept if top_k is None else predictions.JSON
        headers = {"Content-Type": body.content_type, "Accept": accept}
        headers |= {} if affinity is None else {"Octet-Affinity": affinity}
        query: dict[str, str | int] = {"model": reference} | ({} if top_k is None else {"top_k": top_k})
        response = self._transport.send("POST", "/predict", params=query, content=body.content, headers=headers)
        return predictions.decode(response.content, response.headers)

    def metrics(self) -> str:
        """Return the metrics, in Prometheus' text format."""
        return self._transport.send("GET", "/metrics").text

    def ready(self) -> Readiness:
        """Return whether the service can answer; an unready one is an answer, not an error."""
        return read_as(Readiness, self._transport.send_unchecked("GET", "/readyz").content)


def _texts(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields that there are as a form takes them: text as it is, all else as JSON."""
    there = {name: value for name, value in fields.items() if value is not None}
    return {name: value if isinstance(value, str) else to_json(value).decode() for name, value in there.items()}


def _opened(source: Path | BinaryIO, files: ExitStack) -> BinaryIO:
    return files.enter_context(source.open("rb")) if isinstance(source, Path) else source
