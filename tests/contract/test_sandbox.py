"""The sandbox against code that attacks it: every attack runs for real, from a `.pt2` that executes code on loading."""

import asyncio
import json
import os
import platform
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from app.domain.datasets import DatasetFormat
from app.domain.errors import JobFailure, OutOfDisk, OutOfMemory, OutOfTime, StageCrashed, UploadUnreadable
from app.domain.recipes import PtqStatic
from app.domain.tensors import DType, Signature, TensorSpec
from tests import graphs
from tests.contract import crews, hostile
from tests.needs import absent
from tests.running import program, said_through
from workers.confinement import missing_protections
from workers.limits import Limits
from workers.outputs import output_path
from workers.sandbox import run_stage
from workers.stage_records.common import RowSource
from workers.stage_records.importing import ConvertSpec
from workers.stage_records.making import TransformResult, TransformSpec
from workers.stage_records.measuring import Form, WeighResult, WeighSpec
from workers.trees import remove_tree

SECRET = "correct-horse-battery-staple"  # noqa: S105 - planted, to be looked for
LIMITS = Limits(memory_bytes=2 * 2**30, scratch_bytes=256 * 2**20, seconds=120)
ENDLESS = """
import os
with open("started", "w") as pipe:
    pipe.write(str(os.getpid()))
while True:
    pass
"""


async def _ignore(*_: object) -> None:
    return None


async def _attack(scratch: Path, source: str, *, limits: Limits = LIMITS) -> Any:
    hostile.executing_pt2(scratch / "model.pt2", source)
    spec = ConvertSpec(upload="model.pt2")
    return await run_stage("convert", spec, scratch=scratch, limits=limits, on_progress=_ignore, on_log=_ignore)


def _failure(scratch: Path, source: str, *, limits: Limits = LIMITS) -> JobFailure:
    with pytest.raises(JobFailure) as raised:
        asyncio.run(_attack(scratch, source, limits=limits))
    return raised.value


@pytest.fixture(scope="module", autouse=True)
def protections() -> None:
    if missing := missing_protections():
        absent(f"a kernel with {' and '.join(missing)}")


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "scratch"
    folder.mkdir()
    yield folder
    remove_tree(folder)  # pytest's own cleaning up recurses, and breaks on what some of these stages leave


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    (folder / "scratch").mkdir()
    (folder / "victim").write_text("precious")
    (folder / "victim").chmod(0o640)
    return folder


@pytest.fixture(scope="module")
def attempts(outside: Path, listener: socket.socket) -> dict[str, Any]:
    """What became of every attack, as the attacking code itself wrote it down."""
    if platform.machine() != "x86_64":
        absent("x86-64, the numbers of whose system calls the attacks use")
    names = {
        "OUTSIDE": str(outside),
        "VICTIM": str(outside / "victim"),
        "SECRET": SECRET,
        "PORT": listener.getsockname()[1],
    }
    told = "\n".join(f"{name} = {value!r}" for name, value in names.items())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTET_S3_SECRET_ACCESS_KEY", SECRET)
        failure = _failure(outside / "scratch", f"{told}\n{hostile.ATTEMPTS}")
    assert isinstance(failure, UploadUnreadable)
    found: dict[str, Any] = json.loads((outside / "scratch" / "attempts.json").read_text())
    return found


def test_code_in_an_upload_does_run_and_every_attack_of_it_fails(attempts: dict[str, Any]) -> None:
    outcomes = {name: outcome for name, outcome in attempts.items() if name != "descriptors"}
    assert len(outcomes) > 60
    assert {name: outcome for name, outcome in outcomes.items() if not outcome.startswith("failed")} == {}


@pytest.mark.usefixtures("attempts")
def test_an_attack_leaves_no_trace_outside_its_scratch_folder(outside: Path, listener: socket.socket) -> None:
    assert sorted(path.name for path in outside.iterdir()) == ["scratch", "victim"]
    assert (outside / "victim").read_text() == "precious"
    assert (outside / "victim").stat().st_mode & 0o777 == 0o640
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_a_stage_inherits_no_open_file(attempts: dict[str, Any], outside: Path) -> None:
    own = (f"{outside}/scratch/", "pipe:", "/proc/")  # of /proc: its own entries, which it holds to keep their rules
    inherited = [name for name in attempts["descriptors"] if not name.startswith(own)]
    assert set(inherited) == {"/dev/null"}


