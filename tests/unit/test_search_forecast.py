"""What a search is said to need before it begins."""

from dataclasses import replace

import pytest

from app.domain.errors import DoesNotFit
from workers.jobs.search.forecast import Load, does_not_fit, foresee
from workers.limits import Limits

GIB = 2**30
LOAD = Load(size_bytes=10**6, row_seconds=0.001, added_bytes=2 * 10**6, calibration=300, selection=2000, final=10_000)
LIMITS = Limits(memory_bytes=8 * GIB, scratch_bytes=16 * GIB, seconds=3600)


def test_a_small_model_fits() -> None:
    assert does_not_fit(LOAD, time_limit_seconds=240, limits=LIMITS) is None


@pytest.mark.parametrize(
    ("load", "limits", "time_limit", "names"),
    [
        (replace(LOAD, size_bytes=5 * GIB), LIMITS, 900.0, "OCTET_JOB_MEMORY_BYTES"),
        (replace(LOAD, row_seconds=1.0), LIMITS, 9000.0, "OCTET_JOB_TIMEOUT_SECONDS"),
        (LOAD, LIMITS, 10.0, "time_limit_seconds"),
    ],
)
def test_what_cannot_fit_is_refused_with_need_limit_and_what_to_raise(
    load: Load, limits: Limits, time_limit: float, names: str
) -> None:
    failure = does_not_fit(load, time_limit_seconds=time_limit, limits=limits)
    assert isinstance(failure, DoesNotFit)
    assert names in failure.message


def test_the_forecast_counts_all_rows_and_never_more_than_the_time_limit() -> None:
    forecast = foresee(LOAD, time_limit_seconds=60)
    assert (forecast.rows, forecast.seconds, forecast.actual_seconds) == (12_300, 60, None)


def test_training_is_expected_to_take_longer_by_the_rows_it_goes_through() -> None:
    more = LOAD.training_seconds(2000) - LOAD.training_seconds(1000)
    assert more >= 1000 * LOAD.row_seconds
