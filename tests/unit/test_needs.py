"""A test that lacks something is skipped on a desk and fails in continuous integration."""

import pytest

from tests.needs import absent


def test_what_is_absent_skips_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs a kernel"):
        absent("a kernel")


def test_what_is_absent_in_continuous_integration_fails_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="a kernel is missing"):
        absent("a kernel")
