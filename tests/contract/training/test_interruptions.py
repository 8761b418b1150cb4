"""The stage `train`: whatever stops it, and whoever goes on, it ends with the same artifact, or says why not."""

import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.domain.errors import DoesNotFit, OutOfDisk
from app.domain.tensors import Signature
from tests.contract.training.material import (
    FOUR,
    IMAGES,
    ROWS,
    STEPS,
    Material,
    Teller,
    error_of,
    material,
    recipe,
    tensor,
)
from tests.graphs import rows
from tests.numerics.test_training_batch_norms import uploaded
from workers.stage_child import failure_of
from workers.stage_records.training import CHECKPOINT_OUTPUT, STOP_INPUT
from workers.training import loop, stage
from workers.training.stage import train

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


def test_rows_that_the_disk_has_no_room_for_end_the_stage_and_not_its_process(images: Material) -> None:
    with files_up_to(4096), pytest.raises(OSError, match="File too large") as failed:
        images.run(recipe())
    failure = failure_of("train", failed.value)
    assert isinstance(failure, OutOfDisk)
