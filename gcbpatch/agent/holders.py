"""Which processes have a socket open, by /proc: those of our user that let us look.

It must never be asked for every connection: it reads the descriptors of many processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator


class Holders:
    """Tells patched processes, which hold a listener's queue, from others that share it."""

    def __init__(self) -> None:
        self._last: int | None = None
        """Who was found last: likely to be asked for again."""

    def has_both(self, inode: int, others: frozenset[int]) -> bool:
        """Return whether a process that holds ``inode`` holds one of ``others``, too."""
        for pid in self._candidates():
            held = _sockets_of(pid)
            if inode in held:
                self._last = pid
                return not others.isdisjoint(held)
        return False

    def _candidates(self) -> Iterator[int]:
        if self._last is not None:
            yield self._last
        us, uid = os.getpid(), os.getuid()
        with os.scandir("/proc") as entries:
            for entry in entries:
                if entry.name.isdigit() and int(entry.name) not in (us, self._last):
                    try:
                        mine = entry.stat().st_uid == uid
                    except OSError:
                        continue  # it has ended
                    if mine:
                        yield int(entry.name)


def _sockets_of(pid: int) -> set[int]:
    """Return the inodes of a process's sockets; none if it has ended or may not be seen."""
    found: set[int] = set()
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return found
    for name in names:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue  # closed meanwhile
        if target.startswith("socket:["):
            found.add(int(target[8:-1]))
    return found
