"""Layers quantized one at a time: the worst first, as the variant's own quantizers would have it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pydantic import TypeAdapter

from app.domain.datasets import DatasetFormat
from app.domain.evidence import LayerSensitivity
from tests import graphs
from tests.contract.test_invariance import CONVOLUTIONAL
from tests.numerics.test_qdq_surgery import answers, by_nncf
from workers.measure.constants import session
from workers.measure.qdq import Quantized
from workers.measure.sensitivity import sense
from workers.stage_records.common import RowSource
from workers.stage_records.measuring import SenseResult, SenseSpec

ROWS = 80


def quiet(_share: float, _words: str) -> None:
    """Take a stage's progress and do nothing."""


def coarse(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the variant with 32 times the step in front of `conv2`: as if that had three bits."""
    quantizer = next(node for node in graph.graph.node if node.output[0] == conv2(graph).input[0])
    scale = next(tensor for tensor in graph.graph.initializer if tensor.name == quantizer.input[1])
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(32), scale.name))
    return graph


def conv2(graph: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in graph.graph.node if node.name == "conv2")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("scratch")
    onnx.save(graphs.conv_classifier(), made / "float32.onnx")
    variant = by_nncf(made, graphs.conv_classifier())
    onnx.save(variant, made / "variant.onnx")
    onnx.save(coarse(variant), made / "coarse.onnx")
    labels = answers(graphs.conv_classifier(), graphs.rows(ROWS)).argmax(axis=1)
    graphs.save_dataset(made / "data.npz", graphs.rows(ROWS), labels)
    return made


def spec(
    *,
    metric: str | None = None,
    seconds: float = 60.0,
    costs: dict[str, float] | None = None,
    variant: str = "variant.onnx",
) -> SenseSpec:
    rows = RowSource(path="data.npz", format=DatasetFormat.NPZ, rows=tuple(range(ROWS)), preprocessing=None)
    return SenseSpec(
        float32="float32.onnx",
        variant=variant,
        signature=CONVOLUTIONAL,
        rows=rows,
        metric=metric,
        costs=costs or {},
        seconds=seconds,
    )


def by_name(result: SenseResult) -> dict[str, LayerSensitivity]:
    return {layer.name: layer for layer in result.layers}


def test_the_worst_layers_come_first(scratch: Path) -> None:
    layers = sense(spec(), scratch, quiet).layers
    assert {(layer.name, layer.kind) for layer in layers} == {("conv1", "Conv"), ("conv2", "Conv"), ("fc", "Gemm")}
    assert [layer.sqnr_db for layer in layers] == sorted(layer.sqnr_db or 0 for layer in layers)


def test_a_coarser_quantizer_shows_in_its_own_layer_alone(scratch: Path) -> None:
    fine, rough = (by_name(sense(spec(variant=name), scratch, quiet)) for name in ("variant.onnx", "coarse.onnx"))
    assert fine["conv1"] == rough["conv1"]
    assert fine["fc"] == rough["fc"]
    # 32 times the step is 30 dB more noise where errors are even; weights' errors, which stay, take some of it away
    assert (rough["conv2"].sqnr_db or 0) < (fine["conv2"].sqnr_db or 0) - 10


def test_the_sqnr_is_that_of_the_answers(scratch: Path) -> None:
    found = by_name(sense(spec(), scratch, quiet))["fc"]
    rows = graphs.rows(ROWS)[np.linspace(0, ROWS - 1, 64).round().astype(int)]
    float32 = onnx.load(scratch / "float32.onnx")
    alone = Quantized(onnx.load(scratch / "variant.onnx"), float32).only(["fc"])
    one, other = (session(graph).run(None, {"x": rows})[0].astype(np.float64) for graph in (float32, alone))
    assert found.sqnr_db == pytest.approx(10 * np.log10((one**2).sum() / ((one - other) ** 2).sum()), abs=0.01)


def test_without_a_metric_there_is_no_drop(scratch: Path) -> None:
    assert all(layer.drop is None for layer in sense(spec(), scratch, quiet).layers)


def test_the_drop_is_how_much_worse_the_metric_is(scratch: Path) -> None:
    top1 = by_name(sense(spec(metric="top1"), scratch, quiet))
    agreement = by_name(sense(spec(metric="agreement"), scratch, quiet))
    # float32 answers every row right here, so both count the same rows
    assert {name: layer.drop for name, layer in top1.items()} == {name: each.drop for name, each in agreement.items()}
    assert all(layer.drop is not None and 0 <= layer.drop <= 1 for layer in top1.values())


def test_costs_are_taken_over(scratch: Path) -> None:
    found = by_name(sense(spec(costs={"conv1": 5.0}), scratch, quiet))
    assert {name: layer.cost_microseconds for name, layer in found.items()} == {"conv1": 5.0, "conv2": 0.0, "fc": 0.0}


def test_time_that_is_over_leaves_layers_out(scratch: Path) -> None:
    assert sense(spec(seconds=0.0), scratch, quiet).layers == ()


def test_a_graph_without_quantizers_has_no_layers(scratch: Path) -> None:
    assert sense(spec(variant="float32.onnx"), scratch, quiet).layers == ()


def test_results_survive_json(scratch: Path) -> None:
    found = sense(spec(metric="top1"), scratch, quiet)
    adapter = TypeAdapter(SenseResult)
    assert adapter.validate_json(adapter.dump_json(found)) == found
