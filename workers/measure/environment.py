"""Where a measurement was taken: CPU, instructions, memory, kernel, library versions. Read, never assumed."""

import os
from importlib.metadata import version
from pathlib import Path

from app.domain.reports import Environment
from workers.measure.engine import threads

INSTRUCTIONS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
"""What decides how fast an 8-bit or bfloat16 kernel can be, under the names of /proc/cpuinfo."""

_LIBRARIES = ("openvino", "nncf", "onnx", "onnxruntime", "torch", "numpy")


def environment() -> Environment:
    """Read this machine's facts; `cores` is what the engine was given."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return Environment(
        cpu=info.get("model name", os.uname().machine),
        instructions=tuple(name for name in INSTRUCTIONS if name in flags),
        cores=threads(),
        memory_bytes=_memory_bytes(),
        kernel=os.uname().release,
        libraries={name: version(name) for name in _LIBRARIES},
    )


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's fields."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if not line.strip():
            break
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    return fields


def _memory_bytes() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0
