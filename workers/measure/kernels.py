"""Which kernels ran: the engine's own runtime graph, with the time of every layer. Proof, not a guess from the file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import openvino as ov

from app.domain.reports import Kernels, Layer
from app.domain.tensors import Signature
from workers.data.batches import Tensors
from workers.measure.dynamic import quantized_on_the_fly
from workers.measure.engine import Session
from workers.measure.matching import ENGINE_COMPUTE
from workers.stage_records.measuring import Form

RUNS = 200
LEAST_RUNS = 10
SECONDS_PER_FORM = 2.0
MOST_NODES = 32
"""Names kept of what was fused into one layer: a stage's answer is limited."""

_INT8 = ("u8", "i8")
_SHORT_WEIGHTS = ("u8", "i8", "u4", "i4")
_INT8_KERNELS = ("_i8", "_u8")
_FLOAT_KERNELS = ("_f32", "_bf16", "_f16")
_DYNAMIC = "activations quantized in groups of"
_NOT_EXECUTED = "not_executed"
_NOT_LAYERS = ("Const", "Input", "Output")


def kernels(
    forms: Sequence[Form], signature: Signature, inputs: Tensors, *, scratch: Path, core: ov.Core
) -> dict[str, Kernels]:
    """Compile every form once more, with counters, run them in turns and read what the engine executed.

    A layer's time is what OpenVINO gives: the mean over all runs, the first and slowest included, of times cut to
    whole microseconds. So a layer of a few microseconds is known to about one, and sums fall short of the whole.
    `int8_share` is the int8 layers' share of the time of *all* executed layers, conversions between layouts included.

    Raises:
        ToolchainFailed: a form that OpenVINO cannot compile or run.
    """
    sessions = [Session.open(form, signature, scratch=scratch, core=core, profiled=True) for form in forms]
    _run_in_turns(sessions, inputs)
    return {
        form.name: summed(_proven(form, session, signature, inputs, scratch=scratch, core=core))
        for form, session in zip(forms, sessions, strict=True)
    }


def is_int8(layer: Layer) -> bool:
    """Whether a layer multiplied and added integers of 8 bits.

    The precision alone does not tell: OpenVINO reports that of the weights too, where it multiplies in float what it
    has decompressed. The kernel's name ends with the type of the data it was given.
    """
    if layer.kind not in ENGINE_COMPUTE:
        return False
    if _DYNAMIC in layer.implementation:
        return True
    return layer.precision in _INT8 and layer.implementation.lower().endswith(_INT8_KERNELS)


def is_float(layer: Layer) -> bool:
    """Whether a layer multiplied and added in float, whatever its weights were stored in."""
    return layer.kind in ENGINE_COMPUTE and not is_int8(layer) and layer.implementation.lower().endswith(_FLOAT_KERNELS)


def summed(layers: tuple[Layer, ...]) -> Kernels:
    """Count the layers by what they computed in."""
    int8 = [layer for layer in layers if is_int8(layer)]
    total = sum(layer.microseconds for layer in layers)
    return Kernels(
        layers=layers,
        int8_layers=len(int8),
        float_layers=sum(map(is_float, layers)),
        int8_share=sum(layer.microseconds for layer in int8) / total if total else 0.0,
    )


def _run_in_turns(sessions: Sequence[Session], inputs: Tensors) -> None:
    start = perf_counter()
    for number in range(RUNS):
        for session in sessions:
            session.infer(inputs)
        if number + 1 >= LEAST_RUNS and perf_counter() - start > SECONDS_PER_FORM * len(sessions):
            return


def _proven(
    form: Form, session: Session, signature: Signature, inputs: Tensors, *, scratch: Path, core: ov.Core
) -> tuple[Layer, ...]:
    """Read what ran, and say of the layers whose activations the engine quantizes on the fly that it does."""
    layers = _layers(session.compiled.get_runtime_model())
    size = form.execution.dynamic_group_size
    if size == 0:
        return layers
    asked = [layer for layer in layers if _may_be_dynamic(layer)]
    found = quantized_on_the_fly(form, asked, signature, inputs, scratch=scratch, core=core)
    return tuple(
        replace(layer, implementation=f"{layer.implementation}, {_DYNAMIC} {size}") if layer.name in found else layer
        for layer in layers
    )


def _may_be_dynamic(layer: Layer) -> bool:
    return layer.kind == "FullyConnected" and layer.precision in _SHORT_WEIGHTS and is_float(layer)


def _layers(graph: ov.Model) -> tuple[Layer, ...]:
    return tuple(layer for node in graph.get_ordered_ops() if (layer := _layer(node)) is not None)


def _layer(node: ov.Node) -> Layer | None:
    facts = {name: value.astype(str) for name, value in node.get_rt_info().items()}
    kind, time = facts.get("layerType", ""), facts.get("execTimeMcs", _NOT_EXECUTED)
    if kind in _NOT_LAYERS or (time == _NOT_EXECUTED and kind not in ENGINE_COMPUTE):
        return None
    return Layer(
        name=node.get_friendly_name(),
        kind=kind,
        precision=facts.get("runtimePrecision", ""),
        implementation=facts.get("primitiveType", ""),
        microseconds=0.0 if time == _NOT_EXECUTED else float(time),
        nodes=tuple(name for name in facts.get("originalLayersNames", "").split(",") if name)[:MOST_NODES],
    )
