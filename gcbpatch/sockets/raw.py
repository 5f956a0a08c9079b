"""The `_socket.socket` under gevent's sockets: thin, it asks the rooms beside it.

Set as `gevent.socket.socket._gevent_sock_class`, so that every way to make a socket (accept,
dup, fromfd, fileno=, create_*, ssl) comes through here and no public class is exchanged.
It must never stand between a program and send or recv.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from typing import Any

from gevent._socket3 import _wrefsocket

from ..addresses import Address, is_loopback, shown, unmapped
from ..errors import Status
from .asking import Asking
from .connecting import become_connecting
from .connector import Choice, Connector
from .known import ALWAYS
from .later import AgentGone
from .layer import LAYER, wants_identity
from .link import Link
from .listener import Listener
from .options import carry, shareable
from .pending import Pending
from .table import Names
from .target import family_of, plain, resolved

_base = _socket.socket
# Bound once: to look a method up by super() costs half as much as what we add to a connect.
_make, _connect_ex, _close = _wrefsocket.__init__, _base.connect_ex, _base.close

DEFAULT_BACKLOG = min(socket.SOMAXCONN, 128)
"""What listen() means without an argument (CPython's socketmodule)."""

_INET = (socket.AF_INET, socket.AF_INET6)
_BOUND = "bound"
"""State of a socket that the program has bound, and nothing else yet: it may become a listener."""
_KERNELS = "kernel's"
"""State of a listening socket that is the kernel's alone."""
_TCP_CLOSE = 7


def _nothing(sock: Raw) -> None:
    """What is done for a datagram socket that is the kernel's alone."""


def _is_ours(host: Any) -> bool:
    """Return whether ``host`` is that of a public address of ours."""
    return isinstance(host, str) and unmapped(host) in LAYER.hosts


class Raw(_wrefsocket):
    """A kernel socket that may have a public identity or a connect under way."""

    __slots__ = ("_state",)

    def __init__(
        self, family: int = -1, type: int = -1, proto: int = -1, fileno: Any = None
    ) -> None:
        _make(self, family, type, proto, fileno)
        self._state: Any = None
        if fileno is not None and LAYER.link is not None:
            self._recognise(fileno)

    def _recognise(self, fileno: int) -> None:
        """Take up what is known of a socket that has been another object before, or still is."""
        if LAYER.named and (known := LAYER.named.pop(fileno, None)) is not None:
            self._state, options = known
            LAYER.table.put(self, self._state)
            carry(options, self)
            return
        state = LAYER.table.find(self) if LAYER.table else None
        if isinstance(state, Pending):
            become_connecting(self, state)
        elif self.type == socket.SOCK_DGRAM:
            self._state = state
            self._port("found", _nothing)
        elif state is not None:
            self._state = state
        elif fileno != LAYER.accepted and self._is_tcp() and self._tcp_state() == _TCP_CLOSE:
            LAYER.twins.note(self)

    def bind(self, address: Any) -> None:
        """Bind; a public host of ours means all addresses of this host."""
        if LAYER.hosts and isinstance(address, tuple) and address and _is_ours(address[0]):
            address = ("", *address[1:])
        if LAYER.ports is not None and self.type == socket.SOCK_DGRAM:
            self._port("bind", _base.bind, address)
            return
        super().bind(address)
        if self._state is None and LAYER.link is not None:
            self._state = _BOUND

    def _port(self, step: str, instead: Callable[..., None], *args: Any) -> None:
        """Have the room of UDP do a step; ``instead`` is done where it cannot be loaded."""
        if LAYER.link is not None and self.family in _INET:
            try:
                instead = getattr(LAYER.ports, step)
            except AgentGone as error:
                LAYER.link.warn_once("%s", error)
        instead(self, *args)

    def listen(self, *args: Any) -> None:
        """Listen, and get a public identity where a broker or gateway is configured."""
        super().listen(*args)
        backlog = max(args[0], 0) if args else DEFAULT_BACKLOG
        if isinstance(self._state, Listener):
            self._state.listened(backlog)
        elif LAYER.link is not None and self._state in (None, _BOUND, _KERNELS):
            self._register(LAYER.link, backlog)

    def _register(self, link: Link, backlog: int | None) -> None:
        if not self._wants_identity(link):
            self._state = _KERNELS
            return
        listener = Listener(link, self)
        with shareable(self) if backlog is None else contextlib.nullcontext():
            listener.register(backlog)
        self._keep(link, listener)

    def _keep(self, link: Link, listener: Listener) -> None:
        self._state = listener
        LAYER.table.put(self, listener)
        self._note_name(link, listener)

    def _wants_identity(self, link: Link) -> bool:
        """Whether such a socket gets a public address: TCP, bound, not to one link alone."""
        if not self.type & socket.SOCK_STREAM or family_of(self) is None:
            return False
        host, port = _base.getsockname(self)[:2]
        return port != 0 and wants_identity(link, host)

    def _inherit(self, link: Link) -> None:
        """A listening socket that another program made: known to the agent, or new here."""
        if not self._wants_identity(link):
            self._state = _KERNELS
            return
        try:
            listener = Listener.adopted(link, self)
        except AgentGone as error:
            link.warn_once("no agent: %s", error)
            self._state = _KERNELS
            return
        if listener is not None:
            self._keep(link, listener)
        else:
            self._register(link, DEFAULT_BACKLOG)

    def _note_host(self, link: Link, host: str) -> None:
        """From now on this host means us, unless names shall stay as the kernel has them."""
        if link.config.identity != "local" and not is_loopback(host):
            LAYER.hosts.add(host)

    def _note_name(self, link: Link, listener: Listener) -> None:
        """The same for a listener's, but the kernel knows an address of its own by itself."""
        if listener.foreign is not None:
            self._note_host(link, listener.foreign[0])

    def _accept(self) -> tuple[int, Any]:
        while True:
            if self._state is None and LAYER.link is not None:
                self._inherit(LAYER.link)
            fd, address = super()._accept()
            LAYER.accepted = fd
            if type(self._state) is not Listener:
                return fd, address
            got = self._state.accepted(fd, address)
            if got is None:
                continue
            fd, address, known = got
            LAYER.accepted = fd
            if known is None:
                LAYER.named.pop(fd, None)
            else:
                LAYER.named[fd] = known
            return fd, address

    def getsockname(self) -> Any:
        """The public address of a registered socket; else the kernel's."""
        state = self._state
        if LAYER.link is not None and (state is _BOUND or state is None):
            self._look_closer(LAYER.link, state)
            state = self._state
        name = super().getsockname()
        if LAYER.link is None:
            return name
        if isinstance(state, Listener):
            return self._identity(LAYER.link, state) or name
        if isinstance(state, Names) and state.local is not None:
            name = state.local
        return self._connected_name(name)

    def _look_closer(self, link: Link, state: Any) -> None:
        """A name is asked for: of a socket about to be advertised, or an inherited listener?"""
        if state is _BOUND and self._only_bound():
            self._register(link, None)
        elif state is None and _base.getsockopt(self, socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._inherit(link)

    def _identity(self, link: Link, listener: Listener) -> Any:
        before = listener.public
        public = listener.identity()
        if public is not None:
            self._note_name(link, listener)
            if listener.public != before:
                LAYER.renamed(before, listener.foreign)
        return public

    def _only_bound(self) -> bool:
        """A bound stream socket whose name is asked for is about to be advertised."""
        return self._is_tcp() and self._tcp_state() == _TCP_CLOSE

    def _is_tcp(self) -> bool:
        stream = self.family in _INET and self.type & socket.SOCK_STREAM
        return bool(stream) and self.proto in (0, socket.IPPROTO_TCP)

    def _tcp_state(self) -> int:
        info: bytes = _base.getsockopt(self, socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return info[0]

    def _is_connected(self) -> bool:
        try:
            _base.getpeername(self)
        except OSError:
            return False
        return True

    def _connected_name(self, name: Any) -> Any:
        """A connected socket of a program with an identity shows that host (FTP needs it)."""
        if not LAYER.hosts or self.family not in _INET or is_loopback(name[0]):
            return name
        if _is_ours(name[0]) or not self._is_connected():
            return name
        # A connection by IPv6 proper has nothing to do with our IPv4 names, and the reverse.
        v6 = ":" in unmapped(name[0])
        ours = min((host for host in LAYER.hosts if (":" in host) == v6), default=None)
        return name if ours is None else shown((ours, name[1]), self.family == socket.AF_INET6)

    def getpeername(self) -> Any:
        """The peer as the program knows it."""
        name = super().getpeername()
        state = self._state
        return state.peer if isinstance(state, Names) and state.peer is not None else name

    def connect(self, address: Any) -> None:
        """Start connecting; raises OSError, EINPROGRESS among them, as the kernel does."""
        if self._state is None and LAYER.holds(address):
            return _base.connect(self, address)
        error, address = self._connect(address)
        if error is None:
            return _base.connect(self, address)
        if error:
            raise OSError(error, os.strerror(error))
        return None

    def connect_ex(self, address: Any) -> int:
        """Start or look at connecting; the agent does it for brokered addresses."""
        if self._state is None and LAYER.holds(address):
            return _connect_ex(self, address)  # gevent's connect() comes here twice
        error, address = self._connect(address)
        return _base.connect_ex(self, address) if error is None else error

    def _connect(self, address: Any) -> tuple[int | None, Any]:
        """Return an errno if this connect is ours, else None; and the address for the kernel."""
        state = self._state
        if isinstance(state, Names):
            error = 0 if state.fresh else errno.EISCONN
            state.fresh = False
            return error, address
        if LAYER.gate is not None:
            address = resolved(self, address)
            if LAYER.gate.denies(address):
                return errno.EACCES, address
        if LAYER.connector is None:
            if self.family == socket.AF_INET:  # the gate has its host in numbers
                LAYER.known.remember(address, ALWAYS)
            return None, address
        if not self._is_tcp() or self._tcp_state() != _TCP_CLOSE:
            return None, address
        address = resolved(self, address)
        target = plain(self, address)
        if target is None:
            return None, address
        self._is_no_listener()
        return self._connect_to(LAYER.connector, target, address), address

    def _connect_to(self, connector: Connector, target: Address, address: Any) -> int | None:
        """Have it done by whom the connector chooses; None if that is the kernel."""
        choice, until = connector.choose(target)
        if choice is Choice.QUESTION:
            return self._ask(connector, target)
        if choice is Choice.AGENT:
            return self._begin(connector, target)
        LAYER.known.remember(address, until)
        return None

    def _is_no_listener(self) -> None:
        """A socket that connects is no longer one that may come to listen."""
        if isinstance(self._state, Listener):
            self._state.forget()
        self._state = None

    def _begin(self, connector: Connector, target: Address) -> int | None:
        """Have the agent connect; None if it cannot."""
        try:
            conn = connector.begin(target, _base.getsockname(self)[1])
        except AgentGone as error:
            connector.link.warn_once("no agent: %s", error)
            return None
        # Who else is this socket can be told only while the number is its own.
        twins = LAYER.twins.take(self)
        self._become(Pending(self, self._peer(target), target, conn, LAYER.table), *twins)
        return errno.EINPROGRESS

    def _ask(self, connector: Connector, target: Address) -> int | None:
        """Ask a host that nobody knows while the kernel connects; None if it cannot be asked."""
        asking: list[Asking] = []

        def told(said: Status | None, port: int) -> None:
            for one in asking:
                one.told(said, port)

        if connector.ask(target, told) is None:
            return None
        twins = LAYER.twins.take(self)
        asking.append(Asking(self, self._peer(target), target, connector, LAYER.table))
        self._become(asking[0], *twins)
        asking[0].begin()
        return errno.EINPROGRESS

    def _peer(self, target: Address) -> Any:
        return shown(target, self.family == socket.AF_INET6)

    def _become(self, pending: Pending, objects: list[Any], numbers: list[int]) -> None:
        """All that are this socket are a connecting one from now on."""
        for number in numbers:
            pending.cover(number)
        for one in (self, *objects):
            become_connecting(one, pending)

    def _sendto_by_gate(self, *args: Any) -> int:
        """As sendto; raises PermissionError where a route denies."""
        if len(args) > 1 and LAYER.gate is not None:
            args = (*args[:-1], LAYER.gate.passed(self, args[-1]))
        return _base.sendto(self, *args)

    def _sendmsg_by_gate(self, *args: Any) -> int:
        """As sendmsg; raises PermissionError where a route denies."""
        if len(args) == 4 and LAYER.gate is not None:
            args = (*args[:3], LAYER.gate.passed(self, args[3]))
        return _base.sendmsg(self, *args)

    def setsockopt(self, *args: Any) -> None:
        """Set an option; what a listener has set, the accepted sockets have from then on."""
        super().setsockopt(*args)
        if type(self._state) is Listener:
            self._state.options_changed(self)

    def close(self) -> None:
        """Close; a listener's queue is given up with the last."""
        _close(self)
        if type(self._state) is Listener:
            LAYER.table.prune()


def _guard_sending(wanted: bool) -> None:
    """Have datagrams pass the gate; without one, sending is the kernel's own as ever."""
    for name, guarded in (("sendto", Raw._sendto_by_gate), ("sendmsg", Raw._sendmsg_by_gate)):
        if wanted:
            setattr(Raw, name, guarded)
        elif name in vars(Raw):
            delattr(Raw, name)


LAYER.guard_sending = _guard_sending
_guard_sending(LAYER.gate is not None)
