"""What a body weighs once it is unpacked, and how large an answer may be in JSON."""

import io

import numpy as np
import pytest

from app.api.arrays import listed, npz_size
from app.domain.errors import AnswerTooLarge


def test_a_packed_body_weighs_what_it_unpacks_to() -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, x=np.zeros(10**6, np.uint8))
    assert len(stream.getvalue()) < 10_000
    assert npz_size(stream.getvalue()) > 10**6


def test_what_is_no_archive_weighs_itself() -> None:
    assert npz_size(b"no archive") == 10


def test_an_answer_too_large_for_json_names_the_way_out() -> None:
    outputs = {"y": np.zeros((4, 4), np.float32)}
    assert listed(outputs, limit=64)["y"] is not None
    with pytest.raises(AnswerTooLarge, match=r"64 bytes.*application/x-npz"):
        listed(outputs, limit=63)