def test_a_stage_that_takes_too_much_memory_is_ended(scratch: Path) -> None:
    limits = replace(LIMITS, memory_bytes=2**30)
    failure = _failure(scratch, "kept = []\nwhile True:\n    kept.append(b'x' * 2**24)", limits=limits)
    assert isinstance(failure, OutOfMemory)
    assert "OCTET_JOB_MEMORY_BYTES" in failure.message
    assert "1,073,741,824" in failure.message


def test_one_allocation_beyond_all_limits_is_out_of_memory_too(scratch: Path) -> None:
    assert isinstance(_failure(scratch, "bytearray(2**40)"), OutOfMemory)


def test_a_stage_that_never_ends_is_out_of_time(scratch: Path) -> None:
    failure = _failure(scratch, "while True: pass", limits=replace(LIMITS, seconds=5))
    assert isinstance(failure, OutOfTime)
    assert "OCTET_JOB_TIMEOUT_SECONDS" in failure.message


_FILLERS = {
    "one file": "open('filler', 'wb').write(bytes(2**26))",
    "many files": "for n in range(10**6): open(f'filler{n}', 'wb').write(b'x' * 2**20)",
    "files without a name": "import os\nkept = []\n"
    "for n in range(10**6):\n    kept.append(open('f', 'wb', buffering=0))\n    os.remove('f')\n"
    "    kept[-1].write(b'x' * 2**20)\n    n < 200 or [0 for _ in iter(int, 1)]",
    "empty files": "for n in range(10**6): open(f'{n}', 'w').close()",
}


@pytest.mark.parametrize("source", _FILLERS.values(), ids=_FILLERS.keys())
def test_a_stage_that_fills_the_disk_is_ended(scratch: Path, source: str) -> None:
    failure = _failure(scratch, source, limits=replace(LIMITS, scratch_bytes=32 * 2**20))
    assert isinstance(failure, OutOfDisk)


def test_a_stage_that_starts_threads_without_end_is_ended(scratch: Path) -> None:
    source = (
        "import threading\nthreading.stack_size(2**15)\nhold = threading.Event()\n"
        "while True:\n    threading.Thread(target=hold.wait, daemon=True).start()"
    )
    assert "threads" in _failure(scratch, source).message


def test_a_stage_that_crashes_names_the_signal(scratch: Path) -> None:
    failure = _failure(scratch, "import ctypes; ctypes.string_at(0)")
    assert isinstance(failure, StageCrashed)
    assert "SIGSEGV" in failure.message


def test_a_stage_that_is_killed_names_the_signal(scratch: Path) -> None:
    async def kill() -> None:
        task, child = await crews.started(scratch, _attack(scratch, ENDLESS))
        os.kill(child, signal.SIGKILL)
        await task

    with pytest.raises(StageCrashed, match="SIGKILL"):
        asyncio.run(kill())


def test_a_cancelled_stage_leaves_no_process(scratch: Path) -> None:
    async def cancel() -> int:
        task, child = await crews.started(scratch, _attack(scratch, ENDLESS))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return child

    child = asyncio.run(cancel())
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_stage_dies_with_the_process_that_started_it(scratch: Path) -> None:
    script = (
        "import asyncio, pathlib, sys\nfrom tests.contract import test_sandbox as t\n"
        "asyncio.run(t._attack(pathlib.Path(sys.argv[1]), t.ENDLESS))"
    )
    os.mkfifo(scratch / "started")
    with program([sys.executable, "-c", script, scratch]) as parent:
        child = os.pidfd_open(int(said_through(scratch / "started")))
        parent.kill()
    ended, _, _ = select.select([child], [], [], 30)
    os.close(child)
    assert ended


