"""A connect to a host that may be a broker: the kernel's own, and a question beside it.

The handshake begins at once. When it has ended before there is an answer, an eighth of the
round trip is waited for one, once for each host. If the host is a broker, the kernel's
connection is given up before the program has it, and the agent connects; the broker waits for
that before it calls anybody. It must never give up a connection that the program has.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import socket
import time
from typing import Any

import gevent
from gevent import get_hub

from ..addresses import Address
from ..errors import Status
from .connector import Connector
from .later import AgentGone
from .options import carry, changed
from .pending import Pending
from .table import Table

_raw = _socket.socket
LEAST_WAIT = 0.002
SHARE_OF_ROUND_TRIP = 8


class Asking(Pending):
    """One connect under way to ``target`` while it is asked whether that is a proxy."""

    def __init__(
        self, sock: Any, peer: Any, target: Address, connector: Connector, table: Table
    ) -> None:
        # Its own port, while the number is its own.
        self._port: int = _raw.getsockname(sock)[1]
        super().__init__(sock, peer, target, None, table)
        self._connector = connector
        self._is_asking = True
        self._is_connected = False
        self._wait: Any = None
        self._began = 0.0

    def begin(self) -> None:
        """Connect; the answer may come from now on."""
        self._began = time.monotonic()
        self._connect_in_kernel(self._target)

    def told(self, said: Status | None, port: int) -> None:
        """The answer is there. Runs in the hub: it must not wait."""
        if self.done or not self._is_asking or os.getpid() != self._process:
            return
        self._is_asking = False
        if said is Status.SUCCESS:
            self._stop_watching()
            self._give_up_connection()
            gevent.spawn(self._ask_agent, port)
        elif self._is_connected:
            self._stop_watching()
            self._finish(0)

    def _kernel_connected(self) -> None:
        self._stop_watching()
        error = self._original.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error or not self._is_asking:
            self._finish(error)
            return
        self._is_connected = True
        took = time.monotonic() - self._began
        self._wait = get_hub().loop.timer(max(LEAST_WAIT, took / SHARE_OF_ROUND_TRIP))
        self._wait.start(self._waited)

    def _waited(self) -> None:
        """No answer came in time: it is taken for no."""
        self._is_asking = False
        self._stop_watching()
        self._connector.is_silent(self._target)
        self._finish(0)

    def _give_up_connection(self) -> None:
        """End the kernel's connection, and have a fresh socket in its place."""
        fresh = _raw(self._family, socket.SOCK_STREAM)
        fresh.setblocking(False)
        carry(changed(self._original), fresh)
        with contextlib.suppress(OSError):  # it was not connected yet, or not any more
            self._original.shutdown(socket.SHUT_RDWR)
        self._original.close()
        self._original = fresh

    def _ask_agent(self, port: int) -> None:
        try:
            conn = self._connector.begin(self._target, self._port, port)
        except AgentGone as error:
            self._connector.link.warn_once("no agent: %s", error)
            self._connect_in_kernel(self._target)
            return
        except OSError as error:
            self._finish(error.errno or errno.ETIMEDOUT)
            return
        if self.done:
            conn.close()  # withdrawn while an agent was started
        else:
            self.listen_to(conn)

    def _stop_watching(self) -> None:
        super()._stop_watching()
        if self._wait is not None:
            self._wait.stop()
            self._wait.close()
            self._wait = None
