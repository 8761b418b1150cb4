"""Rate, order, augmentation and split of a training follow from the recipe and the step alone."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import DatasetUnfit
from app.domain.recipes import Qat
from app.domain.tensors import DType, Signature, TensorSpec
from workers.training.augmentation import augment, image_axes
from workers.training.labels import labels_of
from workers.training.losses import IGNORED
from workers.training.material import Material
from workers.training.rows import Rows, order, picked
from workers.training.schedule import rate_at


def rates(recipe: Qat, steps: int) -> list[float]:
    return [rate_at(recipe, step=step, steps=steps) for step in range(steps)]


def test_a_cosine_rises_evenly_and_falls_to_nothing() -> None:
    found = rates(Qat(learning_rate=0.8, warmup=0.2), 20)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert found[12] == pytest.approx(0.4)  # half of the 16 steps after the warm-up
    assert found[19] == pytest.approx(0.8 * 0.5 * (1 + math.cos(math.pi * 15 / 16)))
    assert found == sorted(found[:4]) + sorted(found[4:], reverse=True)


def test_a_constant_rate_stays() -> None:
    assert rates(Qat(learning_rate=0.5, warmup=0, schedule="constant"), 4) == [0.5] * 4


@given(steps=st.integers(1, 50), warmup=st.floats(0, 0.5), schedule=st.sampled_from(["cosine", "constant"]))
def test_no_step_is_without_a_rate_or_above_the_highest(steps: int, warmup: float, schedule: Any) -> None:
    found = rates(Qat(learning_rate=0.5, warmup=warmup, schedule=schedule), steps)
    assert all(0 < rate <= 0.5 for rate in found)
    assert max(found) == pytest.approx(0.5)


@given(rows=st.integers(1, 200), data=st.data(), seed=st.integers(0, 9))
def test_an_epoch_takes_every_row_at_most_once(rows: int, data: st.DataObject, seed: int) -> None:
    batch = data.draw(st.integers(1, rows))
    taken = [picked(rows, batch_size=batch, seed=seed, step=step) for step in range(rows // batch)]
    found = np.concatenate(taken)
    assert len(set(found.tolist())) == len(found) == rows // batch * batch
    assert set(found.tolist()) <= set(range(rows))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [order(50, seed=seed, epoch=epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(each) for each in orders}) == 4
    assert order(50, seed=1, epoch=1).tolist() == orders[3]


IMAGES = np.random.default_rng(0).normal(0, 1, (16, 3, 6, 5)).astype(np.float32)


def test_what_an_image_looks_like_follows_from_seed_and_step() -> None:
    def seen(seed: int, step: int) -> bytes:
        return bytes(augment(IMAGES, Qat(flip=True, crop=2, seed=seed), axes=(2, 3), step=step).tobytes())

    assert seen(0, 4) == seen(0, 4)
    assert len({seen(0, 4), seen(0, 5), seen(1, 4)}) == 3


@pytest.mark.parametrize(("axes", "images"), [((2, 3), IMAGES), ((1, 2), IMAGES.transpose(0, 2, 3, 1))])
def test_flipping_turns_some_images_left_to_right(axes: tuple[int, int], images: Any) -> None:
    found = augment(images, Qat(flip=True), axes=axes, step=0)
    turned = [np.array_equal(after, np.flip(before, axes[1] - 1)) for before, after in zip(images, found, strict=True)]
    same = [np.array_equal(after, before) for before, after in zip(images, found, strict=True)]
    assert all(a != b for a, b in zip(turned, same, strict=True))
    assert 0 < sum(turned) < 16


@pytest.mark.parametrize(("axes", "images"), [((2, 3), IMAGES), ((1, 2), IMAGES.transpose(0, 2, 3, 1))])
def test_cropping_shifts_an_image_and_fills_in_zeros(axes: tuple[int, int], images: Any) -> None:
    found = augment(images, Qat(crop=2), axes=axes, step=0)
    edges = [(0, 0), *[(2, 2) if axis in axes else (0, 0) for axis in (1, 2, 3)]]
    padded = np.pad(images, edges)
    views = np.lib.stride_tricks.sliding_window_view(padded, images.shape[1:], axis=(1, 2, 3))
    shifts = set()
    for row in range(16):
        places = np.argwhere((views[row] == found[row]).all((-3, -2, -1)))
        shifts.add(tuple(places[0].tolist()))
    assert len(shifts) > 5
    assert found.shape == images.shape


def spec(*shape: int | None, dtype: DType = DType.FLOAT32, name: str = "x") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=(None, *shape))


def signature(*inputs: TensorSpec, output: TensorSpec | None = None) -> Signature:
    return Signature(inputs=inputs, outputs=(output or spec(4, name="y"),))


def test_channels_tell_where_height_and_width_are() -> None:
    assert image_axes(signature(spec(3, 8, 9))) == (2, 3)
    assert image_axes(signature(spec(8, 9, 3))) == (1, 2)
    assert image_axes(signature(spec(1, 28, 28))) == (2, 3)


@pytest.mark.parametrize(
    "inputs",
    [
        (spec(8, 9),),
        (spec(3, 8, 9), spec(3, 8, 9, name="z")),
        (spec(3, 8, 9, dtype=DType.UINT8),),
        (TensorSpec(name="x", dtype=DType.FLOAT32, shape=(3, 8, 9, None), batch_axis=3),),
    ],
    ids=["three axes", "two inputs", "no floats", "rows last"],
)
def test_what_is_no_batch_of_images_is_not_turned(inputs: tuple[TensorSpec, ...]) -> None:
    with pytest.raises(DatasetUnfit, match="flip and crop are for images"):
        image_axes(signature(*inputs))


def rows_of(labels: Any = None) -> Rows:
    return Rows(inputs={"x": IMAGES}, axes={"x": 0}, labels=labels, numbers=tuple(range(100, 116)))


def material(recipe: Qat) -> Material:
    axes = (2, 3) if recipe.flip else None
    return Material(rows=rows_of(), recipe=recipe, labels=None, teacher=None, answers=None, image_axes=axes)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("processes", [2, 3, 8])
def test_a_batch_that_processes_share_is_the_batch_of_one(processes: int, flip: bool) -> None:  # noqa: FBT001
    given_rows = material(Qat(batch_size=8, flip=flip, crop=1 if flip else 0))
    for step in range(3):
        whole, _ = given_rows.step(step, rank=0, size=1)
        parts = [given_rows.step(step, rank=rank, size=processes)[0]["x"] for rank in range(processes)]
        shared = np.empty_like(whole["x"].numpy())
        for rank, part in enumerate(parts):
            shared[rank::processes] = part.numpy()
        np.testing.assert_array_equal(shared, whole["x"].numpy())


def test_processes_look_at_every_held_out_row_once() -> None:
    many = np.arange(200, dtype=np.float32).reshape(200, 1)
    held_out = Rows(inputs={"x": many}, axes={"x": 0}, labels=None, numbers=tuple(range(200)))
    looked = Material(rows=held_out, recipe=Qat(), labels=None, teacher=None, answers=None, image_axes=None)
    seen = [
        float(value) for rank in range(3) for inputs, _ in looked.all(rank=rank, size=3) for value in inputs["x"][:, 0]
    ]
    assert sorted(seen) == many[:, 0].tolist()


MAPS = spec(4, 2, 2, name="y")


def test_places_that_count_for_nothing_are_told_by_255_or_a_number_below_0() -> None:
    labels = np.zeros((16, 2, 2), np.int64)
    labels[0], labels[1], labels[2] = 255, -1, 3
    found = labels_of(rows_of(labels), Qat(loss="cross_entropy"), signature(spec(), output=MAPS), trains=True)
    assert found.take(np.arange(3))[:, 0, 0].tolist() == [IGNORED, IGNORED, 3]


@pytest.mark.parametrize(
    ("output", "shape"),
    [(MAPS, (16,)), (MAPS, (16, 3, 3)), (spec(4, name="y"), (16, 1)), (spec(name="y"), (16,))],
    ids=["one class for a map", "a map of another size", "a column", "no classes"],
)
def test_labels_of_another_shape_than_the_answers_are_refused(output: TensorSpec, shape: tuple[int, ...]) -> None:
    labels = np.arange(math.prod(shape)).reshape(shape) % 4
    with pytest.raises(DatasetUnfit, match="The labels do not fit the model's first output"):
        labels_of(rows_of(labels), Qat(loss="cross_entropy"), signature(spec(), output=output), trains=True)


def test_the_row_of_a_wrong_label_is_counted_in_its_dataset() -> None:
    labels = np.arange(16) % 4
    labels[5] = 9
    with pytest.raises(DatasetUnfit, match=r"Row 105 is labelled 9, but the model tells 4 classes apart, 0 to 3"):
        labels_of(rows_of(labels), Qat(loss="cross_entropy"), signature(spec()), trains=True)


def test_a_wrong_label_beyond_the_first_rows_is_found() -> None:
    labels = np.arange(200) % 4
    labels[150] = 9
    given = Rows(inputs={}, axes={}, labels=labels, numbers=tuple(range(1000, 1200)))
    with pytest.raises(DatasetUnfit, match="Row 1150 is labelled 9"):
        labels_of(given, Qat(loss="cross_entropy"), signature(spec()), trains=True)


def test_an_epoch_s_order_is_drawn_once() -> None:
    assert order(50, seed=3, epoch=1) is order(50, seed=3, epoch=1)
    with pytest.raises(ValueError, match="read-only"):
        order(50, seed=3, epoch=1)[0] = 7


def test_held_out_rows_may_have_one_class() -> None:
    found = labels_of(rows_of(np.ones(16, np.int64)), Qat(loss="cross_entropy"), signature(spec()), trains=False)
    assert found.take(np.arange(16)).tolist() == [1] * 16


def test_values_may_leave_out_axes_of_one() -> None:
    wanted = signature(spec(), output=spec(1, name="y"))
    found = labels_of(rows_of(np.arange(16.0)), Qat(loss="mse"), wanted, trains=True)
    assert found.take(np.arange(16)).tolist() == list(range(16))