def test_what_a_stage_claims_is_checked(scratch: Path) -> None:
    claim = "import os; open('result.json', 'w').write('{\"format\": \"pt2\"}'); os._exit(0)"
    assert "not its record" in _failure(scratch, claim).message


_CLAIM = """
import json, os
claim = {"format": "pt2", "artifact": "out/float32.onnx", "samples": "out/samples.npz", "original": "torch 2.13.0",
         "original_batch": None, "libraries": {}} | CHANGES
json.dump(claim, open("result.json", "w"))
os._exit(0)
"""


@pytest.mark.parametrize("name", [".env", "../in/model.pt2", "out/other.onnx"])
@pytest.mark.parametrize("field", ["artifact", "samples"])
def test_a_stage_cannot_choose_the_name_of_its_output(scratch: Path, field: str, name: str) -> None:
    assert "not its record" in _failure(scratch, f"CHANGES = { ({field: name})!r}\n{_CLAIM}").message


def test_what_a_stage_says_is_cut_and_printable(scratch: Path) -> None:
    said = "\x1b[31mEVIL\x1b]0;t\x07" + "y" * 10**6
    result = asyncio.run(_attack(scratch, f"CHANGES = { ({'original': said, 'libraries': {said: said}})!r}\n{_CLAIM}"))
    for text in (result.original, *result.libraries, *result.libraries.values()):
        assert text.isprintable()
        assert len(text) <= 256


def test_a_stage_cannot_name_libraries_without_end(scratch: Path) -> None:
    claim = "CHANGES = {'libraries': {str(n): '1' for n in range(10**5)}}\n" + _CLAIM
    assert "not its record" in _failure(scratch, claim).message


def test_a_stage_that_nests_folders_without_end_is_refused(scratch: Path) -> None:
    source = "import os\nfor _ in range(1600):\n    os.mkdir('a'); os.chdir('a')\n"
    assert "nested more than 64" in _failure(scratch, source).message


def test_a_claim_without_end_is_refused(scratch: Path) -> None:
    claim = "import os; f = open('result.json', 'wb'); f.truncate(2**27); os._exit(0)"
    assert "more than" in _failure(scratch, claim).message


def test_nonsense_on_the_channel_is_ignored(scratch: Path) -> None:
    lines = [
        b"[" * 5000,
        b'{"progress": NaN, "step": "x"}',
        b'{"progress": 1e999, "step": "x"}',
        b"\\xff\\xfe",
        b"null",
    ]
    said = "import os; os.write(3, " + repr(b"\n".join(lines) + b"\n") + "); os._exit(9)"
    assert "exit code 9" in _failure(scratch, said).message


def test_a_stage_cannot_claim_that_its_worker_was_lost(scratch: Path) -> None:
    said = 'import os; os.write(3, b\'{"code": "worker_lost", "message": "again\\x1b[2J"}\\n\'); os._exit(1)'
    failure = _failure(scratch, said)
    assert type(failure) is StageCrashed
    assert failure.message.isprintable()


def test_a_flood_of_output_is_cut(scratch: Path) -> None:
    kept: list[str] = []

    async def keep(line: str) -> None:
        kept.append(line)

    async def flood() -> None:
        hostile.executing_pt2(scratch / "model.pt2", "import os\nfor _ in range(10**5): print('x' * 100)\nos._exit(4)")
        spec = ConvertSpec(upload="model.pt2")
        await run_stage("convert", spec, scratch=scratch, limits=LIMITS, on_progress=_ignore, on_log=keep)

    with pytest.raises(StageCrashed, match="exit code 4"):
        asyncio.run(flood())
    assert sum(map(len, kept)) < 2**20 + 5_000
    assert "not kept" in kept[-1]


