"""Shared segments: sealed, reused, never kept without bound, and no array copied that lies there already."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from app.domain.errors import QueueFull
from app.domain.runners import ALIGNMENT, BOARD_BYTES, SEGMENT_HEADER_BYTES, Part
from app.domain.tensors import DType, Signature, TensorSpec
from app.serving.keeper import LONGEST_DELAY_SECONDS, delay_seconds
from app.serving.placing import copy, find, lay_out
from app.serving.requests import Request, check
from app.serving.segments import (
    MOST_IDLE,
    MOST_IDLE_BYTES,
    SMALLEST_BYTES,
    Board,
    Segment,
    SegmentPool,
    adopt,
    create,
)
from app.serving.terms import Arrays, EncodedImages
from tests.serving import files_left, open_descriptors
from workers.runners.segments import Board as RunnersBoard

SPECS = (
    TensorSpec(name="a", dtype=DType.UINT8, shape=(None,)),
    TensorSpec(name="b", dtype=DType.FLOAT32, shape=(None, 2)),
)
START = SEGMENT_HEADER_BYTES


def pool() -> SegmentPool:
    return SegmentPool(dropped=lambda _: None)


def request(arrays: Arrays) -> Request:
    signature = Signature(inputs=SPECS[: len(arrays)], outputs=SPECS)
    return check(signature, arrays, preprocessing=None, max_batch_size=2**20)


def both(rows: int) -> dict[str, npt.NDArray[Any]]:
    return {"a": np.arange(rows, dtype=np.uint8), "b": np.random.default_rng(0).random((rows, 2), np.float32)}


def lying(segment: Segment, offset: int, dtype: str, *shape: int) -> npt.NDArray[Any]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(segment.memory[offset : offset + size], dtype).reshape(shape)


def test_arrays_come_back_as_they_were_written() -> None:
    asked = request(both(5))
    parts, end = lay_out(asked)
    segment = pool().take(end)
    copy(asked, parts, segment)
    for name, array in segment.read(parts).items():
        np.testing.assert_array_equal(array, asked.arrays[name])


def test_every_array_is_aligned_and_none_overlap() -> None:
    parts, end = lay_out(request(both(65)))
    assert [part.offset for part in parts] == [START, START + 2 * ALIGNMENT]
    assert end == START + (2 + 9) * ALIGNMENT  # 65 rows of 8 bytes reach into a ninth piece


def test_an_array_that_lies_in_the_segment_is_found_there() -> None:
    segment = pool().take(SMALLEST_BYTES)
    arrays = {"a": lying(segment, START + 192, "uint8", 3), "b": lying(segment, START, "float32", 3, 2)}
    found = find(request(arrays), segment)
    assert found is not None
    parts, end = found
    assert {part.name: part.offset for part in parts} == {"a": START + 192, "b": START}
    assert end == START + 256


@pytest.mark.parametrize("offset", [START + 4, START - ALIGNMENT], ids=["at an odd address", "in the header"])
def test_an_array_that_an_engine_cannot_read_in_place_is_not_found(offset: int) -> None:
    segment = pool().take(SMALLEST_BYTES)
    assert find(request({"a": lying(segment, offset, "uint8", 8)}), segment) is None


def test_an_array_of_other_memory_is_not_found() -> None:
    segment = pool().take(SMALLEST_BYTES)
    within, without = lying(segment, START, "uint8", 3), np.zeros((3, 2), np.float32)
    assert find(request({"a": within, "b": without}), segment) is None


def test_an_array_of_another_order_is_not_found() -> None:
    segment = pool().take(SMALLEST_BYTES)
    assert segment.offset_of(lying(segment, START, "float32", 4, 4).T) is None


def test_encoded_images_are_found_at_any_address() -> None:
    segment = pool().take(SMALLEST_BYTES)
    images = tuple(segment.memory[START + first : START + first + 10] for first in (0, 10, 23))
    asked = Request(
        form="images",
        arrays={str(number): np.frombuffer(image, np.uint8) for number, image in enumerate(images)},
        dtypes=dict.fromkeys("012", DType.UINT8),
        rows=len(EncodedImages(images=images).images),
    )
    found = find(asked, segment)
    assert found is not None
    assert [part.offset for part in found[0]] == [START, START + 10, START + 23]


def test_a_segment_given_back_is_taken_again() -> None:
    segments = pool()
    first = segments.take(100)
    first.memory[0] = 1
    segments.leave(first)
    again = segments.take(200)
    assert again is first
    assert not again.begun


def test_a_segment_is_kept_from_others_until_its_last_user_leaves() -> None:
    segments = pool()
    first = segments.take(100)
    first.users += 1  # a runner works on it
    segments.leave(first)
    assert segments.take(100) is not first
    segments.leave(first)
    assert segments.take(100) is first


def test_segments_grow_in_powers_of_two() -> None:
    sizes = [pool().take(size).size_bytes for size in (1, SMALLEST_BYTES, SMALLEST_BYTES + 1)]
    assert sizes == [SMALLEST_BYTES, SMALLEST_BYTES, 2 * SMALLEST_BYTES]


def test_idle_segments_are_bounded_in_number() -> None:
    dropped: list[Segment] = []
    segments = SegmentPool(dropped=dropped.append)
    for segment in [segments.take(1) for _ in range(MOST_IDLE + 3)]:
        segments.leave(segment)
    assert len(dropped) == 3


def test_idle_segments_are_bounded_in_bytes() -> None:
    dropped: list[Segment] = []
    segments = SegmentPool(dropped=dropped.append)
    small, large = segments.take(1), segments.take(MOST_IDLE_BYTES)
    segments.leave(small)
    segments.leave(large)
    assert dropped == [large]


def test_a_trimmed_pool_keeps_what_is_lent() -> None:
    dropped: list[Segment] = []
    segments = SegmentPool(dropped=dropped.append)
    idle, lent = segments.take(1), segments.take(1)
    segments.leave(idle)
    segments.trim()
    segments.leave(lent)
    assert dropped == [idle]
    assert segments.take(1) is lent


def test_a_closed_pool_keeps_no_descriptor() -> None:
    segments = pool()
    idle, lent = segments.take(1), segments.take(1)
    segments.leave(idle)
    segments.close()
    segments.leave(lent)
    assert not any(Path(f"/proc/self/fd/{segment.descriptor}").exists() for segment in (idle, lent))


def test_a_segment_that_a_lost_runner_may_still_write_to_is_not_taken_again() -> None:
    segments = pool()
    first = segments.take(100)
    first.spoilt = True
    segments.leave(first)
    assert segments.size_bytes == 0
    assert segments.take(100) is not first


@pytest.mark.parametrize("files", [0, 1])
def test_a_segment_for_which_no_descriptor_is_left_is_refused_and_not_counted(files: int) -> None:
    segments, before = pool(), open_descriptors()
    with files_left(files), pytest.raises(QueueFull, match="open more files"):
        segments.take(100)
    assert (segments.size_bytes, open_descriptors()) == (0, before)
    assert segments.take(100).number == 1


def test_a_segment_cannot_be_cut_short() -> None:
    descriptor = create(SMALLEST_BYTES)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)


def test_memory_that_could_be_cut_short_is_not_adopted() -> None:
    unsealed = os.memfd_create("unsealed")
    os.ftruncate(unsealed, SMALLEST_BYTES)
    with pytest.raises(ValueError, match="not sealed"):
        adopt(unsealed, SMALLEST_BYTES)
    assert not Path(f"/proc/self/fd/{unsealed}").exists()


def test_memory_smaller_than_said_is_not_adopted() -> None:
    with pytest.raises(ValueError, match="smaller"):
        adopt(create(SMALLEST_BYTES), 2 * SMALLEST_BYTES)


def test_a_part_outside_its_segment_is_not_read() -> None:
    part = Part(name="a", dtype=DType.UINT8, shape=(SMALLEST_BYTES,), offset=1)
    with pytest.raises(TypeError):
        pool().take(1).read((part,))


def test_a_gateway_reads_the_board_and_cannot_write_it() -> None:
    shown = RunnersBoard()
    seen = Board(os.dup(shown.descriptor))
    assert seen.wait_seconds() == 0
    shown.show(rows=30, rows_per_second=60)
    assert seen.wait_seconds() == 0.5
    with pytest.raises(TypeError):
        seen._map[:BOARD_BYTES] = bytes(BOARD_BYTES)
    os.close(shown.descriptor)


def test_the_first_restart_is_at_once_and_later_ones_ever_slower() -> None:
    delays = [delay_seconds(deaths) for deaths in range(1, 12)]
    assert delays[0] == 0
    assert delays == sorted(delays)
    assert delays[-1] == LONGEST_DELAY_SECONDS
