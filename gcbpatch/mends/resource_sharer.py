"""multiprocessing: the thread that shares descriptors keeps its signal mask from the others.

It blocks all signals, for itself as it believes; as a greenlet it would block them for the
whole program, which could then neither be interrupted nor hear of its children's end. It must
never change anything else of that module.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

from .journal import Journal


def mend(resource_sharer: ModuleType, journal: Journal) -> None:
    """Let ``multiprocessing.resource_sharer`` see a ``signal`` that knows no masks."""
    kept = {k: v for k, v in vars(resource_sharer.signal).items() if k != "pthread_sigmask"}
    journal.set(resource_sharer, "signal", SimpleNamespace(**kept))
