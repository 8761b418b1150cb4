"""Shared segments: sealed, reused, and never kept without bound. Here both ends are this process."""

import os
from pathlib import Path

import numpy as np
import pytest

from app.domain.runners import ALIGNMENT, Part
from app.domain.tensors import DType, TensorSpec
from app.serving.keeper import LONGEST_DELAY_SECONDS, delay_seconds
from app.serving.segments import (
    MOST_IDLE,
    MOST_IDLE_BYTES,
    SMALLEST_BYTES,
    Segment,
    SegmentPool,
    adopt,
    create,
    lay_out,
)
from app.serving.terms import Arrays

SPECS = (
    TensorSpec(name="a", dtype=DType.UINT8, shape=(None,)),
    TensorSpec(name="b", dtype=DType.FLOAT32, shape=(None, 2)),
)


def taken(pool: SegmentPool, size_bytes: int) -> Segment:
    segment, descriptor = pool.take(size_bytes)
    if descriptor is not None:
        os.close(descriptor)
    return segment


def test_arrays_come_back_as_they_were_written() -> None:
    arrays: Arrays = {"a": np.arange(5, dtype=np.uint8), "b": np.ones((5, 2), np.float32)}
    parts, end = lay_out(arrays, SPECS)
    segment = taken(SegmentPool(), end)
    segment.write(b"", parts, arrays)
    for name, array in segment.read(parts).items():
        np.testing.assert_array_equal(array, arrays[name])


def test_every_array_is_aligned_and_none_overlap() -> None:
    parts, end = lay_out({"a": np.zeros(65, np.uint8), "b": np.zeros((1, 2), np.float32)}, SPECS)
    assert [part.offset for part in parts] == [0, 2 * ALIGNMENT]
    assert end == 3 * ALIGNMENT


def test_a_segment_given_back_is_taken_again() -> None:
    pool = SegmentPool()
    first = taken(pool, 100)
    pool.give_back(first)
    again, descriptor = pool.take(200)
    assert again is first
    assert descriptor is None


def test_segments_grow_in_powers_of_two() -> None:
    sizes = [taken(SegmentPool(), size).size_bytes for size in (1, SMALLEST_BYTES, SMALLEST_BYTES + 1)]
    assert sizes == [SMALLEST_BYTES, SMALLEST_BYTES, 2 * SMALLEST_BYTES]


def test_idle_segments_are_bounded_in_number() -> None:
    pool = SegmentPool()
    segments = [taken(pool, 1) for _ in range(MOST_IDLE + 3)]
    assert sum(len(pool.give_back(segment)) for segment in segments) == 3


def test_idle_segments_are_bounded_in_bytes() -> None:
    pool = SegmentPool()
    small, large = taken(pool, 1), taken(pool, MOST_IDLE_BYTES)
    assert pool.give_back(small) == []
    assert pool.give_back(large) == [large]


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
        taken(SegmentPool(), 1).read((part,))


def test_the_first_restart_is_at_once_and_later_ones_ever_slower() -> None:
    delays = [delay_seconds(deaths) for deaths in range(1, 12)]
    assert delays[0] == 0
    assert delays == sorted(delays)
    assert delays[-1] == LONGEST_DELAY_SECONDS
