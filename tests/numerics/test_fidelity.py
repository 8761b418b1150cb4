"""Closeness of outputs against definitions written out, and at the edges: zeros, masks, equal outputs."""

from math import exp, log

import numpy as np
import numpy.typing as npt
import pytest

from workers.measure.accuracy import AccuracyTally, Change
from workers.measure.fidelity import FidelityTally, closeness, divergence, sqnr_db

Floats = npt.NDArray[np.float64]
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (40, 7))
NEAR = LOGITS + RNG.normal(0, 0.3, LOGITS.shape)


def tally(reference: Floats, outputs: Floats, *, batch: int) -> FidelityTally:
    made = FidelityTally()
    for start in range(0, len(reference), batch):
        part = slice(start, start + batch)
        made.add(closeness([reference[part]], [outputs[part]]))
        made.add_classes(reference[part].argmax(axis=1), outputs[part].argmax(axis=1))
        made.add_divergence(divergence(reference[part], outputs[part]))
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
    made.add(closeness([values], [np.round(values / step) * step]))
    assert made.result().sqnr_db == pytest.approx(10 * np.log10((1 / 3) / (step**2 / 12)), abs=0.1)


def test_rows_of_zeros_have_a_cosine() -> None:
    made = FidelityTally()
    made.add(closeness([np.zeros((2, 3))], [np.array([[0.0, 0, 0], [0, 1, 0]])]))
    assert made.result().cosine == pytest.approx(0.5)


def test_noise_without_signal_is_finite() -> None:
    found = sqnr_db(0.0, 1.0)
    assert found is not None
    assert np.isfinite(found)


def test_masks_and_several_outputs_are_one_row() -> None:
    masked = np.where(np.arange(7) == 3, -np.inf, LOGITS)
    found = closeness([masked, LOGITS], [np.where(np.arange(7) == 3, -1e30, NEAR), NEAR])
    kept = np.delete(LOGITS, 3, axis=1), np.delete(NEAR, 3, axis=1)
    whole = closeness([np.hstack([kept[0], LOGITS])], [np.hstack([kept[1], NEAR])])
    for one, other in ((found.signal, whole.signal), (found.noise, whole.noise), (found.cosine, whole.cosine)):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def flipped() -> AccuracyTally:
    """Labels 0 1 2 3; float32 answers 0 2 2 0, the variant 0 1 3 1."""
    made = AccuracyTally(["float32", "int8"])
    made.add([np.array([0, 2, 2, 0]), np.array([0, 1, 3, 1])], labels=np.arange(4), rows=(10, 20, 30, 40))
    return made


def test_flips_name_the_rows() -> None:
    found = flipped().result(("a", "b"))
    assert found is not None
    assert (found.flips.gained, found.flips.lost, found.flips.moved) == ((20,), (30,), (40,))
    assert [share.count for share in found.measured.values()] == [2, 2]
    assert [(entry.name, entry.float32, entry.variant) for entry in found.classes] == [
        ("a", 1, 1),
        ("b", 0, 1),
        ("2", 1, 0),
        ("3", 0, 0),
    ]


def test_changes_begin_with_the_rows_that_were_lost() -> None:
    assert [change.row for change in flipped().changes(9)] == [30, 20, 40]
    assert flipped().changes(1) == [Change(row=30, label=2, float32=2, variant=3)]


def test_without_labels_changes_are_still_known() -> None:
    made = AccuracyTally(["float32", "int8"])
    made.add([np.array([0, 2]), np.array([0, 1])], labels=None, rows=(5, 6))
    assert made.result(()) is None
    assert made.changes(9) == [Change(row=6, label=None, float32=2, variant=1)]


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_cosine_of_values_whose_squares_no_float64_holds_is_that_of_any_other(scale: float) -> None:
    found = closeness([LOGITS * scale, LOGITS], [NEAR * scale, NEAR])
    expected = closeness([LOGITS, LOGITS * 0], [NEAR, NEAR * 0]) if scale > 1 else closeness([LOGITS], [NEAR])
    # beside 1e200 an output near 1 adds nothing, and beside it one of 1e-200: only rounding is left, some 2^-52 a step
    np.testing.assert_allclose(found.cosine, expected.cosine, rtol=1e-12)


def test_energies_beyond_float64_have_no_level() -> None:
    assert sqnr_db(np.inf, np.inf) is None
