"""The stage `train`: whatever stops it, and whoever goes on, it ends with the same artifact, or says why not."""

import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

from app.domain.datasets import DatasetFormat
from app.domain.errors import DatasetUnfit, DoesNotFit, OutOfDisk, ToolchainFailed
from app.domain.recipes import Qat
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.training import TrainingProgress
from tests.graphs import conv_classifier, drawn, rows, small
from tests.numerics.test_training_batch_norms import uploaded
from tests.quantized import Array, Arrays, Grids, quantized
from workers.stage_child import failure_of
from workers.stage_records.common import RowSource
from workers.stage_records.training import CHECKPOINT_OUTPUT, STOP_INPUT, Start, Teacher, TrainResult, TrainSpec
from workers.toolchains.prepare import prepare
from workers.training import loop, stage, state
from workers.training.stage import train

ROWS, HELD_OUT = 48, 16
STEPS = 12
GIBIBYTES = 2**30
LABELS = np.random.default_rng(0).integers(0, 4, ROWS)


@dataclass(kw_only=True)
class Teller:
    """Hears what training tells, and keeps a copy of every checkpoint."""

    scratch: Path
    keep: Path | None = None
    at: Callable[[int], None] = lambda _step: None
    words: list[str] = field(default_factory=list)
    told: list[TrainingProgress] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    def __call__(self, share: float, step: str) -> None:
        assert 0 <= share <= 1
        self.words.append(step)

    def tell(self, progress: TrainingProgress) -> None:
        self.told.append(progress)

    def checkpoint(self, step: int) -> None:
        self.kept.append(step)
        if self.keep is not None:
            shutil.copy(self.scratch / CHECKPOINT_OUTPUT, self.keep / f"{step}.safetensors")
        self.at(step)


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A training that ended."""

    result: TrainResult
    artifact: bytes
    teller: Teller

    @property
    def outcome(self) -> Any:
        return self.result.outcome


def recipe(**fields: Any) -> Qat:
    given = {"steps": STEPS, "batch_size": 8, "looks": 4, "learning_rate": 1e-3, **fields}
    made = Qat(**given)
    object.__setattr__(made, "checkpoint_seconds", 0.0)  # after every step: users may ask for one a second at most
    return made


def source(numbers: range, path: str = "in/rows.npz") -> RowSource:
    return RowSource(path=path, format=DatasetFormat.NPZ, rows=tuple(numbers), preprocessing=None)


def tensor(name: str, *shape: int | None, dtype: DType = DType.FLOAT32) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=(None, *shape))


IMAGES = Signature(inputs=(tensor("x", 3, 8, 8),), outputs=(tensor("logits", 4),))


@dataclass(frozen=True, kw_only=True)
class Material:
    """A scratch folder with a model and rows."""

    scratch: Path
    signature: Signature

    def spec(self, asked: Qat, **fields: Any) -> TrainSpec:
        starts = sorted(path.name for path in (self.scratch / "in").glob("start*.onnx"))
        given: dict[str, Any] = {
            "float32": "in/float32.onnx",
            "starts": tuple(Start(recipe=name, artifact=f"in/{name}") for name in starts),
            "signature": self.signature,
            "recipe": asked,
            "training": source(range(HELD_OUT, ROWS)),
            "held_out": source(range(HELD_OUT)),
            "seconds": 600.0,
            "memory_bytes": 64 * GIBIBYTES,
        }
        return TrainSpec(**given | fields)

    def run(self, asked: Qat, *, teller: Teller | None = None, **fields: Any) -> Ran:
        shutil.rmtree(self.scratch / "out", ignore_errors=True)
        heard = teller or Teller(scratch=self.scratch)
        result = train(self.spec(asked, **fields), self.scratch, heard)
        return Ran(result=result, artifact=(self.scratch / result.artifact).read_bytes(), teller=heard)


def material(
    scratch: Path,
    model: onnx.ModelProto,
    inputs: Arrays,
    *,
    signature: Signature = IMAGES,
    labels: Array | None = None,
    starts: tuple[Grids, ...] = (Grids(),),
) -> Material:
    (scratch / "in").mkdir(parents=True)
    onnx.save(model, scratch / "in" / "float32.onnx")
    for number, grids in enumerate(starts):
        prepared = prepare(onnx.load(scratch / "in" / "float32.onnx"), Qat().starts[0])
        onnx.save(quantized(prepared, inputs, grids), scratch / "in" / f"start{number}.onnx")
    arrays = dict(inputs) if labels is None else {**inputs, "labels": labels}
    np.savez(scratch / "in" / "rows.npz", **arrays)  # type: ignore[arg-type]
    return Material(scratch=scratch, signature=signature)


@pytest.fixture(autouse=True)
def settings_of_torch_are_given_back() -> Iterator[None]:
    """A stage has a process of its own; here it shares one with other tests."""
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(mode=False)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def every_step_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "WRITING_STRETCH", 0)  # however long it takes


@pytest.fixture
def images(tmp_path: Path) -> Material:
    return material(tmp_path / "s", conv_classifier(), {"x": rows(ROWS)}, labels=LABELS)


@pytest.fixture
def narrow(tmp_path: Path) -> Material:
    """4 bits: there is something to learn."""
    grids = Grids(bits=4, activation_bits=4)
    return material(tmp_path / "s", conv_classifier(), {"x": rows(ROWS)}, labels=LABELS, starts=(grids,))


FOUR = {"weight_bits": 4, "activation_bits": 4}


def answers(artifact: bytes, inputs: Arrays, output: str = "logits") -> Array:
    found: Array = onnxruntime.InferenceSession(artifact).run([output], dict(inputs))[0]
    return found


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


UNDISTURBED: dict[str, dict[str, Any]] = {
    "adamw, learned scales": {"steps": 6, "looks": 3},
    "sgd, observed scales": {"optimizer": "sgd", "scales": "observed", "freeze_observers": 0.7, "steps": 6},
    "augmentation, labels": {"loss": "cross_entropy", "flip": True, "crop": 1, "steps": 6},
    "weight decay, augmented teacher": {"weight_decay": 0.1, "flip": True, "gradient_clip": None, "steps": 6},
    "early stopping": {"learning_rate": 0.3, "patience": 2, "looks": STEPS, "scales": "fixed"},
    "several epochs": {"epochs": 2, "steps": None},
}


@pytest.mark.parametrize("what", UNDISTURBED)
def test_a_training_that_went_on_from_any_checkpoint_ends_with_the_same_bytes(
    what: str, narrow: Material, tmp_path: Path
) -> None:
    asked = recipe(**FOUR, **UNDISTURBED[what])
    states = tmp_path / "states"
    states.mkdir()
    whole = narrow.run(asked, teller=Teller(scratch=narrow.scratch, keep=states))
    assert (what == "early stopping") == (whole.outcome.ended == "early stopping")
    steps = sorted({whole.teller.kept[0], whole.teller.kept[len(whole.teller.kept) // 2], whole.teller.kept[-1]})
    for step in steps:
        shutil.copy(states / f"{step}.safetensors", narrow.scratch / "in/state")
        again = narrow.run(asked, checkpoint="in/state")
        assert again.artifact == whole.artifact
        assert again.outcome.resumed_at == (step,)
        told = [(point.step, point.loss, point.score) for point in again.outcome.points]
        assert told == [(point.step, point.loss, point.score) for point in whole.outcome.points]
        assert (again.outcome.ended, again.outcome.best_step) == (whole.outcome.ended, whole.outcome.best_step)


def test_moving_batch_normalizations_resume_with_the_same_bytes(tmp_path: Path) -> None:
    signature = Signature(inputs=IMAGES.inputs, outputs=(tensor("y", 4),))
    given = material(tmp_path / "s", uploaded(), {"x": rows(ROWS) + 1}, signature=signature)
    asked = recipe(freeze_batch_norm=0.8, steps=6)
    (tmp_path / "states").mkdir()
    whole = given.run(asked, teller=Teller(scratch=given.scratch, keep=tmp_path / "states"))
    shutil.copy(tmp_path / "states/3.safetensors", given.scratch / "in/state")
    assert given.run(asked, checkpoint="in/state").artifact == whole.artifact


def test_weights_behind_a_folded_batch_normalization_begin_as_floats(tmp_path: Path) -> None:
    """They are no multiples of a step: rounding is not all that is known of them."""
    signature = Signature(inputs=IMAGES.inputs, outputs=(tensor("y", 4),))
    given = material(tmp_path / "s", uploaded(), {"x": rows(ROWS)}, signature=signature)
    given.run(recipe(steps=1, learning_rate=1e-9))
    found = state.read(given.scratch / CHECKPOINT_OUTPUT)
    assert found is not None
    latents = [each.numpy() * 127 for name, each in found.module.items() if name.endswith("w0.latent")]
    assert np.abs(latents[0] - np.rint(latents[0])).max() > 0.1


def test_processes_that_are_started_again_go_on_from_what_they_wrote_themselves(images: Material) -> None:
    whole = images.run(recipe())

    def die(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        images.run(recipe(), teller=Teller(scratch=images.scratch, at=die))
    heard = Teller(scratch=images.scratch)
    result = train(images.spec(recipe()), images.scratch, heard)
    assert result.outcome.resumed_at == (5,)
    assert (images.scratch / result.artifact).read_bytes() == whole.artifact


def test_the_state_of_another_training_is_none_of_ours(images: Material) -> None:
    images.run(recipe(seed=3))
    shutil.move(images.scratch / CHECKPOINT_OUTPUT, images.scratch / "in/state")
    ran = images.run(recipe(), checkpoint="in/state")
    assert ran.outcome.resumed_at == ()
    (note,) = ran.result.notes
    assert note.startswith("Training began anew and not from the stored checkpoint: it is of another recipe, ")


def test_the_state_of_another_release_is_none_of_ours(images: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    images.run(recipe())
    shutil.move(images.scratch / CHECKPOINT_OUTPUT, images.scratch / "in/state")
    monkeypatch.setattr(stage, "__version__", "0.0.1")
    assert images.run(recipe(), checkpoint="in/state").outcome.resumed_at == ()


def test_who_is_started_again_has_no_more_time_than_is_left(images: Material) -> None:
    with pytest.raises(DoesNotFit, match="has 0 left for it"):
        images.run(recipe(), seconds=100.0, began_at=time.time() - 101)


def test_a_checkpoint_that_took_long_to_write_makes_the_next_one_wait(
    images: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "WRITING_STRETCH", 10**9)
    assert images.run(recipe()).teller.kept == [1, STEPS]


@pytest.mark.parametrize("place", [5, 40])
def test_a_row_that_is_too_large_to_train_with_is_named(place: int, tmp_path: Path) -> None:
    x = rows(ROWS)
    plain = material(tmp_path / "s", conv_classifier(), {"x": x}, labels=LABELS)
    x[place] = 3e38
    np.savez(tmp_path / "s/in/rows.npz", x=x, labels=LABELS)
    with pytest.raises(DatasetUnfit, match=f"^Row {place} of the dataset.*so large"):
        plain.run(recipe())


def test_a_label_whose_square_is_no_number_is_named(tmp_path: Path) -> None:
    labels = np.zeros((ROWS, 4), np.float32)
    labels[20, 1] = 1e30
    given = material(tmp_path / "s", conv_classifier(), {"x": rows(ROWS)}, labels=labels)
    with pytest.raises(
        DatasetUnfit, match=r"Row 20 of the dataset, one of the training rows.*its label is above 1e\+18"
    ):
        given.run(recipe(loss="mse"))


@pytest.mark.parametrize("damage", ["half", "empty", "noise"])
def test_a_damaged_state_is_not_gone_on_from(damage: str, images: Material) -> None:
    whole = images.run(recipe(steps=4))
    content = (images.scratch / CHECKPOINT_OUTPUT).read_bytes()
    bad = {"half": content[: len(content) // 2], "empty": b"", "noise": bytes(100) + content[100:]}[damage]
    (images.scratch / "in/state").write_bytes(bad)
    ran = images.run(recipe(steps=4), checkpoint="in/state")
    assert ran.outcome.resumed_at == ()
    assert ran.artifact == whole.artifact


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file of this process grow larger, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(images: Material) -> None:
    whole = images.run(recipe())
    size = (images.scratch / CHECKPOINT_OUTPUT).stat().st_size
    room: list[int] = []
    teller = Teller(scratch=images.scratch, at=room.append)
    with files_up_to(size - 4000):  # the rows and the artifact fit, a state does not
        ran = images.run(recipe(), teller=teller)
    assert (ran.artifact, room) == (whole.artifact, [])
    (note,) = ran.result.notes
    assert note.startswith("12 checkpoints, from step 1 to 12, were not written (")
    assert [path.name for path in (images.scratch / "out").iterdir()] == ["variant.onnx"]


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


def error_of(artifact: bytes, narrow: Material) -> float:
    """Return how far the held-out rows' answers are from the model's own."""
    x = {"x": rows(HELD_OUT)}
    wanted = answers((narrow.scratch / "in/float32.onnx").read_bytes(), x)
    return float(np.square(answers(artifact, x) - wanted).sum())


def test_who_asks_to_stop_gets_the_best_so_far(narrow: Material) -> None:
    """Nobody looked at the held-out rows before: what was learned so far is judged then."""
    teller = Teller(scratch=narrow.scratch)
    teller.at = lambda step: (narrow.scratch / STOP_INPUT).touch() if step == 9 else None
    ran = narrow.run(recipe(**FOUR, looks=1), teller=teller)
    assert (ran.outcome.ended, ran.outcome.steps_done) == ("stopped on request", 10)
    assert ran.outcome.reason == "Stopped on request after step 10 of 12."
    assert ran.outcome.best_step == 10
    assert [point.step for point in ran.outcome.points] == list(range(11))
    assert error_of(ran.artifact, narrow) < error_of((narrow.scratch / "in/start0.onnx").read_bytes(), narrow)


def test_a_time_that_is_up_ends_training_with_the_best_so_far(narrow: Material, tmp_path: Path) -> None:
    """It has begun, so a forecast does not refuse it."""
    asked = recipe(**FOUR, looks=1)
    narrow.run(asked, teller=Teller(scratch=narrow.scratch, keep=tmp_path))
    shutil.copy(tmp_path / "9.safetensors", narrow.scratch / "in/state")
    ran = narrow.run(asked, checkpoint="in/state", seconds=0.0)
    assert (ran.outcome.ended, ran.outcome.reason) == ("time limit", "The time was up after step 10 of 12.")
    assert ran.outcome.best_step == 10
    assert error_of(ran.artifact, narrow) < error_of((narrow.scratch / "in/start0.onnx").read_bytes(), narrow)


def test_the_forecast_stands_beside_what_it_forecast(images: Material) -> None:
    outcome = images.run(recipe()).outcome
    assert 0 < outcome.forecast.actual_memory_bytes < 64 * GIBIBYTES
    assert outcome.forecast.actual_seconds == pytest.approx(outcome.seconds, abs=0.2)  # the loop's, of one attempt


def test_rows_that_the_disk_has_no_room_for_end_the_stage_and_not_its_process(images: Material) -> None:
    with files_up_to(4096), pytest.raises(OSError, match="File too large") as failed:
        images.run(recipe())
    failure = failure_of("train", failed.value)
    assert isinstance(failure, OutOfDisk)


def test_what_changes_nothing_on_this_graph_is_noted(images: Material) -> None:
    (note,) = images.run(recipe(freeze_batch_norm=0.5, steps=2)).result.notes
    assert note.startswith("freeze_batch_norm changed nothing: the graph has no batch normalization")


def test_answers_that_are_values_are_compared_as_values(narrow: Material) -> None:
    outcome = narrow.run(recipe(**FOUR, steps=30), values=True).outcome
    assert {point.agreement for point in outcome.points} == {None}
    assert outcome.points[-1].score < outcome.points[0].score


def test_a_forecast_refuses_too_little_time(images: Material) -> None:
    with pytest.raises(DoesNotFit, match=r"about \d+ seconds for 9000000 steps .* 30 left .*: take fewer epochs"):
        images.run(recipe(steps=9_000_000), seconds=30.0)


def test_a_forecast_refuses_too_little_memory(images: Material) -> None:
    with pytest.raises(DoesNotFit, match=r"[\d,]+ bytes of memory and may take 1,048,576 .*a batch_size below 8"):
        images.run(recipe(), memory_bytes=2**20)


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


def labelled(images: Material, labels: Array | None) -> Material:
    path = images.scratch / "in/rows.npz"
    if labels is None:
        np.savez(path, x=rows(ROWS))
    else:
        np.savez(path, x=rows(ROWS), labels=labels)
    return images


WRONG = np.where(np.arange(ROWS) == HELD_OUT + 7, 12, LABELS)
BAD_LABELS: dict[str, tuple[str, Array | None, str]] = {
    "too high": ("cross_entropy", WRONG, r"Row 23 is labelled 12, but the model tells 4 classes apart, 0 to 3: mend"),
    "below 0": ("cross_entropy", np.where(WRONG == 12, -100, WRONG), r"Row 23 is labelled -100, but .* 0 to 3"),
    "one class": ("cross_entropy", np.ones(ROWS, np.int64), "All training rows have one class"),
    "none": ("cross_entropy", None, r"The loss 'cross_entropy' needs labels, and the training rows have none"),
    "real numbers": ("cross_entropy", np.ones(ROWS, np.float32), "needs classes as labels.*real numbers: take 'mse'"),
    "a map": ("cross_entropy", np.ones((ROWS, 2), np.int64), r"do not fit the model's first output, float32\[N, 4\]"),
    "too few values": ("mse", np.ones((ROWS, 3), np.float32), r"The labels are \[3\] a row, but .* \[4\]: send values"),
    "infinite": ("mse", np.full((ROWS, 4), np.inf, np.float32), "Some labels are not finite numbers"),
}


@pytest.mark.parametrize("what", BAD_LABELS)
def test_labels_that_cannot_teach_are_refused(what: str, images: Material) -> None:
    loss, labels, sentence = BAD_LABELS[what]
    with pytest.raises(DatasetUnfit, match=sentence):
        labelled(images, labels).run(recipe(loss=loss))


def test_a_batch_beyond_the_rows_is_refused(images: Material) -> None:
    with pytest.raises(DatasetUnfit, match=r"A batch of 33 rows was asked for, and 32 rows train: take a smaller"):
        images.run(recipe(batch_size=33))


def test_a_teacher_with_other_outputs_is_refused(images: Material) -> None:
    signature = Signature(inputs=IMAGES.inputs, outputs=(tensor("logits", 5),))
    teacher = Teacher(name="other:1", artifact="in/float32.onnx", signature=signature)
    with pytest.raises(
        DatasetUnfit,
        match=r"Teacher other:1 answers 'logits' as float32\[N, 5\], but the model answers 'logits' as float32\[N, 4\]",
    ):
        images.run(recipe(teacher="other:1"), teacher=teacher)


def test_a_model_without_a_batch_axis_is_refused(images: Material) -> None:
    one = (replace(IMAGES.inputs[0], shape=(1, 3, 8, 8), batch_axis=None),)
    with pytest.raises(ToolchainFailed, match=r"one row at a time.*export it with a symbolic batch axis"):
        images.run(recipe(), signature=Signature(inputs=one, outputs=IMAGES.outputs))


@pytest.mark.parametrize("asked", [{"flip": True}, {"crop": 2}])
def test_only_images_are_turned_and_cut(asked: dict[str, Any], tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="fc", transB=1)]
    model = small(
        nodes, inputs={"x": ["n", 6]}, outputs={"y": ["n", 3]}, weights={"w": drawn(3, 6), "b": drawn(3, scale=0.1)}
    )
    x = np.random.default_rng(0).normal(0, 1, (ROWS, 6)).astype(np.float32)
    signature = Signature(inputs=(tensor("x", 6),), outputs=(tensor("y", 3),))
    given = material(tmp_path / "s", model, {"x": x}, signature=signature)
    with pytest.raises(DatasetUnfit, match=r"flip and crop are for images, and the model takes float32\[N, 6\]"):
        given.run(recipe(**asked))
