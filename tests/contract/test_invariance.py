"""A row's answer depends on its neighbours where scales are taken over a whole batch, and nowhere else."""

import logging
from pathlib import Path

import nncf
import numpy as np
import onnx
import openvino
import pytest
from onnxruntime.quantization import quantize_dynamic

from app.domain.evidence import Invariance
from app.domain.tensors import Signature
from app.domain.variants import Execution
from tests import graphs
from tests.contract.test_receipt import IN, LOGITS, OUT, WIDTH, X, products
from workers.measure.engine import Session
from workers.measure.invariance import invariance
from workers.stage_records.measuring import Form

CONVOLUTIONAL = Signature(inputs=(X,), outputs=(LOGITS,))
PRODUCTS = Signature(inputs=(IN,), outputs=(OUT,))
ROWS = np.random.default_rng(5).normal(0, 1, (5, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `float32`, `static`, `per_tensor` and `weights` artifacts."""
    made = tmp_path_factory.mktemp("scratch")
    nncf.set_log_level(logging.ERROR)
    onnx.save(graphs.conv_classifier(), made / "float32.onnx")
    rows = nncf.Dataset([{graphs.INPUT: row[np.newaxis]} for row in graphs.rows(8)])
    onnx.save(nncf.quantize(graphs.conv_classifier(), rows, subset_size=8), made / "static.onnx")
    onnx.save(products(), made / "products.onnx")
    quantize_dynamic(made / "products.onnx", made / "per_tensor.onnx")
    weights = nncf.compress_weights(products(), mode=nncf.CompressWeightsMode.INT8_SYM)
    onnx.save(weights, made / "weights.onnx")
    return made


def asked(scratch: Path, name: str, *, execution: Execution | None = None, rows: int = 5) -> Invariance | None:
    form = Form(name=name, artifact=f"{name}.onnx", execution=execution or Execution())
    signature = CONVOLUTIONAL if name in ("float32", "static") else PRODUCTS
    inputs = {"x": graphs.rows(rows) if signature is CONVOLUTIONAL else ROWS[:rows]}
    return invariance(Session.open(form, signature, scratch=scratch, core=openvino.Core()), signature, inputs)


@pytest.mark.parametrize("name", ["float32", "static"])
def test_a_form_with_fixed_scales_answers_the_same_to_the_bit(scratch: Path, name: str) -> None:
    assert asked(scratch, name) == Invariance(invariant=True, largest_difference=0.0, rows=5, batch_size=5)


def test_one_scale_for_the_whole_batch_is_noticed(scratch: Path) -> None:
    found = asked(scratch, "per_tensor", rows=2)
    assert found is not None
    assert not found.invariant
    # a neighbour's range at most multiplies the rounding step; errors of 8 bits stay far below the values
    assert 0 < found.largest_difference < 0.5


def test_scales_in_groups_along_the_row_are_none_of_the_neighbours_business(scratch: Path) -> None:
    found = asked(scratch, "weights", execution=Execution(dynamic_group_size=32))
    assert found == Invariance(invariant=True, largest_difference=0.0, rows=5, batch_size=5)


def test_one_row_has_no_neighbours(scratch: Path) -> None:
    assert asked(scratch, "float32", rows=1) is None


def test_a_model_that_counts_no_rows_is_not_asked(scratch: Path) -> None:
    form = Form(name="products", artifact="products.onnx", execution=Execution())
    session = Session.open(form, PRODUCTS, scratch=scratch, core=openvino.Core())
    fixed = Signature(
        inputs=PRODUCTS.inputs, outputs=(type(OUT)(name="y", dtype=OUT.dtype, shape=(5, WIDTH), batch_axis=None),)
    )
    assert invariance(session, fixed, {"x": ROWS}) is None
