"""What a worker says when it starts on a kernel that cannot confine uploads."""

import logging

import pytest

from workers import bootstrap, own_network


@pytest.mark.parametrize(("allowed", "says"), [(False, "they are refused"), (True, "they are taken all the same")])
def test_a_kernel_without_a_sandbox_is_named_at_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, allowed: bool, says: str
) -> None:
    monkeypatch.setattr(bootstrap, "missing_protections", lambda: ("Landlock",))
    with caplog.at_level(logging.WARNING):
        bootstrap.check_sandbox(allow_unsandboxed=allowed)
    assert "this kernel lacks Landlock" in caplog.text
    assert says in caplog.text


def test_a_kernel_with_all_of_it_is_passed_over_in_silence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bootstrap, "missing_protections", tuple)
    monkeypatch.setattr(own_network, "available", lambda: True)
    bootstrap.check_sandbox(allow_unsandboxed=False)
    assert caplog.text == ""


@pytest.mark.parametrize(("allowed", "says"), [(False, "it is refused"), (True, "it is done all the same")])
def test_a_machine_without_networks_for_those_that_train_together_is_named_at_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, allowed: bool, says: str
) -> None:
    monkeypatch.setattr(bootstrap, "missing_protections", tuple)
    monkeypatch.setattr(own_network, "available", lambda: False)
    with caplog.at_level(logging.WARNING):
        bootstrap.check_sandbox(allow_unsandboxed=allowed)
    assert "no process a network of its own" in caplog.text
    assert says in caplog.text
