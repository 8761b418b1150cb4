"""JSON with many numbers: they become NumPy arrays, never Python lists. What is irregular is left to others."""

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import simdjson

Numbers = npt.NDArray[Any]

_WORTH_BYTES = 16 * 1024  # below, Python lists cost less than looking
_MOST_DEPTH = 8  # of objects and lists around the numbers; the numbers' own axes are not counted
_MOST_AXES = 64  # NumPy's own limit
_MOST_MEMBERS = 64  # looking a member up takes time in proportion to their number
_MOST_ARRAYS_PER_BYTE = 1 / 64  # with shorter rows each array costs more than its numbers
_KEPT_PARSER_BYTES = 4 * 2**20  # a parser keeps memory for the longest text that it has read
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # simdjson skips it; it is not JSON

_REFUSALS = (ValueError, RuntimeError, TypeError, LookupError, MemoryError)  # all that simdjson says no with

_idle: list[simdjson.Parser] = []


class Irregular(Exception):
    """The text is not JSON, or not of the kind that is read here: another parser says what it is."""


def read(text: bytes | memoryview) -> object:
    """Parse JSON. A list that holds only numbers, or regular lists of them, becomes an array.

    Whole numbers become int64, all others float64, correctly rounded. Short lists of numbers, such as shapes, stay
    lists.

    Raises:
        Irregular: it is better read by a parser that makes Python objects: it is short or no JSON, has a member twice,
            or has lists that are ragged or mix numbers with something else.
    """
    brackets = _brackets(text)
    parser = _borrow()
    try:
        value = _Reader(brackets).read(parser.parse(text))
    except _REFUSALS as error:
        raise Irregular from error
    if not _idle and len(text) <= _KEPT_PARSER_BYTES:
        _idle.append(parser)
    return value


def _borrow() -> simdjson.Parser:
    """Return an idle parser: a new one has to ask the kernel for its memory, which takes longer than parsing."""
    try:
        return _idle.pop()
    except IndexError:  # there is none, or another thread was faster
        return simdjson.Parser()


def _brackets(text: bytes | memoryview) -> int:
    if len(text) < _WORTH_BYTES or bytes(text[:3]) == _BYTE_ORDER_MARK:
        raise Irregular
    count = int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord("[")))
    if count > len(text) * _MOST_ARRAYS_PER_BYTE:
        raise Irregular
    return count


class _Reader:
    """Walks a document once.

    simdjson flattens nested lists without a word, so a list could hide in a row of numbers. None can if the text has no
    more opening brackets than lists were visited.
    """

    def __init__(self, brackets: int) -> None:
        self._unvisited = brackets

    def read(self, root: object) -> object:
        value = self._value(root, depth=0)
        if self._unvisited != 0:
            raise Irregular
        return value

    def _value(self, value: object, *, depth: int) -> object:
        if depth > _MOST_DEPTH:
            raise Irregular
        if isinstance(value, simdjson.Object):
            return self._object(value, depth=depth)
        if isinstance(value, simdjson.Array):
            return self._list(value, depth=depth)
        return value

    def _object(self, value: simdjson.Object, *, depth: int) -> dict[str, object]:
        if len(value) > _MOST_MEMBERS:
            raise Irregular
        members = {name: self._value(value[name], depth=depth + 1) for name in value}
        if len(members) != len(value):
            raise Irregular
        return members

    def _list(self, value: simdjson.Array, *, depth: int) -> object:
        first = _innermost(value)
        if type(first) is int or type(first) is float:
            return self._numbers(value, whole=type(first) is int)
        if len(value) > 0 and not isinstance(value[0], simdjson.Object):
            raise Irregular
        self._unvisited -= 1
        return [self._value(item, depth=depth + 1) for item in value]

    def _numbers(self, value: simdjson.Array, *, whole: bool) -> object:
        shape = self._shape(value, axes=1)
        if len(shape) == 1 and shape[0] <= _MOST_AXES:
            return value.as_list()
        flat = _whole(value) if whole else None
        if flat is None:
            flat = np.frombuffer(value.as_buffer(of_type="d"), np.float64)
        if flat.size != prod(shape):
            raise Irregular
        return flat.reshape(shape)

    def _shape(self, value: simdjson.Array, *, axes: int) -> tuple[int, ...]:
        """Visit a list and the lists in it, which must be alike."""
        self._unvisited -= 1
        if axes > _MOST_AXES:
            raise Irregular
        if len(value) == 0 or not isinstance(value[0], simdjson.Array):
            return (len(value),)
        shapes = {self._shape(row, axes=axes + 1) if isinstance(row, simdjson.Array) else () for row in value}
        if len(shapes) != 1:
            raise Irregular
        return (len(value), *shapes.pop())


def _innermost(value: object) -> object:
    """Return the first thing in a list of lists that is no list; None if there is none."""
    for _ in range(_MOST_AXES + 1):
        if not isinstance(value, simdjson.Array):
            return value
        if len(value) == 0:
            return None
        value = value[0]
    raise Irregular


def _whole(value: simdjson.Array) -> Numbers | None:
    """Return whole numbers, or None if some are not: an array with one fraction is one of floats."""
    try:
        return np.frombuffer(value.as_buffer(of_type="i"), np.int64)
    except TypeError:
        return None
