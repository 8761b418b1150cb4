"""The highest classes of a prediction, by name. One application serves the module."""

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.api.harness import Api, publish_model, running_api
from tests.graphs import rows

ROWS = rows(2)
BODY = {"inputs": ROWS.tolist()}
LABELS = ("cat", "dog", "eel", "fox")


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The application with `named` that has labels, `plain` that has none, and `odd` that has too few."""
    folder = tmp_path_factory.mktemp("serving")
    with running_api(folder / "data", redis_url=f"unix://{folder}/nobody-listens.sock") as running:
        for name, labels in (("named", LABELS), ("plain", None), ("odd", LABELS[:3])):
            publish_model(running, folder, name=name, labels=labels)
        yield running


def ask(api: Api, query: str, **options: Any) -> httpx.Response:
    return api.client.post(f"/predict?{query}", **({"json": BODY} | options))


def test_the_highest_classes_stand_beside_the_outputs(serving: Api) -> None:
    answer = ask(serving, "model=named&top_k=2").json()
    scores = np.array(answer["outputs"]["logits"]["data"])
    for row, top in zip(scores, answer["top"], strict=True):
        best = np.argsort(-row)[:2].tolist()
        assert top == [{"index": index, "label": LABELS[index], "score": float(row[index])} for index in best]


def test_without_labels_classes_have_their_index_alone(serving: Api) -> None:
    answer = ask(serving, "model=plain&top_k=10").json()
    assert [len(row) for row in answer["top"]] == [4, 4]
    assert {found["label"] for row in answer["top"] for found in row} == {None}


def test_who_does_not_ask_gets_no_classes(serving: Api) -> None:
    assert "top" not in ask(serving, "model=named").json()


@pytest.mark.parametrize("count", ["0", "x", "1001", "-1"])
def test_a_count_that_makes_no_sense_is_refused(serving: Api, count: str) -> None:
    answer = ask(serving, f"model=named&top_k={count}")
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")


def test_labels_that_do_not_fit_are_said_so(serving: Api) -> None:
    answer = ask(serving, "model=odd&top_k=1")
    assert (answer.status_code, answer.json()["code"]) == (422, "signature_mismatch")
    assert "3 labels, but its output has 4 classes" in answer.json()["detail"]
    assert ask(serving, "model=odd").status_code == 200


def test_an_array_has_no_room_for_classes(serving: Api) -> None:
    answer = ask(serving, "model=named&top_k=1", headers={"Accept": "application/x-npy"})
    assert (answer.status_code, "JSON" in answer.json()["detail"]) == (422, True)


def test_an_affinity_that_is_not_printable_is_refused(serving: Api) -> None:
    answer = ask(serving, "model=named", headers={b"Octet-Affinity": b"a\xe4"})
    assert (answer.status_code, "Octet-Affinity" in answer.json()["detail"]) == (422, True)
