"""Stages in several processes: they agree, survive the loss of one, keep to the limits together, and leave nothing."""

import asyncio
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from app.domain.datasets import DatasetFormat
from app.domain.errors import DatasetUnfit, DoesNotFit, OutOfMemory, StageCrashed
from app.domain.recipes import PtqStatic, Qat
from app.domain.tensors import DType, Signature, TensorSpec
from tests import graphs
from tests.contract import crews
from tests.needs import absent, need_own_network
from tests.running import program, said_through
from workers import usage
from workers.confinement import missing_protections
from workers.limits import Limits, Machines
from workers.sandbox import run_stage
from workers.stage_records.common import VARIANT_OUTPUT, RowSource
from workers.stage_records.making import TransformResult, TransformSpec
from workers.stage_records.training import Start, TrainResult, TrainSpec
from workers.training.join import Member, Order, follow


@pytest.fixture(scope="module", autouse=True)
def protections() -> None:
    if missing := missing_protections():
        absent(f"a kernel with {' and '.join(missing)}")
    need_own_network()


def _told(scratch: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in sorted(scratch.glob("rank*.json"))}


def _run(scratch: Path, source: str, *, processes: int = 2, limits: Limits = crews.LIMITS) -> None:
    asyncio.run(crews.execute(scratch, source, processes=processes, limits=limits))


def _without_claim(scratch: Path, source: str, *, processes: int) -> dict[str, Any]:
    """Run code that ends well and leaves no result."""
    with pytest.raises(StageCrashed, match=r"result\.json"):
        _run(scratch, f"{source}\nos._exit(0)", processes=processes)
    return _told(scratch)


ROWS = 48
SIGNATURE = Signature(
    inputs=(TensorSpec(name=graphs.INPUT, dtype=DType.FLOAT32, shape=(None, 3, 8, 8)),),
    outputs=(TensorSpec(name=graphs.OUTPUT, dtype=DType.FLOAT32, shape=(None, 4)),),
)


def _source(rows: range) -> RowSource:
    return RowSource(path="rows.npz", format=DatasetFormat.NPZ, rows=tuple(rows), preprocessing=None)


