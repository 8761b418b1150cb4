"""Closeness of outputs against definitions written out, and at the edges: zeros, masks, equal outputs."""

from math import exp, log

import numpy as np
import numpy.typing as npt
import pytest

from app.domain.errors import DatasetUnfit
from workers.measure.accuracy import AccuracyTally
from workers.measure.fidelity import FidelityTally, divergence, sqnr_db

Floats = npt.NDArray[np.float64]
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (40, 7))
NEAR = LOGITS + RNG.normal(0, 0.3, LOGITS.shape)


def tally(reference: Floats, outputs: Floats, *, batch: int) -> FidelityTally:
    made = FidelityTally()
    for start in range(0, len(reference), batch):
        part = slice(start, start + batch)
        made.add([reference[part]], [outputs[part]])
        made.add_logits(reference[part], outputs[part])
    return made


def slow_divergence(reference: list[float], logits: list[float]) -> float:
    p = [exp(value) / sum(map(exp, reference)) for value in reference]
    q = [exp(value) / sum(map(exp, logits)) for value in logits]
    return sum(one * log(one / other) for one, other in zip(p, q, strict=True))


def test_divergence_agrees_with_its_definition() -> None:
    slow = [slow_divergence(a, b) for a, b in zip(LOGITS.tolist(), NEAR.tolist(), strict=True)]
    np.testing.assert_allclose(divergence(LOGITS, NEAR), slow, rtol=1e-9)


def test_divergence_of_large_logits_is_finite() -> None:
    assert np.isfinite(divergence(LOGITS * 1e4, NEAR * 1e4)).all()


def test_masked_classes_add_no_divergence() -> None:
    masked = np.where(np.arange(7) == 3, -np.inf, LOGITS)
    unmasked = np.delete(LOGITS, 3, axis=1), np.delete(NEAR, 3, axis=1)
    found = divergence(masked, np.where(np.arange(7) == 3, -np.inf, NEAR))
    np.testing.assert_allclose(found, divergence(*unmasked), rtol=1e-9)


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_batches_do_not_change_the_result(batch: int) -> None:
    whole, parts = tally(LOGITS, NEAR, batch=40).result(), tally(LOGITS, NEAR, batch=batch).result()
    assert parts.agreement == whole.agreement
    assert (parts.sqnr_db, parts.cosine, parts.kl) == pytest.approx((whole.sqnr_db, whole.cosine, whole.kl))


def test_fidelity_agrees_with_its_definitions() -> None:
    found = tally(LOGITS, NEAR, batch=8).result()
    cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(LOGITS, NEAR, strict=True)]
    assert found.cosine == pytest.approx(np.mean(cosines))
    assert found.sqnr_db == pytest.approx(10 * np.log10(np.sum(LOGITS**2) / np.sum((LOGITS - NEAR) ** 2)))
    assert found.agreement is not None
    assert found.agreement.count == sum(a.argmax() == b.argmax() for a, b in zip(LOGITS, NEAR, strict=True))


def test_equal_outputs_have_no_noise() -> None:
    found = tally(LOGITS, LOGITS, batch=40).result()
    assert (found.sqnr_db, found.kl) == (None, 0)
    assert found.cosine == pytest.approx(1)
    assert found.agreement is not None
    assert found.agreement.value == 1


def test_rounding_to_n_levels_has_the_textbook_noise() -> None:
    # uniform input over [-1, 1], step q: noise q^2/12 against 1/3; 3 standard errors of the sums are under 0.1 dB
    values, step = RNG.uniform(-1, 1, (200, 1000)), 2 / 256
    made = FidelityTally()
    made.add([values], [np.round(values / step) * step])
    assert made.result().sqnr_db == pytest.approx(10 * np.log10((1 / 3) / (step**2 / 12)), abs=0.1)


def test_rows_of_zeros_have_a_cosine() -> None:
    made = FidelityTally()
    made.add([np.zeros((2, 3))], [np.array([[0.0, 0, 0], [0, 1, 0]])])
    assert made.result().cosine == pytest.approx(0.5)


def test_noise_without_signal_is_finite() -> None:
    found = sqnr_db(0.0, 1.0)
    assert found is not None
    assert np.isfinite(found)


def test_flips_name_the_rows() -> None:
    eye = np.eye(4, dtype=np.float32)
    made = AccuracyTally(["float32", "int8"])
    # labels 0 1 2 3; float32 answers 0 2 2 0, the variant 0 1 3 1
    made.add([eye[[0, 2, 2, 0]], eye[[0, 1, 3, 1]]], labels=np.arange(4), rows=(10, 20, 30, 40))
    found = made.result(("a", "b"))
    assert found is not None
    assert (found.flips.gained, found.flips.lost, found.flips.moved) == ((20,), (30,), (40,))
    assert [share.count for share in found.measured.values()] == [2, 2]
    assert [(entry.name, entry.float32, entry.variant) for entry in found.classes] == [
        ("a", 1, 1),
        ("b", 0, 1),
        ("2", 1, 0),
        ("3", 0, 0),
    ]


def test_a_label_beyond_the_classes_names_its_row() -> None:
    made = AccuracyTally(["float32"])
    with pytest.raises(DatasetUnfit, match="Row 8 is labelled 3, but the model tells 3 classes apart"):
        made.add([np.eye(3)], labels=np.array([0, 3, 1]), rows=(7, 8, 9))
