"""A routing table that is a file: read again when it has changed, by whoever looks into it.

Whether it has changed is one stat() for each look, so that the next connect or listen after
a change already goes by the new table. It must never take a working table away: what cannot
be read, or is wrong, is logged once and leaves the old one.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from .routes import Routes, Way, parse

log = logging.getLogger("gcbpatch")

SETTLED = 50_000_000
"""Nanoseconds after which a file's time tells a further change: ticks of its clock are coarse."""

Signature = tuple[int, int, int, int]


class RouteFile:
    """The table in the file at ``path``; ``last`` is what it held when somebody else read it."""

    def __init__(self, path: str, last: Routes | None = None) -> None:
        """Read it, unless there is a ``last``. Raises ValueError if it is wrong or not there."""
        self.path = os.path.abspath(path)
        self._complaint = ""
        self._seen: Signature | None = None
        if last is None:
            self._seen = _signature(self.path)
            last = _read(self.path)
        self._table = last

    @property
    def current(self) -> Routes:
        """The table as it is now. It is another object whenever it may be another table."""
        seen = _signature(self.path)
        if seen != self._seen or seen is None:
            self._read_again(seen)
        return self._table

    @property
    def name(self) -> str:
        """What tells this table from another: not its content, which changes."""
        return self.path

    @property
    def denies(self) -> bool:
        """Whether any route denies, now or after a change."""
        return True

    def way(self, host: str) -> Way | None:
        """As Routes.way."""
        return self.current.way(host)

    def way_at(self, host: str) -> Way | None:
        """As Routes.way_at."""
        return self.current.way_at(host)

    def _read_again(self, seen: Signature | None) -> None:
        try:
            table = _read(self.path)
        except ValueError as error:
            self._complain(f"{error}; the routes that were read before stay")
        else:
            self._complaint = ""
            if table != self._table:
                self._table = table
        self._seen = seen

    def _complain(self, text: str) -> None:
        if text != self._complaint:
            self._complaint = text
            log.warning("%s", text)

    def __eq__(self, other: object) -> bool:
        """Whether both are the same file."""
        return isinstance(other, RouteFile) and other.path == self.path

    def __hash__(self) -> int:
        """As for the path."""
        return hash(self.path)

    def __repr__(self) -> str:
        """Without the table."""
        return f"RouteFile({self.path!r})"


def _signature(path: str) -> Signature | None:
    """Return what changes with the file; None while that cannot be told."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    if 0 <= time.time_ns() - found.st_mtime_ns < SETTLED:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_dev, found.st_size


def _read(path: str) -> Routes:
    """Return the table; raises ValueError with the path in its text."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: the routing table cannot be read: {error}") from error
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
