"""What stands on a descriptor number while there is no connection to put there yet.

One end of a full socketpair: every poller finds it neither readable nor writable, as a
connecting socket is. This room must never change a number, nor touch one that has become
another file's.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import socket
from typing import Any

from gevent import get_hub
from gevent.monkey import get_original

from .table import cookie_of, inode_of


def _full_pair() -> tuple[_socket.socket, _socket.socket]:
    """Return a socketpair whose first end is not writable."""
    end, other = _socket.socketpair()
    end.setblocking(False)
    other.setblocking(False)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    for chunk in (b"x" * 4096, b"x"):
        with contextlib.suppress(BlockingIOError):
            while True:
                end.send(chunk)
    return end, other


class Placeholder:
    """Stands on one or more numbers, until it gives way to a socket."""

    def __init__(self) -> None:
        self._end, self._other = _full_pair()
        self.inode = inode_of(self._end.fileno())
        self.cookie = cookie_of(self._end)

    def stands_on(self, number: int) -> bool:
        """Return whether the number is still the placeholder's in this process."""
        try:
            return inode_of(number) == self.inode
        except OSError:
            return False

    def cover(self, number: int) -> None:
        """Stand on a number from now on."""
        replace(number, self._end.fileno())

    def wake(self) -> None:
        """Wake whoever polls this in the kernel by himself: readable and writable it is now.

        poll() and select() then look at the number afresh, an epoll at this.
        """
        with contextlib.suppress(BlockingIOError):
            while self._other.recv(65536):
                pass
        self._other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Stand nowhere."""
        self._end.close()
        self._other.close()


def replace(number: int, fd: int) -> None:
    """Put the file of ``fd`` on a number, and have this thread's hub watch that one.

    A hub believes that a number is the same file as long as anybody watches it. So its
    epoll forgets the old file, and a short-lived watcher makes it look at the new one.
    """
    hub = get_hub()
    _unwatch(hub.loop, number)
    os.dup2(fd, number, inheritable=os.get_inheritable(number))
    watcher = hub.loop.io(number, 3)
    watcher.start(lambda: None)
    # At once, not in a callback: the number may be closed by then, and libev aborts for that.
    watcher.stop()
    watcher.close()


def _unwatch(loop: Any, number: int) -> None:
    if loop.backend != "epoll":
        return
    epoll = get_original("select", "epoll").fromfd(os.dup(loop.fileno()))
    try:
        epoll.unregister(number)
    except OSError:
        return  # nobody watches it, or only since the hub last slept
    finally:
        epoll.close()

