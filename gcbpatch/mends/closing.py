"""os: a descriptor that is closed is closed soon, though nothing else happens in the program.

gevent closes it in the next turn of its loop, which comes only when something wakes the loop:
the other end of a pipe would wait for its end of file for ever. It must never close anything
itself.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from .journal import Journal


def mend(os_module: ModuleType, journal: Journal) -> None:
    """Let ``os.close`` see to it that gevent's loop turns; where gevent patched it."""
    import gevent.os
    from gevent._hub_local import get_hub_if_exists

    close_later = gevent.os.close
    if os_module.close is not close_later:
        return

    def close(fd: int) -> None:
        """Close a file descriptor."""
        close_later(fd)
        hub = get_hub_if_exists()
        if hub is not None:
            # A mere callback would run before the loop waits, and not keep it from waiting.
            timer = hub.loop.timer(0)
            timer.start(_end, timer)

    journal.set(os_module, "close", close)


def _end(timer: Any) -> None:
    timer.stop()
    timer.close()