def _spec(**choices: Any) -> TrainSpec:
    return TrainSpec(
        float32="float32.onnx",
        starts=(Start(recipe="ptq_static", artifact="start.onnx"),),
        signature=SIGNATURE,
        recipe=Qat(batch_size=8, looks=2, **choices),
        training=_source(range(ROWS)),
        held_out=_source(range(ROWS, ROWS + 16)),
        seconds=100,
        memory_bytes=crews.LIMITS.memory_bytes,
    )


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a graph, its post-training quantization and rows."""
    folder = tmp_path_factory.mktemp("begun")
    onnx.save(graphs.conv_classifier(), folder / "float32.onnx")
    graphs.save_dataset(folder / "rows.npz", graphs.rows(ROWS + 16))
    spec = TransformSpec(
        artifact="float32.onnx", signature=SIGNATURE, recipe=PtqStatic(weight_bits=4), calibration=_source(range(ROWS))
    )
    made: TransformResult = asyncio.run(_stage("transform", spec, folder))
    shutil.move(folder / made.artifact, folder / "start.onnx")
    return folder


async def _stage(stage: str, spec: object, scratch: Path, *, limits: Limits = crews.LIMITS, **hooks: Any) -> Any:
    return await run_stage(
        stage, spec, scratch=scratch, limits=limits, on_progress=crews.ignore, on_log=crews.ignore, **hooks
    )


def _trained(begun: Path, folder: Path, **choices: Any) -> TrainResult:
    shutil.copytree(begun, folder)
    result: TrainResult = asyncio.run(_stage("train", _spec(**choices), folder))
    return result


def _answers(artifact: Path) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(artifact)
    answers: npt.NDArray[np.float32] = session.run(None, {graphs.INPUT: graphs.rows(ROWS + 16)})[0]
    return answers


def test_two_processes_train_the_same_artifact_as_one(begun: Path, tmp_path: Path) -> None:
    # AdamW divides by a gradient's size, and so makes much of rounding errors in gradients that are almost zero.
    choices: dict[str, Any] = {"weight_bits": 4, "steps": 24, "optimizer": "sgd", "learning_rate": 0.05}
    results = [_trained(begun, tmp_path / f"{count}", processes=count, **choices) for count in (1, 2)]
    before = _answers(begun / "start.onnx")
    alone, together = (_answers(tmp_path / name / VARIANT_OUTPUT) for name in ("1", "2"))
    assert np.abs(alone - before).max() > 0
    # Sums of floats in another order may move single weights to a neighbour on their grid.
    assert np.abs(together - alone).max() <= 0.02 * np.abs(alone - before).max()
    wire = results[1].outcome.wire
    assert wire is not None
    assert wire.sent_bytes == wire.plain_bytes > 0


def test_training_goes_on_from_the_checkpoint_when_a_process_is_killed(begun: Path, tmp_path: Path) -> None:
    """It ends with the same bytes as one that nobody disturbed."""
    kept: list[int] = []

    async def kill_once(step: int) -> None:
        if not kept:
            os.kill(_ranks()[-1], signal.SIGKILL)
        kept.append(step)

    choices: dict[str, Any] = {"weight_bits": 4, "steps": 400, "processes": 2, "compression": "int8"}
    spec = _spec(**choices, checkpoint_seconds=1.0)
    shutil.copytree(begun, tmp_path / "killed")
    killed: TrainResult = asyncio.run(_stage("train", spec, tmp_path / "killed", on_checkpoint=kill_once))
    _trained(begun, tmp_path / "calm", **choices)
    assert len(killed.outcome.resumed_at) == 1
    assert killed.outcome.resumed_at[0] > 0
    artifacts = [(tmp_path / name / VARIANT_OUTPUT).read_bytes() for name in ("killed", "calm")]
    assert artifacts[0] == artifacts[1]


def _ranks() -> list[int]:
    """Return the processes that train below this one."""
    found = [(pid, Path(f"/proc/{pid}/cmdline").read_bytes()) for pid in usage.family(os.getpid())]
    return [pid for pid, command in found if b"workers.training.rank" in command]


def test_a_failure_that_one_process_reports_ends_them_all_at_once(tmp_path: Path) -> None:
    fails = """
tell()
if rank == 1:
    import time
    from app.domain.errors import DatasetUnfit
    while not os.path.exists("rank0.0.json"):
        time.sleep(0.01)
    raise DatasetUnfit("Row 3 has no label: send another.")
while True:
    pass
