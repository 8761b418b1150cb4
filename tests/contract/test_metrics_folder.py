"""The folder in which the processes of one machine share their metrics, with real processes."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.running import clean_environment, program

_HOLDS_TWO_VARIANTS = """
import time
from app.telemetry.instruments import Instruments
instruments = Instruments(version="1")
instruments.variants_loaded.set(2)
meters = instruments.meters(("net", "1", "int8"))
with meters.prediction(began=time.perf_counter()) as observed:
    observed.answered(queue_seconds=0.001, compute_seconds=0.002, rows=1)
meters.prediction(began=time.perf_counter()).__enter__()
instruments.runner_restarts.labels("net", "1", "int8").inc()
print("set", flush=True)
input()
"""
_SHOWS = """
from app.telemetry.instruments import Instruments
instruments = Instruments(version="1")
instruments.forget_dead()
print(instruments.exposition().decode())
"""


def environment(folder: Path) -> dict[str, str]:
    return clean_environment() | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}


@contextmanager
def gateway_like(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", _HOLDS_TWO_VARIANTS]
    with program(command, env=environment(folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"set\n"
        yield process


def shown(folder: Path) -> str:
    command = [sys.executable, "-c", _SHOWS]
    return subprocess.run(command, env=environment(folder), capture_output=True, text=True, check=True).stdout


def test_what_a_killed_process_held_is_no_longer_counted_and_what_it_did_is(tmp_path: Path) -> None:
    with ExitStack() as stack:
        killed, _other = (stack.enter_context(gateway_like(tmp_path)) for _ in range(2))
        assert "octet_variants_loaded 4.0" in shown(tmp_path)
        killed.kill()
        killed.wait()
        after = shown(tmp_path)
    assert "octet_variants_loaded 2.0" in after
    assert 'octet_runner_restarts_total{model="net",variant="int8",version="1"} 2.0' in after


def test_histograms_add_up_over_processes_and_outlive_a_killed_one_and_what_was_in_flight_does_not(
    tmp_path: Path,
) -> None:
    labels = '{model="net",variant="int8",version="1"}'
    with ExitStack() as stack:
        killed, _other = (stack.enter_context(gateway_like(tmp_path)) for _ in range(2))
        assert f"octet_variant_requests_in_flight{labels} 2.0" in shown(tmp_path)
        killed.kill()
        killed.wait()
        after = shown(tmp_path)
    assert f"octet_variant_requests_in_flight{labels} 1.0" in after
    assert f"octet_compute_duration_seconds_count{labels} 2.0" in after
    assert 'octet_compute_duration_seconds_bucket{le="0.0025",model="net",variant="int8",version="1"} 2.0' in after


def test_a_gateway_begins_with_an_empty_folder_and_leaves_other_files_be(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    for name in ("counter_4000000.db", "gauge_livesum_4000000.db", "histogram_4000000.db", "mine.db"):
        (folder / name).write_bytes(b"")
    (tmp_path / "no-folder").write_bytes(b"")
    broken_store = {"OCTET_STORE_URL": str(tmp_path / "no-folder"), "OCTET_METRICS_DIR": str(folder)}
    command = [sys.executable, "-m", "app.launcher", "gateway"]
    known = clean_environment() | broken_store | {"OCTET_REDIS_URL": "redis://127.0.0.1:9"}
    done = subprocess.run(command, env=known, capture_output=True, text=True, check=False, timeout=60)
    assert [file.name for file in folder.iterdir()] == ["mine.db"]
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no-folder cannot be opened: set OCTET_STORE_URL" in done.stderr
