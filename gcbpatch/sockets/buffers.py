"""Pure: the arguments and buffers of recv and send calls, as CPython would take them.

It must never raise for what CPython would refuse: that is left to CPython, which does it best.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from typing import Any

MOST_INT = 2**31


def numbers_of(args: tuple[Any, ...], most: int) -> list[int] | None:
    """Return three numbers for at most ``most`` arguments; None if CPython would not take them."""
    if len(args) == 1 and type(args[0]) is int and 0 <= args[0] <= sys.maxsize:
        return [args[0], 0, 0]
    if not 1 <= len(args) <= most:
        return None
    try:
        numbers = [operator.index(arg) for arg in args]
    except TypeError:
        return None
    if not 0 <= numbers[0] <= sys.maxsize:
        return None
    if not all(-MOST_INT <= number < MOST_INT for number in numbers[1:]):
        return None
    return numbers + [0] * (3 - len(numbers))


def writable_view(buffer: Any, size: int) -> memoryview | None:
    """Return the part of a buffer that is to be filled; None if CPython would not fill it."""
    views = writable_views(([buffer],))[0]
    if views is None or not 0 <= size <= len(views[0]):
        return None
    return views[0][:size] if size else views[0]


def writable_views(args: tuple[Any, ...]) -> tuple[list[memoryview] | None, tuple[Any, ...]]:
    """Return views of the first argument's buffers, None if CPython would not fill them.

    And the arguments with a list in the place of an iterator, which could not be read again.
    """
    try:
        args = (list(args[0]), *args[1:])
        views = [memoryview(buffer).cast("B") for buffer in args[0]]
    except (IndexError, TypeError, BufferError):
        return None, args
    return (None if any(view.readonly for view in views) else views), args


def readable_views(buffers: Any) -> tuple[list[memoryview] | None, Any]:
    """Return views of buffers that are to be sent, and a list in the place of an iterator."""
    try:
        buffers = list(buffers)
        return [memoryview(buffer) for buffer in buffers], buffers
    except (TypeError, BufferError):
        return None, buffers


def gather(vectors: Sequence[Any], size: int) -> bytes:
    """Return the first ``size`` octets of what lies in several buffers."""
    pieces = []
    for vector in vectors:
        pieces.append(memoryview(vector)[:size])
        size -= len(pieces[-1])
    return b"".join(pieces)


def scatter(data: bytes, views: list[memoryview]) -> None:
    """Lay data into several buffers, as much as goes in."""
    at = 0
    for view in views:
        piece = data[at : at + len(view)]
        view[: len(piece)] = piece
        at += len(piece)
