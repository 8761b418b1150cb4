"""Fixtures that many tests share: an embedded Redis, and a whole Octet as a user starts it."""

import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.running import Redis, Service, running_redis, running_service

# A shell without job control starts background programs deaf to Ctrl-C, and so would be what the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Two test processes on two cores would spin in each other's way; stages are started so too.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests import onnxruntime themselves, before `workers` could say so
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"  # tests import grpc themselves, before `app.rpc` could say so

STRETCH = 500
"""Tests after which the time is told."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give what schemathesis makes of one function a name for every route: pytest-xdist runs one test of a name.

    The name is for telling them apart: `-k` does not find it, and pytest does not take it.
    """
    if (label := getattr(item, "operation_label", None)) and item.parent is not None:
        item._id = item.parent.id.child(f"{item.name}[{label}]")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first: several processes wait for what is begun last.

    Tests that share a name are refused: pytest-xdist would leave out all but one of them without a word.
    """
    items.sort(key=lambda item: not item.nodeid.startswith("tests/e2e/"))
    twice = [name for name, count in Counter(item.nodeid for item in items).items() if count > 1]
    if twice:
        raise pytest.UsageError(f"several tests have the name {twice[0]}")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Meanwhile(reporter), "meanwhile")


class _Meanwhile:
    """Says what failed when it fails, and now and then how long it took so far: not every run comes to its summary."""

    def __init__(self, reporter: pytest.TerminalReporter) -> None:
        self._reporter = reporter
        self._began = time.monotonic()
        self._done = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._reporter.write_line(f"\n{report.nodeid}, {report.when}: {report.longreprtext}")
        if report.when == "teardown":
            self._done += 1
            if self._done % STRETCH == 0:
                self._reporter.write_line(f" {self._done} tests in {time.monotonic() - self._began:.0f} s")


@pytest.fixture(autouse=True)
def warnings_are_captured(caplog: pytest.LogCaptureFixture) -> None:
    """Let every test read what is logged: NNCF's `set_log_level` sets the level of pytest's own handler too."""
    caplog.set_level(logging.WARNING)


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A real Redis of this test process alone."""
    with running_redis(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A whole Octet of this test process alone. Tests share it: take names of your own, and leave its processes be."""
    with running_service(tmp_path_factory.mktemp("octet")) as started:
        yield started
