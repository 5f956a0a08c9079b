"""select.poll: errors, and descriptors that are not open any more, as the kernel has them.

gevent hands a closed descriptor to libev, which waits for it for ever or ends the whole process;
and what was closed just now by os.close() is open until its loop has turned. This room must never
tell of what is ready by itself: who finds something at once never lets others run.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from .journal import Journal

INT_MAX = 2**31 - 1
"""The longest timeout of poll(2), in milliseconds."""


def mend(select_module: ModuleType, journal: Journal) -> None:
    """Let ``gevent.select.poll`` ask the kernel's own before it does anything."""
    gevents: Any = select_module.poll
    register, modify, unregister = gevents.register, gevents.modify, gevents.unregister

    def checked_register(self: Any, fd: Any, *mask: Any) -> None:
        """Register a descriptor, or change what is waited for."""
        _kernels(self).register(fd, *mask)
        register(self, fd, *mask)

    def checked_modify(self: Any, fd: Any, mask: Any) -> None:
        """Change what is waited for."""
        _kernels(self).modify(fd, mask)
        modify(self, fd, mask)

    def checked_unregister(self: Any, fd: Any) -> None:
        """Forget a descriptor."""
        _kernels(self).unregister(fd)
        unregister(self, fd)

    journal.set(gevents, "register", checked_register)
    journal.set(gevents, "modify", checked_modify)
    journal.set(gevents, "unregister", checked_unregister)
    journal.set(gevents, "poll", _poll(gevents.poll, select_module.POLLNVAL))


def _poll(wait: Any, invalid: int) -> Any:
    import gevent.os
    from gevent import get_hub

    closing: dict[int, Any] = getattr(gevent.os, "_closing_fd_to_event", {})

    def poll(self: Any, timeout: Any = None) -> list[tuple[int, int]]:
        """Return descriptors with their events; ``timeout`` is in milliseconds."""
        if timeout is not None and timeout > INT_MAX:
            raise OverflowError("timeout is too large")
        if getattr(self, "polling", False):
            raise RuntimeError("concurrent poll() invocation")
        self.polling = True
        try:
            if not closing.keys().isdisjoint(self.fds):
                _let_close(get_hub())
            found: list[tuple[int, int]] = _kernels(self).poll(0)
            if not any(events & invalid for _, events in found):
                found = wait(self, timeout)
            return found
        finally:
            self.polling = False

    return poll


def _kernels(poll: Any) -> Any:
    """The kernel's poll object behind one of gevent's, with the same descriptors."""
    if not hasattr(poll, "kernels"):
        from gevent.monkey import get_original

        poll.kernels = get_original("select", "poll")()
    return poll.kernels


def _let_close(hub: Any) -> None:
    """Wait until the loop has turned once."""
    with hub.loop.idle() as turn:
        hub.wait(turn)
