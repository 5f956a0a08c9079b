"""A connect in progress: a placeholder on the program's descriptor, swapped when it is done.

While the agent dials, a placeholder stands on the descriptor number. When the connection
is there it is put on the number with dup2, and whoever polls is woken. What the program
asks meanwhile is answered from its original socket. It must never change the number.
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

from ..addresses import Address, format_address, shown
from .later import door
from .options import carry, changed
from .placeholder import Placeholder, replace
from .table import Names, Table

log = logging.getLogger("gcbpatch")

_raw = _socket.socket


class Pending:
    """One connect under way to ``target``, asked for on ``conn``.

    ``peer`` is what getpeername() shall tell. Several sockets of this process may be
    one and the same (dup, fromfd): all of them get the connection.
    """

    def __init__(
        self, sock: Any, peer: Any, target: Address, conn: _socket.socket | None, table: Table
    ) -> None:
        self.done = False
        self.names: Names | None = None
        self._peer, self._target = peer, target
        self._local: Any = None
        self._family = sock.family
        self._error = 0
        self._table = table
        self._process = os.getpid()
        self._conn: _socket.socket | None = None
        self._watcher: Any = None
        self._original = _raw(fileno=os.dup(_raw.fileno(sock)))
        self._original.setblocking(False)  # socket.setdefaulttimeout() must not reach the hub
        self._placeholder = Placeholder()
        self._numbers: set[int] = set()
        self._members: list[weakref.ref[Any]] = []
        self.cover(_raw.fileno(sock))
        table.put(sock, self)
        if conn is not None:
            self.listen_to(conn)

    def listen_to(self, conn: _socket.socket) -> None:
        """The agent has been asked, and answers there."""
        self._conn = conn
        self._watcher = get_hub().loop.io(conn.fileno(), 1)
        self._watcher.start(self._answered)

    def cover(self, number: int) -> None:
        """Stand on a number of the socket until the connection is there."""
        self._placeholder.cover(number)
        self._numbers.add(number)

    def join(self, sock: Any) -> None:
        """A socket object is this one; it may have been made while the connect goes on."""
        self._numbers.add(_raw.fileno(sock))
        self._members.append(weakref.ref(sock, self._dropped))

    def leave(self, number: int) -> None:
        """A socket object is about to be closed; with the last one the agent need not go on."""
        self._numbers.discard(number)
        if not self._standing():
            self.withdraw()

    def _dropped(self, member: weakref.ref[Any]) -> None:
        """A socket object is gone without close(): its number may be another file's now."""
        self._members.remove(member)
        if not self.done and not self._standing():
            self.withdraw()

    def _standing(self) -> list[int]:
        return [number for number in self._numbers if self._placeholder.stands_on(number)]

    def _answered(self) -> None:
        """The agent's answer is there. Runs in the hub: it must not wait."""
        self._stop_watching()
        if os.getpid() != self._process:
            self._stand_apart()
            return
        fds: list[int] = []
        assert self._conn is not None
        try:
            answer, fds = door.receive_answer(self._conn)
        except (OSError, door.DoorError) as error:
            log.warning("connect to %s: %s", format_address(self._target), error)
            answer = None
        if isinstance(answer, door.Dialled):
            self._proceed(answer, fds)
        else:
            door.close_all(fds)
            self._connect_in_kernel(self._target)

    def _stand_apart(self) -> None:
        """In a forked child: the answer is for the parent that asked, and here none will come.

        An error would send greenlets that the child has inherited on their way.
        """
        numbers = self._standing()
        self._table.drop(self._placeholder.cookie)
        self._placeholder.close()
        self._placeholder = Placeholder()
        for number in numbers:
            self._placeholder.cover(number)

    def _proceed(self, answer: door.Dialled, fds: list[int]) -> None:
        where = format_address(self._target)
        if fds:
            log.info("connected to %s: %s, %.1f ms", where, answer.path, answer.milliseconds)
            self._take(_raw(fileno=fds[0]), answer.port)
        elif answer.kernel is not None:
            log.info("connecting to %s: %s %s", where, answer.path, answer.reason)
            self._connect_in_kernel(answer.kernel.address)
        else:
            log.info("connect to %s failed: %s", where, answer.reason)
            self._finish(answer.error or errno.ETIMEDOUT)

    def _connect_in_kernel(self, address: Address) -> None:
        error = self._original.connect_ex(self._as_asked(address))
        if error == errno.EINPROGRESS:
            self._watcher = get_hub().loop.io(self._original.fileno(), 2)
            self._watcher.start(self._kernel_connected)
        else:
            self._finish(error)

    def _kernel_connected(self) -> None:
        self._stop_watching()
        self._finish(self._original.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _take(self, sock: _socket.socket, port: int) -> None:
        """Use a connection of the agent's in the place of the program's own socket.

        ``port`` is the one that the listener sees: the connection's own need not be.
        """
        sock.setblocking(False)
        carry(changed(self._original), sock)
        self._local = self._as_asked((sock.getsockname()[0], port))
        self._original.close()
        self._original = sock
        self._finish(0)

    def _as_asked(self, address: Address) -> Any:
        """Return an address in the form of the program's own socket."""
        return shown(address, self._family == socket.AF_INET6)

    def _finish(self, error: int) -> None:
        self._hang_up()
        self._error, self.done = error, True
        self._table.drop(self._placeholder.cookie)
        if not error:
            self.names = Names(self._local, self._peer, fresh=True)
            self._table.put(self._original, self.names)
        for number in self._standing():
            replace(number, self._original.fileno())
        self._original.close()
        if os.getpid() == self._process:
            self._placeholder.wake()

    def result(self) -> int:
        """Return the errno of the finished connect, once, and let go of the placeholder."""
        self._placeholder.close()
        error, self._error = self._error, 0
        return error

    @property
    def failed(self) -> bool:
        """Whether it is done and an error waits to be told."""
        return self.done and self._error != 0

    def abort(self) -> None:
        """shutdown() ends a connect under way; the program finds the socket reset."""
        self._stop_watching()
        self._finish(errno.ECONNRESET)

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
        """Nobody has the socket any more: the agent need not go on."""
        if not self.done:
            self.done = True
            self._stop_watching()
            self._hang_up()
            self._original.close()
            self._table.drop(self._placeholder.cookie)
        self._placeholder.close()

    def release(self) -> None:
        """The table has lost sight of the placeholder; nothing more is held by it."""

    def _hang_up(self) -> None:
        if self._conn is not None:
            self._conn.close()

    def _stop_watching(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None
