"""Every message comes over the wire as it was sent, and only where it may come."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import wire
from app.domain.preprocessing import ImagePreprocessing
from app.domain.runners import Acquire, Answer, Cancel, Connect, Done, Drain, Infer, Load, Part, Prepare, Ready, Refusal
from app.domain.serving import CurvePoint, Knobs, Servable, Tuning
from app.domain.tensors import DType, Signature, TensorSpec
from app.domain.variants import Artifact, Execution
from app.wire import LARGEST_BYTES, MOST_BYTES, MessageInvalid, encode, unwrap, wrap

POINT = CurvePoint(streams=2, threads=4, busy=2, batch=8, p50_seconds=0.01, rows_per_second=800.0)
TUNING = Tuning(curve=(POINT,), latency=POINT, throughput=POINT)
SERVABLE = Servable(
    model="résumé",
    version=3,
    name="int8",
    artifact=Artifact(file="a.onnx", size_bytes=2**40, sha256="0" * 64),
    execution=Execution(),
    signature=Signature(
        inputs=(TensorSpec(name="x", dtype=DType.BFLOAT16, shape=(None, 3, None), batch_axis=2),),
        outputs=(TensorSpec(name="y", dtype=DType.INT64, shape=(7,), batch_axis=None),),
    ),
    preprocessing=ImagePreprocessing(mean=(0.5, 0.25, 0.125)),
    max_batch_size=None,
)
LOAD = Load(
    variant=SERVABLE,
    instance=1,
    path="/somewhere/a.onnx",
    knobs=Knobs(instances=2, streams=3, max_queue_delay_ms=1.5),
    threads=4,
    max_batch_size=32,
    tuning=TUNING,
    max_answer_bytes=2**30,
)

names = st.text(max_size=20)
numbers = st.integers(0, 2**62)
parts = st.builds(
    Part,
    name=names,
    dtype=st.sampled_from(DType),
    shape=st.lists(numbers, max_size=4).map(tuple),
    offset=numbers,
)
infers = st.builds(
    Infer,
    id=numbers,
    segment=numbers,
    form=st.sampled_from(["tensors", "pixels", "images"]),
    rows=numbers,
    inputs=st.lists(parts, max_size=5).map(tuple),
    outputs_at=numbers,
    deadline_ns=numbers,
    priority=st.integers(-9, 9),
    alone=st.booleans(),
)
answers = st.builds(
    Answer,
    id=numbers,
    outputs=st.lists(parts, max_size=5).map(tuple),
    overflow_bytes=numbers,
    queue_seconds=st.floats(0, 1e9),
    compute_seconds=st.floats(0, 1e9),
    rows=numbers,
)


@given(st.one_of(infers, st.builds(Cancel, id=numbers)))
@settings(deadline=None)
def test_what_a_gateway_asks_arrives_as_it_was_sent(message: Infer | Cancel) -> None:
    assert wire.to_runner(encode(message)) == message


@given(st.one_of(answers, st.builds(Refusal, id=numbers, code=names, message=names)))
@settings(deadline=None)
def test_what_a_runner_answers_arrives_as_it_was_sent(message: Answer | Refusal) -> None:
    assert wire.from_runner(encode(message)) == message


@pytest.mark.parametrize("message", [LOAD, Connect(), Drain()], ids=lambda message: type(message).__name__)
def test_what_a_host_says_arrives_as_it_was_sent(message: Load | Connect | Drain) -> None:
    assert wire.to_runner(encode(message)) == message


def test_a_runner_tells_what_it_measured() -> None:
    ready = Ready(engine_version="1", float_precision="bfloat16", load_seconds=0.5, tuning=TUNING)
    assert wire.from_runner(encode(ready)) == ready


@pytest.mark.parametrize(
    "message",
    [Acquire(id=1, variant=SERVABLE, have=(1, 2)), Prepare(id=2, variant=SERVABLE, knobs=Knobs())],
    ids=lambda message: type(message).__name__,
)
def test_what_a_gateway_orders_arrives_as_it_was_sent(message: Acquire | Prepare) -> None:
    assert wire.to_host(encode(message)) == message


def test_a_message_of_another_direction_is_refused() -> None:
    with pytest.raises(MessageInvalid):
        wire.to_runner(encode(Done(id=1)))


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    for decode in (wire.to_runner, wire.from_runner, wire.to_host, wire.from_host):
        try:
            message = decode(data)
        except MessageInvalid:
            continue
        assert decode(encode(message)) == message


def test_values_that_a_record_forbids_are_no_message() -> None:
    prepared = encode(Prepare(id=2, variant=SERVABLE, knobs=Knobs(instances=2)))
    assert prepared.count(b"instances\x02") == 1
    with pytest.raises(MessageInvalid, match="instances"):
        wire.to_host(prepared.replace(b"instances\x02", b"instances\x00"))


def test_a_message_larger_than_a_socket_takes_travels_in_memory() -> None:
    data = bytes(range(256)) * (LARGEST_BYTES // 128)
    sent, descriptors = wrap(data)
    (descriptor,) = descriptors
    assert len(sent) == 1
    assert unwrap(sent, descriptors) == data
    assert descriptors == []
    assert not Path(f"/proc/self/fd/{descriptor}").exists()


def test_a_message_that_fits_travels_as_it_is() -> None:
    data = bytes(LARGEST_BYTES)
    assert wrap(data) == (data, [])
    assert unwrap(data, [7]) == data  # a descriptor of its own is left alone


def test_memory_that_did_not_come_or_is_too_large_is_no_message() -> None:
    sent, descriptors = wrap(bytes(LARGEST_BYTES + 1))
    os.ftruncate(descriptors[0], MOST_BYTES + 1)
    with pytest.raises(MessageInvalid, match="over the limit"):
        unwrap(sent, descriptors)
    with pytest.raises(MessageInvalid, match="did not come"):
        unwrap(sent, [])
