"""The stage `train`: its artifact is what was trained, nearer to the teacher, and the same every time."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from app.domain.tensors import DType, Signature
from tests.contract.training.material import (
    FOUR,
    GIBIBYTES,
    HELD_OUT,
    IMAGES,
    ROWS,
    STEPS,
    Material,
    answers,
    material,
    recipe,
    tensor,
)
from tests.graphs import conv_classifier, drawn, rows, small
from tests.numerics.test_training_batch_norms import uploaded
from tests.quantized import Arrays, Grids
from workers.stage_records.training import CHECKPOINT_OUTPUT, Teacher
from workers.training import state


def test_training_brings_4_bits_nearer_to_the_teacher(narrow: Material) -> None:
    ran = narrow.run(recipe(**FOUR, steps=60))
    scores = [point.score for point in ran.outcome.points if point.score is not None]
    assert (ran.outcome.ended, ran.outcome.steps_done, ran.outcome.teacher) == ("complete", 60, "float32")
    assert min(scores) < 0.8 * scores[0]
    assert ran.outcome.best_step > 0
    x = {"x": rows(HELD_OUT)}
    wanted = answers((narrow.scratch / "in/float32.onnx").read_bytes(), x)
    start = (narrow.scratch / "in/start0.onnx").read_bytes()
    errors = [float(np.square(answers(each, x) - wanted).sum()) for each in (ran.artifact, start)]
    assert errors[0] < errors[1]


def test_what_the_engine_answers_is_what_was_trained(narrow: Material) -> None:
    outcome = narrow.run(recipe(**FOUR)).outcome
    assert outcome.checked_rows == HELD_OUT
    assert outcome.checked_same >= HELD_OUT - 1  # a row in which two classes are level may go to either


def test_the_same_training_ends_with_the_same_bytes_and_another_seed_with_others(narrow: Material) -> None:
    one, again, other = (narrow.run(recipe(**FOUR, seed=seed)) for seed in (0, 0, 1))
    assert one.outcome.best_step > 0
    assert one.artifact == again.artifact
    assert one.artifact != other.artifact


def test_weights_behind_a_folded_batch_normalization_begin_as_floats(tmp_path: Path) -> None:
    """They are no multiples of a step: rounding is not all that is known of them."""
    signature = Signature(inputs=IMAGES.inputs, outputs=(tensor("y", 4),))
    given = material(tmp_path / "s", uploaded(), {"x": rows(ROWS)}, signature=signature)
    given.run(recipe(steps=1, learning_rate=1e-9))
    found = state.read(given.scratch / CHECKPOINT_OUTPUT)
    assert found is not None
    latents = [each.numpy() * 127 for name, each in found.module.items() if name.endswith("w0.latent")]
    assert np.abs(latents[0] - np.rint(latents[0])).max() > 0.1


def test_a_rate_that_is_far_too_high_gives_the_best_state_back(images: Material) -> None:
    ran = images.run(recipe(learning_rate=10.0, gradient_clip=None, steps=200, warmup=0.2, scales="fixed"))
    outcome = ran.outcome
    assert outcome.ended == "diverged"
    assert f"at step {outcome.steps_done} of 200" in outcome.reason
    assert (
        f"of step {outcome.best_step}, was taken; a tenth of the rate may help, a learning_rate of 1 " in outcome.reason
    )
    assert "the mean of 10 steps, over 10 times what it was" in outcome.reason
    scores = [point.score for point in outcome.points if point.score is not None]
    x = {"x": rows(HELD_OUT)}
    wanted = answers((images.scratch / "in/float32.onnx").read_bytes(), x)
    assert float(np.square(answers(ran.artifact, x) - wanted).sum()) < 0.05 * float(np.square(wanted).sum())
    assert min(scores) == next(point.score for point in outcome.points if point.step == outcome.best_step)


def test_a_gradient_that_is_no_number_ends_training(tmp_path: Path) -> None:
    """The root of what Relu made 0 has an endless slope, and quantizers give numbers for weights that are none."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="fc", transB=1),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Mul", ["r", "m"], ["p"], name="mul"),
        helper.make_node("Sqrt", ["p"], ["q"], name="root"),
        helper.make_node("Gemm", ["q", "v", "c"], ["y"], name="head", transB=1),
    ]
    weights = {"w": drawn(8, 6), "b": drawn(8), "m": np.ones(8, np.float32), "v": drawn(3, 8), "c": drawn(3)}
    model = small(nodes, inputs={"x": ["n", 6]}, outputs={"y": ["n", 3]}, weights=weights)
    signature = Signature(inputs=(tensor("x", 6),), outputs=(tensor("y", 3),))
    x = np.random.default_rng(0).normal(0, 1, (ROWS, 6)).astype(np.float32)
    ran = material(tmp_path / "s", model, {"x": x}, signature=signature).run(recipe())
    assert (ran.outcome.ended, ran.outcome.best_step, ran.outcome.steps_done) == ("diverged", 0, 1)
    assert "The loss or its gradient is not a number at step 1 of 12" in ran.outcome.reason
    assert np.isfinite(answers(ran.artifact, {"x": x}, "y")).all()