"""
    with pytest.raises(DatasetUnfit, match="Row 3 has no label"):
        _run(tmp_path, crews.BEGINNING + fails)
    assert set(_told(tmp_path)) == {"rank0.0.json", "rank1.0.json"}


def test_memory_is_counted_over_all_processes(tmp_path: Path) -> None:
    takes = "kept = bytearray(2**29)\nfor at in range(0, 2**29, 4096): kept[at] = 1\nwhile True: pass"
    with pytest.raises(OutOfMemory):
        _run(tmp_path, takes, limits=replace(crews.LIMITS, memory_bytes=3 * 2**29))


def test_a_cancelled_stage_leaves_none_of_its_processes(tmp_path: Path) -> None:
    async def cancel() -> tuple[list[int], list[int]]:
        task, rank = await crews.started(tmp_path, crews.execute(tmp_path, crews.WAITS))
        held = [os.pidfd_open(pid) for pid in usage.family(_parent(rank))]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return held, select.select(held, [], [], 0)[0]

    held, ended = asyncio.run(cancel())
    assert len(held) == 3
    assert ended == held
    _assert_ended(held)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_all_processes_die_with_the_one_that_started_the_stage(tmp_path: Path) -> None:
    script = (
        "import asyncio, pathlib, sys\nfrom tests.contract import crews\n"
        "asyncio.run(crews.execute(pathlib.Path(sys.argv[1]), crews.WAITS))"
    )
    os.mkfifo(tmp_path / "started")
    with program([sys.executable, "-c", script, tmp_path]) as parent:
        rank = os.pidfd_open(int(said_through(tmp_path / "started")))
        parent.kill()
    _assert_ended([rank])


def _assert_ended(held: list[int]) -> None:
    for process in held:
        ended, _, _ = select.select([process], [], [], 30)
        os.close(process)
        assert ended


def test_two_machines_train_together(begun: Path, tmp_path: Path) -> None:
    endpoint = f"127.0.0.1:{_free_port()}"
    limits = replace(crews.LIMITS, machines=Machines(rendezvous=endpoint, number=2))
    scratch = tmp_path / "job"
    shutil.copytree(begun, scratch)
    command = [sys.executable, "-m", "workers.join", endpoint, "--rank", "1", "--scratch", str(tmp_path)]
    with program(command):
        result: TrainResult = asyncio.run(_stage("train", _spec(steps=8, processes=2), scratch, limits=limits))
    assert result.outcome.processes == 2
    assert result.outcome.wire is not None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stage": "convert"}, "machines that join only train"),
        ({"processes": 10_000}, "this machine has"),
        ({"processes": 0}, "this machine has"),
        ({"machines": 1}, "set --rank"),
        ({"run": "../x"}, "letters and digits"),
        ({"scratch": "/etc"}, "there is no folder"),
        ({"scratch": "a\0b"}, "there is no folder"),
    ],
)
def test_a_machine_that_joins_refuses_an_order_it_cannot_follow(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], says: str
) -> None:
    (tmp_path / "job").mkdir()
    order = Order(run="a", stage="train", scratch=str(tmp_path / "job"), processes=1, machines=2, spec="{}")
    member = Member(endpoint="127.0.0.1:1", node=1, below=tmp_path, limits=crews.LIMITS)
    assert not follow(replace(order, **change), member)
    assert says in caplog.text


def test_a_machine_that_joins_ends_a_run_at_its_own_deadline(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "job" / "tmp").mkdir(parents=True)
    order = Order(run="a", stage="train", scratch=str(tmp_path / "job"), processes=1, machines=2, spec="{}")
    limits = replace(crews.LIMITS, seconds=0.5)
    member = Member(endpoint=f"127.0.0.1:{_free_port()}", node=1, below=tmp_path, limits=limits)
    assert not follow(order, member)
    assert "not done after 0.5 seconds" in caplog.text


def test_processes_that_machines_cannot_share_are_refused(tmp_path: Path) -> None:
    limits = replace(crews.LIMITS, machines=Machines(rendezvous="127.0.0.1:1", number=2))
    with pytest.raises(DoesNotFit, match="a multiple of 2"):
        _run(tmp_path, "", processes=3, limits=limits)


ATTEMPTS = """
import ctypes, socket
libc = ctypes.CDLL(None, use_errno=True)
def attempt(action):
    try:
        action()
    except OSError as error:
        return f"failed: {error.strerror}"
    return "did it"
tell(
    outside=attempt(lambda: socket.create_connection(("127.0.0.1", PORT), timeout=5)),
    internet=attempt(lambda: socket.create_connection(("192.0.2.1", 443), timeout=5)),
    local=attempt(lambda: socket.socket(socket.AF_UNIX)),
    packets=attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    audit=attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9)),
    program=attempt(lambda: os.execv("/bin/true", ["true"])),
    process=attempt(os.fork),
    signal=attempt(lambda: os.kill(os.getppid(), 9)),
    files=attempt(lambda: open("/etc/passwd").read()),
    memory=attempt(lambda: os.memfd_create("x")),
)
"""


def test_a_process_among_several_reaches_nothing_but_the_others(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = f"PORT = {server.getsockname()[1]}\n{crews.BEGINNING}{ATTEMPTS}"
        told = _without_claim(tmp_path, source, processes=2)
    for outcomes in told.values():
        assert {name: outcome for name, outcome in outcomes.items() if not outcome.startswith("failed")} == {}


HOSTILE_BYTES = """
import base64, time
from torch._C._distributed_c10d import TCPStore
payload = b"cposix\\nsystem\\n(Vtouch SCRATCH/ran\\ntR."
store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
keys = ["torch.rendezvous.octet", "/octet/torchelastic/assigned_ranks/0", "octet/torchelastic/assigned_ranks/0",
    "octet/torchelastic/role_info/0", "octet/torchelastic/agent/terminal_state/last_member", "attempt 1/rank"]
