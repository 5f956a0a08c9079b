"""Pure: what came of the paths between this network and another, for a while.

A path that failed twice in a row, while a worse one came about, is not tried again, and so not
waited for, until that is forgotten. Where another agent was reached is where it will be dialled
before the broker has said that it is there. Bounded. It must never keep a path out for good, since
networks change, and never the relay.
"""

from __future__ import annotations

from collections.abc import Iterable

from cachetools import LRUCache

from ..addresses import Address
from ..wire.messages import Path, PathKind
from .paths import RANK

FORGET_SECONDS = 300.0
HOPELESS = 2
"""Failures in a row."""
MOST = 4096

Between = tuple[str, bytes | Address]
"""Under which host this side is seen, and the other's network (its proxy address, if nobody has
named its network)."""

_Way = tuple[Between, PathKind, tuple[Address, ...]]
"""A path with no addresses is one between two networks, others are one to these."""


class Memory:
    """Failures in a row, places, and when the last of each was."""

    def __init__(self) -> None:
        self._failures: LRUCache[_Way, tuple[int, float]] = LRUCache(MOST)
        self._places: LRUCache[Address, tuple[Address, float]] = LRUCache(MOST)

    def place(self, target: Address, now: float) -> Address | None:
        """Return where the agent of who has the proxy address ``target`` was reached lately."""
        place, when = self._places.get(target, (None, now))
        return place if now - when < FORGET_SECONDS else None

    def reached(self, target: Address, place: Address | None, now: float) -> None:
        """It was reached there; at no place of its own with None."""
        self._places.pop(target, None)
        if place is not None:
            self._places[target] = place, now

    def hopeless(self, between: Between, paths: Iterable[Path], now: float) -> list[Path]:
        """Return the paths that are not worth trying again yet."""
        return [path for path in paths if self._is_hopeless(_way(between, path), now)]

    def learn(self, between: Between, paths: Iterable[Path], taken: PathKind, now: float) -> None:
        """Of the paths that were tried ``taken`` has come about, and so none that is better."""
        for path in paths:
            if path.kind is taken:
                self._failures.pop(_way(between, path), None)
            elif RANK[path.kind] < RANK[taken]:
                self._fail(_way(between, path), now)

    def _is_hopeless(self, way: _Way, now: float) -> bool:
        failures, last = self._failures.get(way, (0, now))
        return failures >= HOPELESS and now - last < FORGET_SECONDS

    def _fail(self, way: _Way, now: float) -> None:
        failures, last = self._failures.get(way, (0, now))
        if now - last >= FORGET_SECONDS:
            failures = 0
        self._failures[way] = failures + 1, now


def _way(between: Between, path: Path) -> _Way:
    return between, path.kind, tuple(endpoint.address for endpoint in path.addresses)
