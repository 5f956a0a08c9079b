"""When a broker that has been asked to end may do so without cutting anybody off.

Pure: ``now`` and the counts come in. It must never let a broker end while it relays.
"""

from __future__ import annotations


class Drain:
    """``lifetime`` in seconds is how long listeners are given to leave: each speaks by then."""

    def __init__(self, lifetime: float) -> None:
        self._lifetime = lifetime
        self._until: float | None = None

    def begin(self, now: float) -> bool:
        """Begin; False if it has begun before."""
        if self._until is not None:
            return False
        self._until = now + self._lifetime
        return True

    def is_over(self, now: float, listeners: int, busy: int) -> bool:
        """Whether nothing is waited for; ``busy`` are relays, and who waits to become one.

        Listeners that have not left by their time have nowhere to go.
        """
        if self._until is None or busy:
            return False
        return listeners == 0 or now >= self._until
