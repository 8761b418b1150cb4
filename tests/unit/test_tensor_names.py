"""Names of tensors end up in answers, reports and terminals."""

import pytest

from app.domain.errors import SignatureMismatch
from app.domain.tensors import DType, TensorSpec


@pytest.mark.parametrize("name", ["\x1b[31mred", "two\nlines", "\u202egnp", "n" * 257])
def test_a_name_that_cannot_be_shown_is_refused(name: str) -> None:
    with pytest.raises(SignatureMismatch, match="rename it") as raised:
        TensorSpec(name=name, dtype=DType.FLOAT32, shape=(None,))
    assert raised.value.message.isprintable()


@pytest.mark.parametrize("name", ["/layers.0/MatMul_output_0", "Größe", "n" * 256])
def test_what_exporters_write_is_taken(name: str) -> None:
    assert TensorSpec(name=name, dtype=DType.FLOAT32, shape=(None,)).name == name
