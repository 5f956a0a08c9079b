"""Pure: which broker first, when several answer.

Each stands as often in front as its free capacity is of all, so that clients who start at
once spread as room is left. This room must never draw lots itself: ``dice`` is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

_T = TypeVar("_T")


def ordered(candidates: Iterable[tuple[_T, int]], dice: Callable[[], float]) -> list[_T]:
    """Return the candidates, given with their free capacity, in the order to ask them.

    ``dice`` gives numbers from 0 up to 1. The first is drawn with probabilities as the
    capacities, and so is each next among those left (Efraimidis and Spirakis 2006: weighted
    sampling with a reservoir). Those without any capacity come last, in any order.
    """
    drawn = [(_key(free, dice()), one) for one, free in candidates]
    return [one for _, one in sorted(drawn, key=lambda pair: pair[0], reverse=True)]


def _key(free: int, drawn: float) -> tuple[bool, float]:
    return free > 0, drawn ** (1.0 / free) if free > 0 else drawn