for key in keys:
    store.set(key, payload)
    store.set(key + "/base64", base64.b64encode(payload))
store.set(keys[0], base64.b64encode(payload))
tell(status=open("/proc/self/status").read())
"""


def test_what_a_process_writes_into_the_store_makes_nothing_run(tmp_path: Path) -> None:
    """Neither at once nor when the processes are started again."""
    dies = "os._exit(0 if again else 7)"
    with pytest.raises(StageCrashed, match=r"result\.json"):
        _run(tmp_path, f"{crews.BEGINNING}{HOSTILE_BYTES.replace('SCRATCH', str(tmp_path))}{dies}")
    assert {"rank0.1.json", "rank1.1.json"} <= set(_told(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_the_process_that_starts_the_others_is_confined_too(tmp_path: Path) -> None:
    async def look() -> str:
        task, rank = await crews.started(tmp_path, crews.execute(tmp_path, crews.WAITS))
        status = _status(_parent(rank))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return status

    status = asyncio.run(look())
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status
    assert "CapEff:\t0000000000000000" in status


def _status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


CONFINED = """
import pathlib, socket, subprocess, sys
from workers.confinement import confine_launcher
confine_launcher(pathlib.Path(sys.argv[1]))
subprocess.run([sys.executable, "-c", ""], check=True)
tried = {"write": lambda: open(sys.argv[2], "w"), "read": lambda: open("/etc/passwd"),
    "local": lambda: socket.socket(socket.AF_UNIX), "environment": lambda: open("/proc/1/environ").read()}
for name, attempt in tried.items():
    try:
        attempt()
    except OSError:
        continue
    print(name)
"""


def test_who_starts_the_others_may_start_programs_and_leave_the_scratch_folder_in_no_other_way(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    command = [sys.executable, "-c", CONFINED, str(tmp_path / "scratch"), str(tmp_path / "planted")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


@pytest.mark.parametrize("refused", ["'unshare'", "'ioctl', s.Arg(1, s.EQ, 0x8914)"])
def test_without_a_network_of_their_own_several_processes_are_refused_unless_told_otherwise(
    tmp_path: Path, refused: str
) -> None:
    """Whichever step the kernel denies: to leave the network, or to set a loopback up in the new one."""
    assert _with_a_step_denied(tmp_path, refused, allow=False) == "sandbox_unavailable"
    assert _with_a_step_denied(tmp_path, refused, allow=True) == "stage_crashed"
    assert set(_told(tmp_path)) == {"rank0.0.json", "rank1.0.json"}


def _with_a_step_denied(scratch: Path, refused: str, *, allow: bool) -> str:
    script = (
        "import asyncio, errno, pathlib, sys, pyseccomp as s\n"
        f"f = s.SyscallFilter(s.ALLOW); f.add_rule(s.ERRNO(errno.EPERM), {refused}); f.load()\n"
        "from app.domain.errors import JobFailure\nfrom tests.contract import crews\n"
        "source = crews.BEGINNING + 'tell()\\nos._exit(0)'\n"
        "run = crews.execute(pathlib.Path(sys.argv[1]), source, allow_unsandboxed=sys.argv[2] == 'True')\n"
        "try:\n    asyncio.run(run)\nexcept JobFailure as failure:\n    print(failure.code)"
    )
    command = [sys.executable, "-c", script, str(scratch), str(allow)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_more_processes_than_cores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DoesNotFit, match=f"at most {len(os.sched_getaffinity(0))}"):
        _run(tmp_path, "", processes=len(os.sched_getaffinity(0)) + 1)
