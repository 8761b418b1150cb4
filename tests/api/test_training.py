"""Jobs that train: which rows and which teacher they take, and how they are followed and ended early."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis as RedisClient

from app.api.dependencies import Services
from app.api.training import check_teacher
from app.domain.datasets import ArraySpec
from app.domain.jobs import Job, JobError, JobState
from app.domain.recipes import Qat
from app.domain.training import TrainingProgress
from app.jobs.live import KEEP_WISH_SECONDS
from tests.api.harness import Api, fail_import, job_of, publish_dataset, publish_model
from tests.graphs import conv_classifier
from tests.running import Redis, wait_until

QAT: dict[str, Any] = {"technique": "qat", "batch_size": 8}
TRAIN: dict[str, Any] = {"kind": "quantize", "model": "net", "training": "teach", "evaluation": "score", "recipe": QAT}
CLASSES = ArraySpec(name="labels", dtype="int64", row_shape=())
VALUES = ArraySpec(name="labels", dtype="float32", row_shape=(4,))
MAPS = ArraySpec(name="labels", dtype="int64", row_shape=(8, 8))
NOW = datetime.now(UTC)
PROGRESS = TrainingProgress(
    step=120,
    steps=300,
    loss=0.5,
    score=0.25,
    best_score=0.125,
    learning_rate=0.001,
    rows_per_second=640.0,
    seconds_left=18.0,
)


@pytest.fixture
def ready(api: Api, tmp_path: Path) -> Api:
    """The application with a model, ten rows that may train and ten others that score."""
    publish_model(api, tmp_path)
    publish_dataset(api, name="teach", content=b"rows that train")
    publish_dataset(api, name="score", content=b"rows that score")
    return api


def ask(api: Api, *, recipe: dict[str, Any] | None = None, **changes: object) -> httpx.Response:
    return api.client.post("/v1/jobs", json=TRAIN | {"recipe": QAT | (recipe or {})} | changes)


def training_job(api: Api) -> Job:
    """Return a job that trains as its worker would have started it."""
    job = job_of(api, ask(api).json()["id"]).start(NOW)
    save(api, job)
    return job


def save(api: Api, job: Job) -> None:
    api.do(lambda services: services.live.save(job))


def asked_to_finish(api: Api, job: Job) -> bool:
    return api.do(lambda services: services.live.asked_to_finish(job.id))


def refused(answer: httpx.Response, code: str, *words: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    for each in words:
        assert each in answer.json()["detail"]


# Rows


def test_a_job_that_trains_has_its_references_resolved(ready: Api) -> None:
    job = ask(ready).json()
    assert (job["training"], job["evaluation"], job["calibration"]) == ("teach:1", "score:1", None)
    assert (job["recipe"]["epochs"], job["recipe"]["learning_rate"]) == (10, 1e-4)
    assert job_of(ready, job["id"]).training == "teach:1"


def test_rows_that_calibrate_train_where_no_others_are_named(ready: Api) -> None:
    answer = ask(ready, training=None, calibration="teach")
    assert (answer.status_code, answer.json()["training"], answer.json()["calibration"]) == (202, None, "teach:1")


def test_the_same_rows_may_calibrate_and_train(ready: Api) -> None:
    assert ask(ready, calibration="teach").status_code == 202


def test_a_job_waits_for_the_rows_that_train_and_for_its_teacher(ready: Api) -> None:
    ready.upload_model("expert")
    ready.client.post("/v1/datasets", params={"name": "later", "filename": "a.npz"}, content=b"1")
    answer = ask(ready, training="later", recipe={"teacher": "expert"})
    assert (answer.status_code, answer.json()["recipe"]["teacher"]) == (202, "expert:1")
    assert ready.do(lambda services: services.queue.depth()) == 2  # the imports; the job is deferred


def test_a_technique_that_does_not_train_takes_no_training_rows(ready: Api) -> None:
    for technique in ("ptq_static", "auto"):
        asked = TRAIN | {"calibration": "teach", "recipe": {"technique": technique}}
        answer = ready.client.post("/v1/jobs", json=asked)
        refused(answer, "recipe_invalid", f"The technique {technique} does not train: leave training out, or take qat.")


@pytest.mark.parametrize("name", ["ptq", "trained"])
def test_a_variant_is_not_called_like_a_form_of_its_report(ready: Api, name: str) -> None:
    answer = ask(ready, variant=name)
    refused(answer, "recipe_invalid", f"In the report of a training '{name}' names another form: take another name.")


def test_training_needs_rows(ready: Api) -> None:
    refused(ask(ready, training=None), "recipe_invalid", "qat needs rows to train on: send a training dataset")


@pytest.mark.parametrize("purpose", ["training", "calibration"])
def test_rows_that_train_do_not_score_under_another_name_either(ready: Api, purpose: str) -> None:
    publish_dataset(ready, name="twin", content=b"rows that score")
    rows: dict[str, Any] = {"training": None, purpose: "twin"}
    refused(ask(ready, **rows), "request_invalid", "'twin:1' and 'score:1' are the same file", "name another one")


def test_one_dataset_does_not_train_and_score(ready: Api) -> None:
    answer = ask(ready, training="score")
    refused(answer, "request_invalid", "'score:1' cannot both train and evaluate: rows that train never score")


@pytest.mark.parametrize(
    ("loss", "labels", "has"),
    [
        ("cross_entropy", None, "no labels"),
        ("cross_entropy", VALUES, "real numbers"),
        ("mse", None, "no labels"),
        ("mse", CLASSES, "classes"),
    ],
)
def test_a_loss_needs_its_labels(ready: Api, loss: str, labels: ArraySpec | None, has: str) -> None:
    publish_dataset(ready, name="labelled", labels=labels, content=b"labelled")
    answer = ask(ready, training="labelled", recipe={"loss": loss})
    refused(answer, "dataset_unfit", f"{loss!r} needs labels", f"'labelled' has {has}", "'distillation', which needs")


@pytest.mark.parametrize(("loss", "labels"), [("cross_entropy", CLASSES), ("cross_entropy", MAPS), ("mse", VALUES)])
def test_a_loss_takes_its_labels(ready: Api, loss: str, labels: ArraySpec) -> None:
    publish_dataset(ready, name="labelled", labels=labels, content=b"labelled")
    assert ask(ready, training="labelled", recipe={"loss": loss}).status_code == 202


def test_a_batch_larger_than_the_rows_that_train_is_refused(ready: Api) -> None:
    assert ask(ready, recipe={"batch_size": 9}).status_code == 202  # one of ten rows is held out
    refused(ask(ready, recipe={"batch_size": 10}), "dataset_unfit", "A batch of 10 rows is larger than the 9 of")
    assert ask(ready, recipe={"batch_size": 5, "held_out": 0.5}).status_code == 202
    refused(ask(ready, recipe={"batch_size": 6, "held_out": 0.5}), "dataset_unfit", "take a batch_size of at most 5")


def test_a_single_row_cannot_train(ready: Api) -> None:
    publish_dataset(ready, name="one", rows=1, content=b"one")
    refused(ask(ready, training="one"), "dataset_unfit", "'one' has 1 row, which cannot both train and choose")


def test_rows_that_do_not_fit_do_not_train(ready: Api) -> None:
    publish_dataset(ready, name="wide", row_shape=(3, 9, 9), content=b"wide")
    refused(ask(ready, training="wide"), "signature_mismatch", "'wide'")


# Teachers


def test_a_teacher_is_resolved_to_its_version(ready: Api, tmp_path: Path) -> None:
    for _ in range(2):
        publish_model(ready, tmp_path, name="expert", graph=conv_classifier(width=32))
    job = ask(ready, recipe={"teacher": "expert"}).json()
    assert job["recipe"]["teacher"] == "expert:2"
    assert job_of(ready, job["id"]).recipe == Qat(batch_size=8, teacher="expert:2")


def test_a_model_may_be_its_own_teacher(ready: Api) -> None:
    assert ask(ready, recipe={"teacher": "net:1"}).json()["recipe"]["teacher"] == "net:1"


def test_a_teacher_that_is_not_there_is_not_found(ready: Api) -> None:
    answer = ask(ready, recipe={"teacher": "nobody"})
    assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")
    refused(ask(ready, recipe={"teacher": "net@int8"}), "name_invalid", "names a variant")


def test_a_teacher_that_failed_is_refused(ready: Api) -> None:
    ready.upload_model("broken")
    fail_import(ready, "broken", 1)
    answer = ask(ready, recipe={"teacher": "broken"})
    assert (answer.status_code, answer.json()["code"]) == (409, "model_not_ready")
    assert "broken:1 could not be imported" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (conv_classifier(classes=5), "answers 'logits' as float32[N, 5], but net:1 answers 'logits' as float32[N, 4]"),
        (conv_classifier(side=9), "takes 'x' as float32[N, 3, 9, 9], but net:1 takes 'x' as float32[N, 3, 8, 8]"),
    ],
    ids=["outputs", "inputs"],
)
def test_a_teacher_with_another_signature_is_refused(ready: Api, tmp_path: Path, graph: Any, words: str) -> None:
    publish_model(ready, tmp_path, name="expert", graph=graph)
    refused(ask(ready, recipe={"teacher": "expert"}), "signature_mismatch", f"Teacher expert:1 {words}: name a teacher")


def test_a_teacher_may_call_its_input_otherwise(ready: Api, tmp_path: Path) -> None:
    graph = conv_classifier()
    graph.graph.input[0].name = graph.graph.node[0].input[0] = "pixels"
    publish_model(ready, tmp_path, name="expert", graph=graph)
    assert ask(ready, recipe={"teacher": "expert"}).status_code == 202


def test_a_size_that_is_not_fixed_fits_any(ready: Api, tmp_path: Path) -> None:
    graph = conv_classifier()
    for axis in (2, 3):
        graph.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    publish_model(ready, tmp_path, name="expert", graph=graph)
    assert ask(ready, recipe={"teacher": "expert"}).status_code == 202


@pytest.mark.parametrize("labels", [("cat", "dog", "hen", "cow"), ("cat", "dog", "cow")], ids=["order", "number"])
def test_a_teacher_with_other_classes_is_refused(ready: Api, tmp_path: Path, labels: tuple[str, ...]) -> None:
    publish_model(ready, tmp_path, name="pets", labels=("cat", "dog", "cow", "hen"))
    publish_model(ready, tmp_path, name="expert", labels=labels)
    answer = ask(ready, model="pets", recipe={"teacher": "expert"})
    refused(answer, "signature_mismatch", "Teacher expert:1 has other classes than pets:1: number")


def test_classes_are_the_same_in_capitals(ready: Api, tmp_path: Path) -> None:
    publish_model(ready, tmp_path, name="expert", labels=("CAT", "Dog"))
    publish_model(ready, tmp_path, name="pets", labels=("cat", "dog"))
    teacher, model = (ready.do(partial(_entry, name)) for name in ("expert", "pets"))
    check_teacher(teacher, model)


async def _entry(name: str, services: Services) -> Any:
    return await services.models.get(name, 1)


# The one-shot


def one_shot(api: Api, recipe: dict[str, Any], **files: bytes) -> httpx.Response:
    form: list[tuple[str, Any]] = [("recipe", (None, json.dumps(recipe).encode())), ("model", ("net.onnx", b"model"))]
    form += [(name, (f"{name}.npz", content)) for name, content in files.items()]
    return api.client.post("/v1/quantize", files=form)


def test_the_one_shot_trains(api: Api) -> None:
    answer = one_shot(api, QAT, evaluation=b"score", training=b"teach")
    assert (answer.status_code, answer.json()["training"]) == (202, "training:1"), answer.text
    kinds = [other["kind"] for other in api.client.get("/v1/jobs").json()["jobs"]]
    assert sorted(kinds) == ["import", "import", "import", "quantize"]


def test_the_one_shot_takes_a_teacher_from_the_catalogue(api: Api, tmp_path: Path) -> None:
    publish_model(api, tmp_path, name="expert")
    answer = one_shot(api, QAT | {"teacher": "expert"}, calibration=b"rows")
    assert (answer.status_code, answer.json()["recipe"]["teacher"]) == (202, "expert:1"), answer.text


@pytest.mark.parametrize(
    ("recipe", "files", "status", "code"),
    [
        ({"technique": "ptq_static"}, {"calibration": b"1", "training": b"2"}, 422, "recipe_invalid"),
        (QAT, {"evaluation": b"1"}, 422, "recipe_invalid"),
        (QAT, {"evaluation": b"same", "training": b"same"}, 422, "request_invalid"),
        (QAT, {"training": b"1", "evaluation": b"2"}, 422, "request_invalid"),  # in another order
        (QAT | {"teacher": "nobody"}, {"training": b"1"}, 404, "model_not_found"),
    ],
)
def test_training_that_cannot_be_done_in_one_shot_leaves_nothing(
    api: Api, recipe: dict[str, Any], files: dict[str, bytes], status: int, code: str
) -> None:
    answer = one_shot(api, recipe, **files)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert api.stored() == []
    assert api.client.get("/v1/jobs").json() == {"jobs": []}


# Following


def test_events_carry_the_progress_of_training(ready: Api) -> None:
    job = training_job(ready)
    save(ready, replace(job, step="training: step 120 of 300", training_progress=PROGRESS))
    save(ready, job.succeed(NOW, variant="int8"))
    events = ready.client.get(f"/v1/jobs/{job.id}/events").text
    told = [json.loads(line[5:])["training_progress"] for line in events.splitlines() if line.startswith("data:")]
    assert told[:2] == [None, None]
    assert TrainingProgress(**told[2]) == PROGRESS


def training_series(api: Api) -> set[str]:
    lines = api.client.get("/metrics").text.splitlines()
    return {line for line in lines if line.startswith("octet_training_")}


def test_metrics_show_training_until_its_job_ends(ready: Api) -> None:
    job = replace(training_job(ready), training_progress=PROGRESS)
    save(ready, job)
    shown = wait_until(partial(training_series, ready), what="the training is read")
    assert 'octet_training_step{model="net",version="1"} 120.0' in shown
    assert 'octet_training_score{model="net",version="1"} 0.25' in shown
    assert len(shown) == 6
    save(ready, job.succeed(NOW, variant="int8"))
    wait_until(lambda: not training_series(ready), what="its series are gone")


def test_jobs_that_run_are_listed_apart(ready: Api) -> None:
    ask(ready)
    first, second = training_job(ready), training_job(ready)
    save(ready, second.fail(NOW, JobError(code="diverged", message="why")))
    running = ready.do(lambda services: services.live.running(10))
    assert [job.id for job in running] == [first.id]
    training_job(ready)
    assert len(ready.do(lambda services: services.live.running(1))) == 1


# Ending early


def test_a_wish_to_end_training_is_kept_for_a_week(ready: Api, redis: Redis) -> None:
    job = training_job(ready)
    assert not asked_to_finish(ready, job)
    ready.do(lambda services: services.live.ask_to_finish(job.id))
    with RedisClient.from_url(redis.url) as client:
        assert KEEP_WISH_SECONDS - 60 < int(client.ttl(f"octet:finish:{job.id}")) <= KEEP_WISH_SECONDS
        client.expire(f"octet:finish:{job.id}", 0)
    assert not asked_to_finish(ready, job)


def test_a_forgotten_job_has_no_wish(ready: Api) -> None:
    job = training_job(ready)
    ready.do(lambda services: services.live.ask_to_finish(job.id))
    ready.do(lambda services: services.live.forget(job.id))
    assert not asked_to_finish(ready, job)


def test_training_is_asked_to_end_and_the_job_goes_on(ready: Api) -> None:
    job = training_job(ready)
    answer = ready.client.post(f"/v1/jobs/{job.id}/cancel?keep=best")
    assert (answer.status_code, answer.json()["id"], answer.json()["state"]) == (202, job.id, "running")
    assert asked_to_finish(ready, job)
    assert job_of(ready, job.id).state is JobState.RUNNING


def test_a_job_that_trains_is_still_cancelled_without_keep(ready: Api) -> None:
    job = training_job(ready)
    answer = ready.client.post(f"/v1/jobs/{job.id}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")


def not_kept(api: Api, job: Job) -> str:
    answer = api.client.post(f"/v1/jobs/{job.id}/cancel?keep=best")
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")
    assert job_of(api, job.id).state is job.state
    assert not asked_to_finish(api, job)
    return str(answer.json()["detail"])


def test_a_queued_job_has_no_best_to_keep(ready: Api) -> None:
    job = job_of(ready, ask(ready).json()["id"])
    assert "is queued and has trained nothing yet: cancel it without keep" in not_kept(ready, job)


def test_a_job_that_does_not_train_has_no_best_to_keep(ready: Api) -> None:
    answer = ready.client.post("/v1/jobs", json={"kind": "quantize", "model": "net", "calibration": "teach"})
    job = job_of(ready, answer.json()["id"]).start(NOW)
    save(ready, job)
    assert "does not train, so there is no best to keep" in not_kept(ready, job)


def test_a_final_job_keeps_its_end(ready: Api) -> None:
    job = training_job(ready).succeed(NOW, variant="int8")
    save(ready, job)
    assert "is succeeded already: only a running job can end its training" in not_kept(ready, job)


@pytest.mark.parametrize(
    ("step", "finished"), [("measuring latency", 120), ("training: step 300 of 300", 300), ("publishing", 300)]
)
def test_a_training_that_is_over_cannot_be_ended(ready: Api, step: str, finished: int) -> None:
    job = replace(training_job(ready), step=step, training_progress=replace(PROGRESS, step=finished))
    save(ready, job)
    assert "has ended its training already" in not_kept(ready, job)


@pytest.mark.parametrize("step", ["fetching the model", "making what training begins from"])
def test_a_training_that_has_not_begun_may_be_ended(ready: Api, step: str) -> None:
    job = replace(training_job(ready), step=step)
    save(ready, job)
    assert ready.client.post(f"/v1/jobs/{job.id}/cancel?keep=best").status_code == 202
    assert asked_to_finish(ready, job)


def test_a_training_that_runs_may_be_ended(ready: Api) -> None:
    job = replace(training_job(ready), step="training: step 120 of 300", training_progress=PROGRESS)
    save(ready, job)
    assert ready.client.post(f"/v1/jobs/{job.id}/cancel?keep=best").status_code == 202


def test_nothing_but_the_best_is_kept(ready: Api) -> None:
    answer = ready.client.post(f"/v1/jobs/{training_job(ready).id}/cancel?keep=worst")
    refused(answer, "request_invalid", "'keep'", "'best'")


def test_ending_early_says_503_while_redis_is_down(api_without_redis: Api) -> None:
    answer = api_without_redis.client.post(f"/v1/jobs/{'f' * 32}/cancel?keep=best")
    assert (answer.status_code, answer.json()["code"]) == (503, "queue_unavailable")
