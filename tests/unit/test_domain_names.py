"""References and names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import NameInvalid
from app.domain.names import Reference, check_name


@pytest.mark.parametrize("text", ["resnet20", "resnet20:3", "resnet20@int8", "resnet20:3@int8-2"])
def test_a_reference_is_written_as_it_was_read(text: str) -> None:
    assert str(Reference.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "a:", "a:0", "a:-1", "a:x", "a@", "a@@b", "a:1:2", "../a", "a/b", "A", "-a", "a.", "a..b", "a" * 65]
)
def test_a_malformed_reference_is_refused(text: str) -> None:
    with pytest.raises(NameInvalid):
        Reference.parse(text)


@given(st.text(max_size=70))
def test_a_checked_name_is_never_a_path(text: str) -> None:
    try:
        name = check_name(text)
    except NameInvalid:
        return
    assert "/" not in name
    assert ".." not in name
    assert name == name.strip().lower()
    assert 1 <= len(name) <= 64
