"""Destinations that are known to be the kernel's alone: one look into a dict for each connect.

What has been decided for an address holds until a time, until the routes are others, or until
something is learned that may change it; then it is to be decided again. This room must never
decide who connects, and never look anything up.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from time import monotonic
from typing import Any, Generic, TypeVar

from ..routefile import RouteFile
from ..routes import Routes

K = TypeVar("K", bound=Hashable)

MOST_KNOWN = 1024
ALWAYS = math.inf
NEVER = -math.inf
"""Times of time.monotonic()."""


class Known:
    """Addresses of the kernel's, as programs give them to connect(), and until when.

    ``routes`` may change meanwhile: then nothing is known any more.
    """

    def __init__(self, routes: Routes | RouteFile) -> None:
        # Only of a file it has to be asked whether it is another table now.
        self._file = routes if isinstance(routes, RouteFile) else None
        self._table = routes.current
        self._until: dict[Any, float] = {}

    def holds(self, address: Any) -> bool:
        """Return whether a connect to ``address`` is the kernel's; False if it is not known.

        This is all that most connects cost. What is no address at all is never known.
        """
        try:
            until = self._until.get(address)
        except TypeError:  # a list, say: the kernel's layer has something to say about that
            return False
        if until is None or monotonic() >= until:
            return False
        return self._file is None or self._is_same_table(self._file)

    def remember(self, address: Any, until: float) -> None:
        """It has been decided that the kernel connects there."""
        if self._file is not None and not self._is_same_table(self._file):
            return  # by which of the two it was decided cannot be told
        if type(address) is not tuple or not all(type(part) in (str, int) for part in address):
            return  # what only counts as a number may be another one, the next time
        if len(self._until) >= MOST_KNOWN:
            self._until.clear()
        self._until[address] = until

    def forget(self) -> None:
        """Something was learned: all is to be decided again."""
        self._until.clear()

    def _is_same_table(self, file: RouteFile) -> bool:
        table = file.current
        if table is self._table:
            return True
        self._table = table
        self._until.clear()
        return False


class Fading(Generic[K]):
    """Keys that mean something for ``seconds`` each, a number; of too many the oldest go."""

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds, self._most = seconds, most
        self._entries: dict[K, tuple[float, int]] = {}

    def add(self, key: K, number: int = 0) -> None:
        """From now on, for its time."""
        self._entries.pop(key, None)
        while len(self._entries) >= self._most:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = monotonic() + self._seconds, number

    def discard(self, key: K) -> None:
        """Not any more."""
        self._entries.pop(key, None)

    def until(self, key: K) -> float:
        """Return until when it means something: a time that is past if it does not."""
        return self._entries[key][0] if key in self._entries else NEVER

    def number(self, key: K) -> int:
        """Return what was said with it; 0 if it means nothing."""
        return self._entries[key][1] if key in self else 0

    def __contains__(self, key: K) -> bool:
        """Whether it means something now."""
        return monotonic() < self.until(key)
