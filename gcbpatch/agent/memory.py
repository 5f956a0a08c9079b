"""Pure: what came of punching between this network and a listener's, for a while.

A path that failed twice in a row is not tried again, and so not waited for, until it is
forgotten. Bounded. It must never keep a path out for good: networks change.
"""

from __future__ import annotations

from cachetools import LRUCache

FORGET_SECONDS = 300.0
HOPELESS = 2
"""Failures in a row."""
MOST = 4096

Between = tuple[str, tuple[str, int]]
"""Under which host this side is seen, and the proxy address that it connects to."""


class Memory:
    """Failures in a row, and when the last of them was."""

    def __init__(self) -> None:
        self._failures: LRUCache[Between, tuple[int, float]] = LRUCache(MOST)

    def hopeless(self, between: Between, now: float) -> bool:
        """Return whether it is not worth trying again yet."""
        failures, last = self._failures.get(between, (0, now))
        return failures >= HOPELESS and now - last < FORGET_SECONDS

    def worked(self, between: Between) -> None:
        """It has come about: all failures are forgiven."""
        self._failures.pop(between, None)

    def failed(self, between: Between, now: float) -> None:
        """It was tried and did not come about, though another path did."""
        failures, last = self._failures.get(between, (0, now))
        if now - last >= FORGET_SECONDS:
            failures = 0
        self._failures[between] = failures + 1, now
