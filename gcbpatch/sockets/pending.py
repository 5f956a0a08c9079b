"""A connect in progress: a placeholder on the program's descriptor, swapped when it is done.

While the agent dials, the descriptor number stands for one end of a full socketpair: every
poller finds it not writable, as a connecting socket is. When the connection is there it is
put on the number with dup2, and draining the pair wakes whoever polls. What the program
asks meanwhile is answered from the original socket. It must never change the number.
"""

from __future__ import annotations

import _socket
import errno
import logging
import os
import socket
import weakref
from typing import Any

from gevent import get_hub

from ..addresses import Address, format_address
from ..agent import door
from .table import Names

log = logging.getLogger("gcbpatch")

_raw = _socket.socket

# Options that a program may set before connect and that must hold on the connection.
CARRIED = tuple(
    (level, option, size)
    for level, name, size in (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 4),
        (socket.SOL_SOCKET, "SO_OOBINLINE", 4),
        (socket.SOL_SOCKET, "SO_PRIORITY", 4),
        (socket.SOL_SOCKET, "SO_RCVLOWAT", 4),
        (socket.SOL_SOCKET, "SO_LINGER", 8),
        (socket.SOL_SOCKET, "SO_RCVTIMEO", 16),
        (socket.SOL_SOCKET, "SO_SNDTIMEO", 16),
        (socket.IPPROTO_TCP, "TCP_NODELAY", 4),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 4),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 4),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 4),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 4),
        (socket.IPPROTO_IP, "IP_TOS", 4),
    )
    if (option := getattr(socket, name, None)) is not None
)


def carry_options(source: _socket.socket, target: _socket.socket) -> None:
    """Set on ``target`` what was changed on ``source``."""
    for level, option, size in CARRIED:
        value: Any = source.getsockopt(level, option, size)
        if value != target.getsockopt(level, option, size):
            target.setsockopt(level, option, value)


def _full_pair() -> tuple[_socket.socket, _socket.socket]:
    """Return a socketpair whose first end is not writable."""
    placeholder, other = _socket.socketpair()
    placeholder.setblocking(False)
    other.setblocking(False)
    placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    for chunk in (b"x" * 4096, b"x"):
        try:
            while True:
                placeholder.send(chunk)
        except BlockingIOError:
            continue
    return placeholder, other


class Pending:
    """One connect under way to ``target``, asked for on ``conn``."""

    def __init__(self, sock: _socket.socket, target: Address, conn: _socket.socket) -> None:
        self.done = False
        self.names: Names | None = None
        self._target = target
        self._error = 0
        self._fd = _raw.fileno(sock)
        self._conn = conn
        self._original = _raw(fileno=os.dup(self._fd))
        self._original.setblocking(False)  # socket.setdefaulttimeout() must not reach the hub
        self._owner = weakref.ref(sock, self._dropped)
        self._inheritable = os.get_inheritable(self._fd)
        self._placeholder, self._other = _full_pair()
        os.dup2(self._placeholder.fileno(), self._fd, inheritable=self._inheritable)
        self._watcher = get_hub().loop.io(conn.fileno(), 1)
        self._watcher.start(self._answered)

    def _answered(self) -> None:
        """The agent's answer is there. Runs in the hub: it must not wait."""
        self._stop_watching()
        fds: list[int] = []
        try:
            answer, fds = door.receive_answer(self._conn)
        except (OSError, door.DoorError) as error:
            log.warning("connect to %s: %s", format_address(self._target), error)
            answer = None
        self._conn.close()
        if isinstance(answer, door.Dialled):
            self._proceed(answer, fds)
        else:
            door.close_all(fds)
            self._connect_in_kernel(self._target)

    def _proceed(self, answer: door.Dialled, fds: list[int]) -> None:
        where = format_address(self._target)
        if fds:
            log.info("connected to %s: %s, %.1f ms", where, answer.path, answer.milliseconds)
            self._finish_with(_raw(fileno=fds[0]), answer.port)
        elif answer.kernel is not None:
            log.info("connecting to %s: %s %s", where, answer.path, answer.reason)
            self._connect_in_kernel(answer.kernel.address)
        else:
            log.info("connect to %s failed: %s", where, answer.reason)
            self._finish(answer.error or errno.ETIMEDOUT)

    def _connect_in_kernel(self, address: Address) -> None:
        error = self._original.connect_ex(address)
        if error == errno.EINPROGRESS:
            self._watcher = get_hub().loop.io(self._original.fileno(), 2)
            self._watcher.start(self._kernel_connected)
        else:
            self._kernel_ended(error)

    def _kernel_connected(self) -> None:
        self._stop_watching()
        self._kernel_ended(self._original.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _kernel_ended(self, error: int) -> None:
        if not error:
            self.names = Names(None, self._target)
        self._finish(error)

    def _finish_with(self, sock: _socket.socket, port: int) -> None:
        """Put a connection of the agent's in the place of the program's own socket.

        ``port`` is the one that the listener sees: the connection's own need not be.
        """
        sock.setblocking(False)
        carry_options(self._original, sock)
        self._original.close()
        self._original = sock
        self.names = Names((sock.getsockname()[0], port), self._target)
        self._finish(0)

    def _is_ours(self) -> bool:
        """Whether the placeholder still stands on the number."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.fstat(self._placeholder.fileno()))
        except OSError:
            return False

    def _dropped(self, _: object) -> None:
        """The socket object is gone without close(): its number may be another file's now."""
        if not self.done and not self._is_ours():
            self.withdraw()

    def _finish(self, error: int) -> None:
        if not self._is_ours():
            self._original.close()
            self._placeholder.close()
            self._other.close()
            return
        os.dup2(self._original.fileno(), self._fd, inheritable=self._inheritable)
        self._original.close()
        self._error, self.done = error, True
        try:
            while self._other.recv(65536):
                pass
        except BlockingIOError:
            return  # drained: who polls the number finds it writable now

    @property
    def failed(self) -> bool:
        """Whether it is done and nothing came of it."""
        return self.done and self._error != 0

    def result(self) -> int:
        """Return the errno of the finished connect and let go of the placeholder.

        libev must look at the number afresh, since it does not know that another file is
        on it: a short-lived watcher for both directions makes it do so.
        """
        self._placeholder.close()
        self._other.close()
        watcher = get_hub().loop.io(self._fd, 3)
        watcher.start(lambda: None)
        # Stopped at once: while any watcher is active gevent puts a close() off until the
        # hub's next event, and until then the peer would wait for the end.
        watcher.stop()
        watcher.close()
        return self._error

    def name(self) -> Any:
        """getsockname() of a socket that is connecting."""
        return self._original.getsockname()

    def getsockopt(self, *args: Any) -> Any:
        """Options are the original socket's; there is no error yet."""
        if args[:2] == (socket.SOL_SOCKET, socket.SO_ERROR):
            return 0
        return self._original.getsockopt(*args)

    def setsockopt(self, *args: Any) -> None:
        """Set an option where it will be carried over from."""
        self._original.setsockopt(*args)

    def withdraw(self) -> None:
        """The program closed the socket: the agent need not go on."""
        if not self.done:
            self._stop_watching()
            self._conn.close()
            self._original.close()
        self._placeholder.close()
        self._other.close()

    def _stop_watching(self) -> None:
        self._watcher.stop()
        self._watcher.close()
