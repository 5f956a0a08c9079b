"""The `_socket.socket` under gevent's sockets: thin, it asks the rooms beside it.

Set as `gevent.socket.socket._gevent_sock_class`, so that every way to make a socket (accept,
dup, fromfd, fileno=, create_*, ssl) comes through here and no public class is exchanged.
It must never stand between a program and send or recv.
"""

from __future__ import annotations

import _socket
import errno
import os
import socket
from typing import Any

from gevent._socket3 import _wrefsocket

from ..addresses import is_loopback
from .connector import Connector
from .link import AgentGone, Link
from .listener import Listener
from .pending import Pending
from .table import Names, Table

_base = _socket.socket


class Layer:
    """The patch's state in this process: set once by patching, read by every socket."""

    def __init__(self) -> None:
        self.table = Table()
        self.link: Link | None = None
        self.connector: Connector | None = None
        self.hosts: set[str] = set()
        """Hosts of our listeners' public addresses."""

    def configure(self, link: Link | None) -> None:
        """Begin to work for ``link``, or not at all with None."""
        self.link = link
        self.connector = Connector(link) if link is not None else None

    def leave(self) -> None:
        """Begin to work for nobody: the program is no longer patched."""
        if self.link is not None:
            self.link.leave()
        self.configure(None)
        self.hosts.clear()


LAYER = Layer()

_BOUND = "bound"
"""State of a socket that the program has bound, and nothing else yet: it may become a listener."""
_TCP_CLOSE = 7


class Raw(_wrefsocket):
    """A kernel socket that may have a public identity or a connect under way."""

    __slots__ = ("_state",)

    def __init__(
        self, family: int = -1, type: int = -1, proto: int = -1, fileno: Any = None
    ) -> None:
        super().__init__(family, type, proto, fileno)
        known = fileno is not None and LAYER.table
        self._state = LAYER.table.find(self) if known else None

    def bind(self, address: Any) -> None:
        """Bind; a public host of ours means all addresses of this host."""
        if LAYER.hosts and isinstance(address, tuple) and address and address[0] in LAYER.hosts:
            address = ("", *address[1:])
        super().bind(address)
        if self._state is None and LAYER.link is not None:
            self._state = _BOUND

    def listen(self, *args: Any) -> None:
        """Listen, and get a public identity where a broker or gateway is configured."""
        super().listen(*args)
        if isinstance(self._state, Listener):
            self._state.listened()
        elif self._state in (None, _BOUND):
            self._register(True)

    def _register(self, listens: bool) -> None:
        link = LAYER.link
        if link is None or self.family != socket.AF_INET or not self.type & socket.SOCK_STREAM:
            return
        bound = _base.getsockname(self)
        if not bound[1] or is_loopback(bound[0]):
            return
        listener = Listener(link, bound)
        listener.register(self, listens)
        self._state = listener
        LAYER.table.put(self, listener)
        if listener.public is not None:
            LAYER.hosts.add(listener.public[0])

    def _accept(self) -> tuple[int, Any]:
        while True:
            fd, address = super()._accept()
            if type(self._state) is not Listener:
                return fd, address
            got = self._state.accepted(fd, address, LAYER.table)
            if got is not None:
                return got

    def getsockname(self) -> Any:
        """The public address of a registered socket; else the kernel's."""
        state = self._state
        if isinstance(state, Pending):
            return state.name()
        if state is _BOUND and self._only_bound():
            self._register(False)
            state = self._state
        name = super().getsockname()
        if LAYER.link is None or LAYER.link.config.identity == "local":
            return name
        if isinstance(state, Listener):
            return self._identity(state) or name
        if isinstance(state, Names) and state.local is not None:
            return state.local
        return self._connected_name(name)

    def _identity(self, listener: Listener) -> Any:
        public = listener.identity()
        if public is not None:
            LAYER.hosts.add(public[0])
        return public

    def _only_bound(self) -> bool:
        """A bound stream socket whose name is asked for is about to be advertised."""
        if not self.type & socket.SOCK_STREAM or self.family != socket.AF_INET:
            return False
        info: bytes = _base.getsockopt(self, socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return info[0] == _TCP_CLOSE

    def _is_connected(self) -> bool:
        try:
            _base.getpeername(self)
        except OSError:
            return False
        return True

    def _connected_name(self, name: Any) -> Any:
        """A connected socket of a program with an identity shows that host (FTP needs it)."""
        if not LAYER.hosts or self.family != socket.AF_INET or is_loopback(name[0]):
            return name
        return (min(LAYER.hosts), name[1]) if self._is_connected() else name

    def getpeername(self) -> Any:
        """The peer as the program knows it."""
        state = self._settled()
        if isinstance(state, Pending):
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        name = super().getpeername()
        return state.peer if isinstance(state, Names) and state.peer is not None else name

    def connect(self, address: Any) -> None:
        """Start connecting; raises OSError, EINPROGRESS among them, as the kernel does."""
        error = self.connect_ex(address)
        if error:
            raise OSError(error, os.strerror(error))

    def connect_ex(self, address: Any) -> int:
        """Start or look at connecting; the agent does it for brokered addresses."""
        state = self._state
        if isinstance(state, Pending):
            if not state.done:
                return errno.EALREADY
            return self._settle(state) or errno.EISCONN
        if isinstance(state, Names) and state.peer == address:
            return errno.EISCONN  # also if the peer has reset it meanwhile: recv() tells
        if isinstance(state, Listener):
            state.forget()
            self._state = None
        if state is _BOUND:
            self._state = None
        connector = LAYER.connector
        if connector is None or self.family != socket.AF_INET:
            return super().connect_ex(address)
        if not self.type & socket.SOCK_STREAM or not connector.wanted(address):
            return super().connect_ex(address)
        return self._begin(connector, address)

    def _begin(self, connector: Connector, address: Any) -> int:
        if self._is_connected():
            return errno.EISCONN
        try:
            conn = connector.begin(address)
        except AgentGone as error:
            connector.link.warn_once("no agent: %s", error)
            return super().connect_ex(address)
        self._state = Pending(self, address, conn)
        return errno.EINPROGRESS

    def _settle(self, pending: Pending) -> int:
        error = pending.result()
        self._state = pending.names
        if pending.names is not None:
            LAYER.table.put(self, pending.names)
        return error

    def _settled(self) -> Any:
        """The state, with a finished connect that nobody has looked at taken note of."""
        state = self._state
        if isinstance(state, Pending) and state.done and not state.failed:
            self._settle(state)
        return self._state

    def getsockopt(self, *args: Any) -> Any:
        """SO_ERROR of a connect by the agent is ours to tell; everything else is not."""
        state = self._state
        if not isinstance(state, Pending):
            return super().getsockopt(*args)
        if not state.done:
            return state.getsockopt(*args)
        if args[:2] == (socket.SOL_SOCKET, socket.SO_ERROR):
            return self._settle(state)
        return super().getsockopt(*args)

    def setsockopt(self, *args: Any) -> None:
        """Set an option, on the socket that will be there after a connect under way."""
        state = self._state
        if isinstance(state, Pending) and not state.done:
            state.setsockopt(*args)
        else:
            super().setsockopt(*args)

    def close(self) -> None:
        """Close; a connect under way is withdrawn, a listener's queue given up with the last."""
        state = self._state
        if isinstance(state, Pending):
            state.withdraw()
        super().close()
        if isinstance(state, Listener):
            LAYER.table.prune()
