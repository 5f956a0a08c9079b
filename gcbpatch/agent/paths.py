"""Pure: which of a broker's paths to try, in which order, and how long to wait for a better one.

Happy Eyeballs (RFC 8305) over path kinds: all are tried at once, since the relay is the
net under all of them; a worse one that is ready first waits a bounded while for a better.
This room must never dial.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..wire.messages import Path, PathKind

LEAST_GRACE = 0.02
MOST_GRACE = 0.5
MOST_PUNCH_GRACE = 1.0
GRACE_FACTOR = 1.0

HEAD_START = 0.01
"""Seconds that a listener in the connector's own network waits to be dialled before it dials."""

RANK = {
    PathKind.LOCAL: 0,
    PathKind.DIRECT: 1,
    PathKind.REVERSE: 2,
    PathKind.PUNCHED: 3,
    PathKind.RELAYED: 4,
}

DIALLED_BY_CONNECTOR = frozenset({PathKind.LOCAL, PathKind.DIRECT, PathKind.RELAYED})
DIALLED_BY_LISTENER = frozenset({PathKind.REVERSE, PathKind.RELAYED})
OPENED_BY_CONNECTOR = frozenset({PathKind.LOCAL, PathKind.DIRECT})
"""Paths on which the connector's OPEN comes to the listener's agent port."""


def dialled(paths: Iterable[Path], by: frozenset[PathKind]) -> list[Path]:
    """Return the paths that one side dials, best first."""
    return sorted((p for p in paths if p.kind in by), key=lambda p: RANK[p.kind])


def expects_open(paths: Iterable[Path], kinds: frozenset[PathKind]) -> bool:
    """Return whether the other side may dial this side's agent port."""
    return any(p.kind in kinds for p in paths)


def grace(elapsed: float, punching: bool = False) -> float:
    """Return how many more seconds a ready path waits for a better one.

    ``elapsed`` is how long the ready one took: a better path of about the same length
    should get its chance, a far slower one not. A punch has a bound of its own in its
    tries, and is not begun before the relay is ready.
    """
    if punching:
        return MOST_PUNCH_GRACE
    return min(max(LEAST_GRACE, GRACE_FACTOR * elapsed), MOST_GRACE)


def nothing_better(kind: PathKind, pending: Iterable[PathKind]) -> bool:
    """Return whether no path still under way would be preferred to ``kind``."""
    return all(RANK[other] >= RANK[kind] for other in pending)
