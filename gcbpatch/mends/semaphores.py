"""multiprocessing: waiting for a semaphore does not stop the greenlets that could release it.

Locks, conditions, events, barriers and queues of multiprocessing all wait in sem_wait, which
stops the whole process. A greenlet that is alone still waits there; others look again and
again, because a POSIX semaphore cannot be polled. It must never take a semaphore that it
does not hand to the caller.
"""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

from .journal import Journal

FIRST_PAUSE = 0.0005
LONGEST_PAUSE = 0.01
"""Seconds between two looks at a semaphore; the pause doubles from the first to the longest."""


def mend(synchronize: ModuleType, journal: Journal) -> None:
    """Let ``multiprocessing.synchronize.SemLock`` and what is built on it wait in the hub."""

    def make_methods(lock: Any) -> None:
        recursive = lock._semlock.kind == synchronize.RECURSIVE_MUTEX
        lock.acquire = Acquire(lock._semlock, recursive)
        lock.release = lock._semlock.release

    journal.set(synchronize.SemLock, "_make_methods", make_methods)
    journal.set(synchronize.SemLock, "__enter__", lambda lock: lock.acquire())


class Acquire:
    """The ``acquire`` of one semaphore; a recursive one has an owner among the greenlets."""

    def __init__(self, semaphore: Any, recursive: bool) -> None:
        self._semaphore = semaphore
        self._recursive = recursive
        self._owner = 0

    def __call__(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take it; False when it was not to be had (within ``timeout`` seconds)."""
        if self._try():
            return True
        if not block or (timeout is not None and timeout <= 0):
            return False
        return self._wait(None if timeout is None else time.monotonic() + timeout)

    def _try(self) -> bool:
        from gevent.thread import get_ident

        semaphore, me = self._semaphore, get_ident()
        # The semaphore knows threads of the system only, and greenlets share one.
        if self._recursive and semaphore._is_mine() and self._owner != me:
            return False
        if not semaphore.acquire(False):
            return False
        self._owner = me
        return True

    def _wait(self, deadline: float | None) -> bool:
        from gevent import sleep

        pause = 0.0  # once around the loop first: whoever holds it may be about to release it
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            if pause and self._alone():
                return bool(self._take_blocking(left))
            sleep(pause if left is None else min(pause, left))
            if self._try():
                return True
            pause = min(pause * 2, LONGEST_PAUSE) or FIRST_PAUSE

    def _alone(self) -> bool:
        """Whether nothing can happen in this thread but what we wait for.

        To be asked right after the loop has switched to us, when it has nobody else at hand.
        """
        from gevent import get_hub

        loop = get_hub().loop
        # A recursive one of another greenlet would be given to us without any waiting.
        return not (loop.activecnt or loop.pendingcnt or self._semaphore._is_mine())

    def _take_blocking(self, left: float | None) -> bool:
        from gevent.thread import get_ident

        got: bool = self._semaphore.acquire(True, left)
        if got:
            self._owner = get_ident()
        return got
