"""What the gateway costs: seconds from start to its first answer, memory at rest, and growth while 1 GiB is uploaded.

python -m benchmarks.gateway
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from app.client import Octet
from examples.service import START_SECONDS, OctetDidNotStart, embedded_octet, free_port

STARTS = 5
MEBIBYTE = 2**20


def seconds_to_first_answer(folder: Path) -> float:
    """Start a gateway and nothing else; return the seconds until `/livez` answers.

    Raises:
        OctetDidNotStart: it ended, or did not answer within a minute.
    """
    port = free_port()
    environment = os.environ | {
        "OCTET_DATA_DIR": str(folder),
        "OCTET_PORT": str(port),
        "OCTET_LOG_LEVEL": "error",
        "OCTET_REDIS_URL": "redis://127.0.0.1:9",  # nothing listens there; `/livez` does not ask
    }
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "app.launcher", "gateway"], env=environment)
    try:
        while (passed := time.perf_counter() - began) < START_SECONDS and process.poll() is None:
            if answers(f"http://127.0.0.1:{port}/livez"):
                return time.perf_counter() - began
            time.sleep(0.005)
        raise OctetDidNotStart(
            f"No answer after {passed:.1f} s (exit status {process.poll()}): the gateway's messages above say why."
        )
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    """Whether the URL answers 200."""
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False


def upload_growth(octet: Octet, folder: Path) -> tuple[float, float]:
    """Return the gateway's PSS at rest and how far its peak rises above it while 1 GiB comes in, in MiB."""
    (gateway,) = [
        child
        for child in psutil.Process().children(recursive=True)
        if child.cmdline()[-2:] == ["app.launcher", "gateway"]
    ]
    octet.metrics()
    at_rest = gateway.memory_full_info().pss / MEBIBYTE
    resident = gateway.memory_info().rss / MEBIBYTE
    Path(f"/proc/{gateway.pid}/clear_refs").write_text("5")  # resets the high-water mark
    large = folder / "large.onnx"
    with large.open("wb") as file:
        file.truncate(2**30)
    octet.upload_model(large, name="large")
    status = Path(f"/proc/{gateway.pid}/status").read_text()
    return at_rest, int(status.split("VmHWM:")[1].split()[0]) / 1024 - resident


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="octet-bench-") as name:
        folder = Path(name)
        starts = [seconds_to_first_answer(folder / "start") for _ in range(STARTS)]
        print(f"start to first answer: median {statistics.median(starts):.2f} s, worst {max(starts):.2f} s of {STARTS}")
        with embedded_octet(folder) as octet:
            at_rest, growth = upload_growth(octet, folder)
        print(f"memory at rest: {at_rest:.0f} MiB PSS; an upload of 1 GiB adds {growth:.0f} MiB to its peak")
    return 0


if __name__ == "__main__":
    sys.exit(main())
