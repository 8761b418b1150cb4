"""The error tree."""

from app.domain import errors
from app.domain.errors import JobFailure, OctetError, StageCrashed, failure_of, job_failure, tree


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [error.code for error in tree()]
    assert len(set(codes)) == len(codes)


def test_the_drawn_tree_names_every_error() -> None:
    drawn = errors.__doc__ or ""
    assert [error.__name__ for error in tree() if error.__name__ not in drawn] == []


def test_every_error_is_an_octet_error_with_its_message() -> None:
    assert all(issubclass(error, OctetError) and str(error("why")) == "why" for error in tree())


def test_a_failure_is_rebuilt_from_its_code() -> None:
    assert all(type(job_failure(error.code, "why")) is error for error in tree(JobFailure))


def test_a_code_that_is_no_failure_becomes_a_crash() -> None:
    assert type(job_failure("model_not_found", "why")) is StageCrashed


def test_in_a_record_of_octets_own_every_code_is_believed() -> None:
    assert all(type(failure_of(error.code, "why")) is error for error in tree())
    assert type(failure_of("cancelled", "why")) is JobFailure
