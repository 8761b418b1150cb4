"""What one prediction is counted as, and what is shown of a variant that nobody uses any more."""

import asyncio
import time

import pytest

from app.domain.errors import (
    AnswerTooLarge,
    DeadlineExceeded,
    QueueFull,
    RunnerCrashed,
    SignatureMismatch,
    StoreUnavailable,
    VariantNotReady,
    WaitTooLong,
)
from app.telemetry.exposition import KEPT_SECONDS
from app.telemetry.instruments import Instruments
from app.telemetry.meters import reason_of

NET = ("net", "1", "int8")
LABELS = 'model="net",variant="int8",version="1"'


class Gone(Exception):
    """What a server raises when its client has left."""


@pytest.fixture
def instruments() -> Instruments:
    return Instruments(version="1", leaves=(Gone,))


def shown(instruments: Instruments, name: str) -> dict[str, float]:
    """Return the samples of that name by their labels, sorted as the exposition of several processes has them."""
    samples: dict[str, float] = {}
    for line in instruments.exposition().decode().splitlines():
        series, _, value = line.rpartition(" ")
        if series.partition("{")[0] == name:
            samples[",".join(sorted(series.partition("{")[2].rstrip("}").split(",")))] = float(value)
    return samples


def predict(instruments: Instruments, error: BaseException | None = None) -> None:
    with instruments.meters(NET).prediction(began=time.perf_counter() - 0.02) as observed:
        if error is not None:
            raise error
        observed.answered(queue_seconds=0.001, compute_seconds=0.01, rows=4)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (QueueFull("full"), "queue_full"),
        (WaitTooLong("would be late"), "deadline_predicted"),
        (DeadlineExceeded("late"), "deadline"),
        (VariantNotReady("starting"), "not_ready"),
        (StoreUnavailable("down"), "unavailable"),
        (AnswerTooLarge("large"), "too_large"),
        (SignatureMismatch("unfit"), "invalid"),
        (RunnerCrashed("dead"), "crashed"),
        (asyncio.CancelledError(), "cancelled"),
        (Gone(), "cancelled"),
        (ZeroDivisionError(), "error"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_prediction_without_an_answer_is_counted_by_its_reason(
    instruments: Instruments, error: BaseException, reason: str
) -> None:
    with pytest.raises(type(error)):
        predict(instruments, error)
    assert shown(instruments, "octet_requests_rejected_total") == {
        f"{LABELS.replace(',v', f',reason={chr(34)}{reason}{chr(34)},v', 1)}": 1
    }


def test_reason_takes_the_nearest_family_of_an_error() -> None:
    assert reason_of(SignatureMismatch("unfit")) == "invalid"
    assert reason_of(Gone()) == "error"


def test_an_answered_prediction_fills_the_three_histograms(instruments: Instruments) -> None:
    predict(instruments)
    for name in ("request", "queue", "compute"):
        assert list(shown(instruments, f"octet_{name}_duration_seconds_count").values()) == [1]
    assert shown(instruments, "octet_queue_duration_seconds_sum") == {LABELS: pytest.approx(0.001)}
    assert shown(instruments, "octet_requests_rejected_total") == {}


def test_a_prediction_is_in_flight_until_it_ends(instruments: Instruments) -> None:
    with instruments.meters(NET).prediction(began=time.perf_counter()):
        assert shown(instruments, "octet_variant_requests_in_flight") == {LABELS: 1}
    assert shown(instruments, "octet_variant_requests_in_flight") == {LABELS: 0}


def test_a_refusal_before_the_body_is_read_counts_as_a_request(instruments: Instruments) -> None:
    instruments.meters(NET).refused(QueueFull("full"), began=time.perf_counter())
    assert list(shown(instruments, "octet_requests_rejected_total").values()) == [1]
    assert list(shown(instruments, "octet_request_duration_seconds_count")) == [
        'model="net",outcome="unavailable",variant="int8",version="1"'
    ]


def test_many_equal_observations_count_as_so_many(instruments: Instruments) -> None:
    instruments.batch_size.labels(*NET).observe_many(8, count=5)
    buckets = shown(instruments, "octet_batch_size_bucket")
    assert (buckets[f'le="4.0",{LABELS}'], buckets[f'le="8.0",{LABELS}']) == (0, 5)
    assert shown(instruments, "octet_batch_size_sum") == {LABELS: 40}


def test_a_variant_that_was_used_long_ago_is_not_shown(instruments: Instruments) -> None:
    predict(instruments)
    instruments.used(("other", "1", "int8"))
    instruments.variant_used.labels(*NET).set(time.time() - KEPT_SECONDS - 1)
    assert 'model="other"' in instruments.exposition().decode()
    assert 'model="net"' not in instruments.exposition().decode()


def test_a_variant_that_is_used_again_goes_on_counting(instruments: Instruments) -> None:
    predict(instruments)
    instruments.variant_used.labels(*NET).set(0)
    assert shown(instruments, "octet_queue_duration_seconds_count") == {}
    instruments.used(NET)
    assert shown(instruments, "octet_queue_duration_seconds_count") == {LABELS: 1}