@pytest.mark.parametrize("name", ["link", "hard", "fifo", "folder", "missing", "../secret", "inner/link", "", "a\0b"])
def test_an_output_that_is_no_plain_file_of_the_stage_is_refused(scratch: Path, name: str) -> None:
    secret = scratch.parent / "secret"
    secret.write_text("x")
    (scratch / "link").symlink_to(secret)
    (scratch / "hard").hardlink_to(secret)
    (scratch / "inner").symlink_to(scratch.parent)
    (scratch / "folder").mkdir()
    os.mkfifo(scratch / "fifo")
    with pytest.raises(StageCrashed, match="not a plain file"):
        output_path(scratch, name)
    with pytest.raises(StageCrashed):
        output_path(scratch, str(secret))


def test_a_kernel_that_cannot_confine_refuses_what_executes_unless_told_otherwise(scratch: Path) -> None:
    hostile.small_pt2(scratch / "model.pt2")
    assert _on_old_kernel(scratch, allow=False) == "sandbox_unavailable"
    assert _on_old_kernel(scratch, allow=True) == "done"


def _on_old_kernel(scratch: Path, *, allow: bool) -> str:
    """Run a stage below a process for which the kernel does not know Landlock."""
    script = (
        "import asyncio, errno, pathlib, sys, pyseccomp as s\n"
        "f = s.SyscallFilter(s.ALLOW); f.add_rule(s.ERRNO(errno.ENOSYS), 444); f.load()\n"
        "from app.domain.errors import JobFailure\nfrom tests.contract import test_sandbox as t\n"
        "run = t.run_stage('convert', t.ConvertSpec(upload='model.pt2'), scratch=pathlib.Path(sys.argv[1]),\n"
        "    limits=t.LIMITS, on_progress=t._ignore, on_log=t._ignore, allow_unsandboxed=sys.argv[2] == 'True')\n"
        "try:\n    asyncio.run(run); print('done')\nexcept JobFailure as failure:\n    print(failure.code)"
    )
    command = [sys.executable, "-c", script, str(scratch), str(allow)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_toolchain_and_the_engine_work_inside(scratch: Path) -> None:
    onnx.save(graphs.conv_classifier(), scratch / "float32.onnx")
    graphs.save_dataset(scratch / "rows.npz", graphs.rows(16))
    rows = RowSource(path="rows.npz", format=DatasetFormat.NPZ, rows=tuple(range(16)), preprocessing=None)
    spec = TransformSpec(artifact="float32.onnx", signature=_SIGNATURE, recipe=PtqStatic(), calibration=rows)
    made: TransformResult = asyncio.run(_run("transform", spec, scratch))
    form = Form(name="int8", artifact=made.artifact, execution=made.execution)
    weighed: WeighResult = asyncio.run(_run("weigh", WeighSpec(form=form, signature=_SIGNATURE), scratch))
    assert output_path(scratch, made.artifact).stat().st_size > 0
    assert weighed.memory.peak_bytes > 0


TELEMETRY = """
import json, os, sys
import nncf, onnxruntime, openvino
from nncf.telemetry import wrapper
from openvino.tools.ovc import telemetry_utils
found = {
    "nncf": type(wrapper.telemetry).__name__,
    "openvino": telemetry_utils.tm.__name__,
    "onnxruntime": os.environ["ORT_DISABLE_TELEMETRY"],
    "sender": bool(sys.modules.get("openvino_telemetry")),
}
with open("telemetry.json", "w") as file:
    json.dump(found, file)
"""


def test_a_stage_has_nothing_to_send_reports_with(scratch: Path) -> None:
    _failure(scratch, TELEMETRY)
    found = json.loads((scratch / "telemetry.json").read_text())
    assert found == {
        "nncf": "MagicMock",
        "openvino": "openvino.tools.ovc.telemetry_stub",
        "onnxruntime": "1",
        "sender": False,
    }


_SIGNATURE = Signature(
    inputs=(TensorSpec(name=graphs.INPUT, dtype=DType.FLOAT32, shape=(None, 3, 8, 8)),),
    outputs=(TensorSpec(name=graphs.OUTPUT, dtype=DType.FLOAT32, shape=(None, 4)),),
)


async def _run(stage: str, spec: object, scratch: Path) -> Any:
    return await run_stage(stage, spec, scratch=scratch, limits=LIMITS, on_progress=_ignore, on_log=_ignore)
