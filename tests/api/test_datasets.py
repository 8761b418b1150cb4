"""Datasets: upload and look up."""

from tests.api.harness import Api, job_of, publish_dataset


def test_a_dataset_is_stored_and_gets_an_import_job(api: Api) -> None:
    answer = api.client.post("/v1/datasets", files={"file": ("Rows 1.npz", b"12345")})
    assert (answer.status_code, answer.headers["location"]) == (201, "/v1/datasets/rows-1:1")
    job = job_of(api, answer.json()["import_job"])
    assert (job.subject, job.dataset, job.model) == ("dataset", "rows-1:1", None)


def test_a_ready_dataset_shows_its_arrays(api: Api) -> None:
    publish_dataset(api)
    shown = api.client.get("/v1/datasets/rows").json()
    assert shown["state"] == "ready"
    assert shown["manifest"]["arrays"] == [{"name": "x", "dtype": "float32", "row_shape": [3, 8, 8]}]
    assert api.client.get("/v1/datasets").json() == {"datasets": [shown]}


def test_an_unknown_dataset_is_not_found(api: Api) -> None:
    assert api.client.get("/v1/datasets/rows").json()["code"] == "dataset_not_found"


def test_a_dataset_has_no_preprocessing(api: Api) -> None:
    form = [("preprocessing", (None, b"{}")), ("file", ("rows.npz", b"1"))]
    answer = api.client.post("/v1/datasets", files=form)
    assert (answer.status_code, "unknown field 'preprocessing'" in answer.json()["detail"]) == (422, True)
    assert api.stored() == []
