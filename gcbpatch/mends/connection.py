"""multiprocessing: a Connection waits for its descriptor without stopping the other greenlets.

Descriptors that come from gevent's sockets are non-blocking, so reading one with os.read fails
where a Connection expects to wait; pipes are blocking, so reading one stops every greenlet. It
must never change the mode of a descriptor: other processes share it.
"""

from __future__ import annotations

import os
import select
from types import ModuleType

from .journal import Journal


def mend(connection: ModuleType, journal: Journal) -> None:
    """Give ``multiprocessing.connection.Connection`` functions that wait in the hub."""
    # This is where a Connection keeps os.read and os.write: the last of their defaults.
    journal.set(connection.Connection._recv, "__defaults__", (read,))
    journal.set(connection.Connection._send, "__defaults__", (write,))


def read(fd: int, size: int) -> bytes:
    """Return up to ``size`` bytes as os.read does, waiting in the hub for the first."""
    from gevent.os import nb_read

    if os.get_blocking(fd):
        _await(fd, select.POLLIN)
    got: bytes = nb_read(fd, size)
    return got


def write(fd: int, data: bytes) -> int:
    """Write some bytes as os.write does, waiting in the hub until there is room for one."""
    from gevent.os import nb_write

    if os.get_blocking(fd):
        _await(fd, select.POLLOUT)
        # More than this might block: a pipe that is writable takes PIPE_BUF bytes, no promise
        # is made for one more.
        data = data[: select.PIPE_BUF]
    written: int = nb_write(fd, data)
    return written


def _await(fd: int, event: int) -> None:
    from gevent import monkey, socket

    poller = monkey.get_original("select", "poll")()
    poller.register(fd, event)
    if not poller.poll(0):
        (socket.wait_read if event == select.POLLIN else socket.wait_write)(fd)