def test_the_forecast_stands_beside_what_it_forecast(images: Material) -> None:
    outcome = images.run(recipe()).outcome
    assert 0 < outcome.forecast.actual_memory_bytes < 64 * GIBIBYTES
    assert outcome.forecast.actual_seconds == pytest.approx(outcome.seconds, abs=0.2)  # the loop's, of one attempt


def test_what_changes_nothing_on_this_graph_is_noted(images: Material) -> None:
    (note,) = images.run(recipe(freeze_batch_norm=0.5, steps=2)).result.notes
    assert note.startswith("freeze_batch_norm changed nothing: the graph has no batch normalization")


def test_answers_that_are_values_are_compared_as_values(narrow: Material) -> None:
    outcome = narrow.run(recipe(**FOUR, steps=30), values=True).outcome
    assert {point.agreement for point in outcome.points} == {None}
    assert outcome.points[-1].score < outcome.points[0].score


def test_the_better_start_is_taken(tmp_path: Path) -> None:
    starts = (Grids(bits=2), Grids(bits=8))
    given = material(tmp_path / "s", conv_classifier(), {"x": rows(ROWS)}, starts=starts)
    ran = given.run(recipe(steps=1))
    assert (ran.result.start, ran.outcome.start) == (1, "start1.onnx")
    scores = [start.score for start in ran.outcome.starts]
    assert scores[1] < scores[0]


def test_progress_is_told_with_what_is_left(images: Material) -> None:
    heard = images.run(recipe()).teller
    last = heard.told[-1]
    assert (last.step, last.steps, last.seconds_left) == (STEPS, STEPS, 0)
    assert last.best_score is not None
    assert last.loss is not None
    assert heard.words[0] == "training: reading the rows"


def test_another_teacher_may_call_its_tensors_otherwise(images: Material) -> None:
    theirs = conv_classifier(seed=5)
    theirs.graph.input[0].name = theirs.graph.node[0].input[0] = "pixels"
    theirs.graph.output[0].name = theirs.graph.node[-1].output[0] = "classes"
    onnx.save(theirs, images.scratch / "in/teacher.onnx")
    signature = Signature(inputs=(tensor("pixels", 3, 8, 8),), outputs=(tensor("classes", 4),))
    teacher = Teacher(name="large:2", artifact="in/teacher.onnx", signature=signature)
    outcome = images.run(recipe(teacher="large:2", flip=True), teacher=teacher).outcome
    assert outcome.teacher == "large:2"
    assert outcome.points[0].agreement < 0.9  # it is another model


