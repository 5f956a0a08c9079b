"""asyncio: a thread's running loop is its own, though all threads are greenlets of one thread.

asyncio keeps the running loop, and Python the hooks of asynchronous generators, per thread of
the operating system. Whenever a greenlet waits (in its loop's selector, or in blocking code
that a coroutine calls) both are hidden from the others. It must never cost anything while no
loop runs beyond asking whether one does.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .journal import Journal


def mend(events: ModuleType, journal: Journal) -> None:
    """Hide ``asyncio.events``' running loop while its greenlet is switched out."""
    from gevent.hub import Hub

    running, set_running = events._get_running_loop, events._set_running_loop
    switch_to_hub = Hub.switch

    def switch(hub: Any) -> Any:
        loop = running()
        if loop is None:
            return switch_to_hub(hub)
        hooks = sys.get_asyncgen_hooks()
        set_running(None)
        sys.set_asyncgen_hooks(None, None)
        try:
            return switch_to_hub(hub)
        finally:
            set_running(loop)
            sys.set_asyncgen_hooks(*hooks)

    journal.set(Hub, "switch", switch)
