"""multiprocessing: the thread that shares descriptors stays in its process, as a thread does.

It blocks all signals, for itself as it believes; as a greenlet it would block them for the
whole program, which could then neither be interrupted nor hear of its children's end. And a
forked child inherits it, where the module takes its listener away: it would complain of that
without an end. It must never change anything else of that module.
"""

from __future__ import annotations

import os
from types import ModuleType, SimpleNamespace
from typing import Any

from .journal import Journal


def mend(resource_sharer: ModuleType, journal: Journal) -> None:
    """Let ``multiprocessing.resource_sharer`` see a ``signal`` that knows no masks.

    And let its thread stand still where a child has inherited it.
    """
    kept = {k: v for k, v in vars(resource_sharer.signal).items() if k != "pthread_sigmask"}
    journal.set(resource_sharer, "signal", SimpleNamespace(**kept))
    sharer: Any = resource_sharer._ResourceSharer
    serve = sharer._serve
    journal.set(sharer, "_serve", lambda self: serve(_AtHome(self)))


class _AtHome:
    """A sharer as its own thread sees it, in its own process."""

    def __init__(self, sharer: Any) -> None:
        self._sharer = sharer
        self._process = os.getpid()
        self._cache = sharer._cache

    @property
    def _listener(self) -> _AtHome:
        return self

    def accept(self) -> Any:
        """Accept as long as this is the process that began to; a child's copy stops here."""
        try:
            if os.getpid() == self._process:
                return self._sharer._listener.accept()
        except OSError:
            if os.getpid() == self._process:
                raise  # else it is that the child has closed its copy of the listener
        return _stand_still()


def _stand_still() -> None:
    """Nobody will ever switch back: a real thread would not be there at all."""
    from gevent import get_hub

    while True:
        get_hub().switch()
