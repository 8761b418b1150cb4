"""What an artifact answers in the engine, and its fake-quantized module in torch: each in a process of its own."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from app.domain.tensors import Signature
from app.domain.variants import Execution
from workers.openvino_engine import OpenVinoSession
from workers.toolchains.graph import load_graph
from workers.toolchains.octet.rounding.wiring import Wiring
from workers.training import biases
from workers.training.checking import CHECKED_ROWS, answers
from workers.training.latents import stored_weights
from workers.training.program import Program
from workers.training.unrounded import unrounded

Classes = NDArray[np.int64]

BATCH = 250

_Given = ParamSpec("_Given")
_Found = TypeVar("_Found")


def apart(function: Callable[_Given, _Found], *args: _Given.args, **kwargs: _Given.kwargs) -> _Found:
    """Call a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def engine_classes(artifact: Path, signature: Signature, rows: Path) -> Classes:
    """Return the class of every row as OpenVINO answers it, float layers in float32."""
    session = OpenVinoSession(artifact.read_bytes(), Execution(), signature, len(os.sched_getaffinity(0)))
    x, y = signature.inputs[0].name, signature.outputs[0].name
    return np.concatenate([session.infer({x: batch})[y].argmax(1) for batch in _batches(rows)])


def module_classes(artifact: Path, signature: Signature, rows: Path) -> Classes:
    """Return the class of every row as the fake-quantized module of an artifact answers it in torch."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    program = Program(biases.in_float(load_graph(artifact)), latents={}, bounds={}, scales="fixed")
    x, y = signature.inputs[0].name, signature.outputs[0].name
    few = _batches(rows)[0][:CHECKED_ROWS]
    session = OpenVinoSession(artifact.read_bytes(), Execution(), signature, len(os.sched_getaffinity(0)))
    theirs = session.infer({x: few})[y].copy()

    def answer(cut: frozenset[str]) -> NDArray[np.float32]:
        program.only_cut(cut)
        return answers(program, {x: torch.from_numpy(few)})[y].numpy()

    program.only_cut(unrounded(program.wiring, answer, theirs))
    found = [answers(program, {x: torch.from_numpy(batch)})[y].argmax(1).numpy() for batch in _batches(rows)]
    return np.concatenate(found)


def integers_of(artifact: Path) -> dict[str, NDArray[np.generic]]:
    """Return the stored integer weights by name."""
    wiring = Wiring(onnx.load(artifact).graph)
    return {name: numpy_helper.to_array(wiring.initializers[name]) for name in stored_weights(wiring)}


def _batches(rows: Path) -> list[NDArray[np.float32]]:
    x = np.load(rows, mmap_mode="r")
    return [np.array(x[start : start + BATCH]) for start in range(0, len(x), BATCH)]
