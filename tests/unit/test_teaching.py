"""Which of a teacher's tensors is which of the model's."""

import pytest

from app.domain.errors import SignatureMismatch, ToolchainFailed
from app.domain.teaching import Pairing, check_batched, pair
from app.domain.tensors import DType, Signature, TensorSpec


def tensor(name: str, *sizes: int | None, dtype: DType = DType.FLOAT32) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=(None, *sizes))


def signature(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (tensor("y", 4),)) -> Signature:
    return Signature(inputs=inputs, outputs=outputs)


def paired(theirs: Signature, mine: Signature) -> Pairing:
    return pair(theirs, mine, teacher="large:2", model="small:1")


AB = signature(tensor("a", 8), tensor("b", 8), outputs=(tensor("y", 4), tensor("z", 4)))


def test_the_same_names_are_paired_in_any_order() -> None:
    theirs = signature(*reversed(AB.inputs), outputs=AB.outputs[::-1])
    assert paired(theirs, AB) == Pairing(inputs={"a": "a", "b": "b"}, outputs={"y": "y", "z": "z"})


def test_other_names_are_paired_by_place() -> None:
    theirs = signature(tensor("b", 8), tensor("c", 8), outputs=(tensor("u", 4), tensor("v", 4)))
    assert paired(theirs, AB) == Pairing(inputs={"b": "a", "c": "b"}, outputs={"u": "y", "v": "z"})


def test_a_size_that_is_not_fixed_fits_any() -> None:
    theirs, mine = signature(tensor("a", None)), signature(tensor("a", 8))
    assert paired(theirs, mine) == paired(mine, theirs)


@pytest.mark.parametrize(
    "theirs",
    [
        signature(tensor("x", 9)),
        signature(tensor("x", 8, 1)),
        signature(tensor("x", 8, dtype=DType.INT64)),
        signature(TensorSpec(name="x", dtype=DType.FLOAT32, shape=(8, None), batch_axis=1)),
        signature(tensor("x", 8), tensor("more", 8)),
        signature(tensor("x", 8), outputs=(tensor("y", 5),)),
        signature(tensor("x", 8), outputs=(tensor("y", 4), tensor("z", 4))),
    ],
)
def test_what_does_not_fit_is_refused(theirs: Signature) -> None:
    with pytest.raises(SignatureMismatch, match=r"Teacher large:2 .* but small:1 .*: name a teacher with the same"):
        paired(theirs, signature(tensor("x", 8)))


def test_tensors_of_one_name_have_to_fit_even_where_places_would() -> None:
    mine = signature(tensor("a", 8), tensor("b", 9))
    with pytest.raises(SignatureMismatch):
        paired(signature(tensor("b", 8), tensor("a", 9)), mine)


def test_a_model_that_takes_one_row_at_a_time_is_not_trained() -> None:
    one = TensorSpec(name="x", dtype=DType.FLOAT32, shape=(1, 8), batch_axis=None)
    with pytest.raises(ToolchainFailed, match=r"one row at a time.*export it with a symbolic batch axis"):
        check_batched(signature(one))