def two_inputs(*names: str) -> tuple[onnx.ModelProto, Signature]:
    """Return a model of two inputs of one shape, listed in some order, and its signature."""
    nodes = [
        helper.make_node("Gemm", ["a", "v"], ["left"], name="left"),
        helper.make_node("Gemm", ["b", "w"], ["right"], name="right"),
        helper.make_node("Add", ["left", "right"], ["sum"], name="sum"),
        helper.make_node("Gemm", ["sum", "u"], ["logits"], name="head"),
    ]
    weights = {"v": drawn(8, 16, seed=1), "w": drawn(8, 16, seed=2, scale=3), "u": drawn(16, 4, seed=3)}
    model = small(nodes, inputs={name: ["n", 8] for name in names}, outputs={"logits": ["n", 4]}, weights=weights)
    return model, Signature(inputs=tuple(tensor(name, 8) for name in names), outputs=IMAGES.outputs)


def test_a_teacher_that_lists_its_inputs_in_another_order_gets_its_own(tmp_path: Path) -> None:
    model, mine = two_inputs("a", "b")
    rng = np.random.default_rng(0)
    inputs: Arrays = {name: rng.normal(0, 1, (ROWS, 8)).astype(np.float32) for name in "ab"}
    given = material(tmp_path / "s", model, inputs, signature=mine, starts=(Grids(bits=4),))
    alone = given.run(recipe(weight_bits=4, steps=2)).outcome.points[0]
    graph, signature = two_inputs("b", "a")
    onnx.save(graph, given.scratch / "in/teacher.onnx")
    teacher = Teacher(name="twin:1", artifact="in/teacher.onnx", signature=signature)
    taught = given.run(recipe(weight_bits=4, steps=2, teacher="twin:1"), teacher=teacher).outcome.points[0]
    assert (taught.score, taught.agreement) == (pytest.approx(alone.score), alone.agreement)


def test_features_can_be_learned(narrow: Material) -> None:
    outcome = narrow.run(recipe(**FOUR, loss="feature_distillation", steps=30)).outcome
    scores = [point.score for point in outcome.points if point.score is not None]
    assert min(scores) < scores[0]


def test_several_inputs_and_outputs_are_trained(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="look"),
        helper.make_node("ReduceMean", ["e", "axes"], ["m"], name="mean", keepdims=0),
        helper.make_node("Concat", ["m", "x"], ["h"], name="both", axis=1),
        helper.make_node("Gemm", ["h", "w", "b"], ["y"], name="fc", transB=1),
        helper.make_node("Gemm", ["h", "v"], ["value"], name="head"),
        helper.make_node("ArgMax", ["y"], ["best"], name="best", axis=1, keepdims=0),
    ]
    weights = {
        "table": drawn(9, 6, scale=1),
        "axes": np.array([1]),
        "w": drawn(3, 10),
        "b": drawn(3),
        "v": drawn(10, 1),
    }
    model = small(
        nodes,
        inputs={"ids": ["n", 5], "x": ["n", 4]},
        outputs={"y": ["n", 3], "value": ["n", 1], "best": ["n"]},
        weights=weights,
        types={"ids": onnx.TensorProto.INT64, "best": onnx.TensorProto.INT64},
    )
    signature = Signature(
        inputs=(tensor("ids", 5, dtype=DType.INT64), tensor("x", 4)),
        outputs=(tensor("y", 3), tensor("value", 1), tensor("best", dtype=DType.INT64)),
    )
    rng = np.random.default_rng(0)
    inputs: Arrays = {"ids": rng.integers(0, 9, (ROWS, 5)), "x": rng.normal(0, 1, (ROWS, 4)).astype(np.float32)}
    given = material(tmp_path / "s", model, inputs, signature=signature, starts=(Grids(bits=4),))
    outcome = given.run(recipe(weight_bits=4, steps=40, learning_rate=2e-4)).outcome
    scores = [point.score for point in outcome.points if point.score is not None]
    assert min(scores) < scores[0]
