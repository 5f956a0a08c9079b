"""Measures two things by turns, and how far two equal things differ meanwhile.

A machine is never as fast now as it was a minute ago. So plain, layer and plain again are
measured right after one another, many times, in an order that turns round each time; what counts
is the median of the ratios within such a turn. The ratio of the two equal ones is the noise. This
room must never know what is measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

Round = Callable[[], float]
"""Does something once and says what it cost."""


@dataclass(frozen=True)
class Trio:
    """The same work done three times over: without the layer, with it, and without it again."""

    plain: Round
    layer: Round
    again: Round


@dataclass(frozen=True)
class Spread:
    """A median and the interval that holds the true one in 95 of 100 cases."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Take the interval from the order of the values: no shape of theirs is assumed."""
        ordered = sorted(values)
        reach = 1.96 * math.sqrt(len(ordered)) / 2
        low = max(0, math.floor(len(ordered) / 2 - reach))
        return cls(statistics.median(ordered), ordered[low], ordered[len(ordered) - 1 - low])


@dataclass(frozen=True)
class Comparison:
    """What came of alternating. ``plain`` is in the unit of the rounds."""

    plain: float
    difference: Spread
    ratio: Spread
    noise_difference: Spread
    noise_ratio: Spread


def alternate(
    subjects: Callable[[], AbstractContextManager[Trio]], generations: int, turns: int
) -> Comparison:
    """Measure ``turns`` turns in each of several generations of ``subjects``.

    A process keeps for its life what chance gave it (addresses of its memory, for one), so the
    subjects are made afresh for each generation. One turn before each is thrown away.
    """
    measured: list[tuple[float, float, float]] = []
    for _ in range(generations):
        with subjects() as trio:
            _turn(trio, False)
            measured += [_turn(trio, number % 2 == 1) for number in range(turns)]
    return Comparison(
        statistics.median(plain for plain, _, _ in measured),
        Spread.of([layer - plain for plain, layer, _ in measured]),
        Spread.of([layer / plain for plain, layer, _ in measured]),
        Spread.of([again - plain for plain, _, again in measured]),
        Spread.of([again / plain for plain, _, again in measured]),
    )


def _turn(trio: Trio, backwards: bool) -> tuple[float, float, float]:
    """One measurement of each, as plain, layer, again; the middle of the row is the layer's."""
    if backwards:
        again, layer, plain = (do() for do in _row(trio, backwards))
    else:
        plain, layer, again = (do() for do in _row(trio, backwards))
    return plain, layer, again


def _row(trio: Trio, backwards: bool) -> Iterator[Round]:
    row = (trio.plain, trio.layer, trio.again)
    return reversed(row) if backwards else iter(row)
