"""Fixtures that many tests share: an embedded Redis, and a whole Octet as a user starts it."""

import logging
import os
import signal
from collections.abc import Iterator

import pytest

from tests.running import Redis, Service, running_redis, running_service

# A shell without job control starts background programs deaf to Ctrl-C, and so would be what the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Two test processes on two cores would spin in each other's way; stages are started so too.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests import onnxruntime themselves, before `workers` could say so
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"  # tests import grpc themselves, before `app.rpc` could say so


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
