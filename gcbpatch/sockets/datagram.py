"""A registered UDP socket: what the program does with it, and the header that it never sees.

What comes from the relay has a header, which is read into a buffer of ours beside the
program's; everything else is the kernel's. The class of a Raw becomes Datagram when its port
is registered, so that no other socket pays for this. This room must never let a header, a
control datagram or the relay's address through to the program.
"""

from __future__ import annotations

import _socket
import errno
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gevent.socket

from ..addresses import canonical, is_wildcard
from ..errors import RemoteProtocolError
from ..wire.datagrams import (
    DIRECT_4,
    DIRECT_SIZE,
    MOST_PAYLOAD,
)
from .buffers import (
    MOST_INT,
    gather,
    numbers_of,
    readable_views,
    scatter,
    writable_view,
    writable_views,
)
from .flow import FORMS, Flow
from .layer import LAYER
from .raw import Raw

_base = _socket.socket
_recvfrom = _base.recvfrom
_recvmsg_into = _base.recvmsg_into
_sendmsg = _base.sendmsg
_sendto = _base.sendto

# As plain numbers: arithmetic with enumerations takes longer than the kernel does.
_PEEK, _TRUNC = int(socket.MSG_PEEK), int(socket.MSG_TRUNC)
_ERRQUEUE = int(socket.MSG_ERRQUEUE)
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM, errno.EACCES, errno.EINVAL)
"""What says that a place cannot be sent to from here, but the relay perhaps can."""
NO_WAYS = b"-"
"""Tells the agent that this socket hears nobody but the relay."""
_ERROR_OPTION = (socket.SOL_SOCKET, socket.SO_ERROR)
_ROOM = 65536
_KINDS = frozenset(bytes([kind]) for form in FORMS.values() for kind in (*form.framed, DIRECT_4))
"""What a datagram may begin with that somebody has put a header on."""
_SMALL = 16384
"""Octets of a payload that are copied behind their header: cheaper than two buffers."""
_MOST_ROOMS = 8
_rooms: list[bytearray] = []
"""Buffers that are not in use."""


@dataclass(slots=True)
class Got:
    """One datagram, in the vectors that it was read into or, if it came in parts, joined."""

    size: int
    offset: int
    joined: bytes | None
    ancillary: Any
    flags: int
    peer: Any


class Datagram(Raw):
    """A UDP socket whose port has a proxy address; ``_state`` is its Flow."""

    __slots__ = ()

    # --- receiving

    def recv(self, *args: Any) -> bytes:
        """As recv of a plain socket; the header is taken off."""
        if len(args) == 1 and type(args[0]) is int and 0 < args[0] < MOST_INT:
            return self._next(args[0])[0]
        asked = numbers_of(args, 2)
        if asked is None or asked[0] == 0 or asked[1] & _ERRQUEUE:
            return super().recv(*args)  # what is wrong is for CPython to say
        return self._whole(asked[0], asked[1], 0)[0]

    def recvfrom(self, *args: Any) -> tuple[bytes, Any]:
        """As recvfrom of a plain socket; the address is the peer's."""
        if len(args) == 1 and type(args[0]) is int and 0 < args[0] < MOST_INT:
            return self._next(args[0])
        asked = numbers_of(args, 2)
        if asked is None or asked[1] & _ERRQUEUE:
            return super().recvfrom(*args)
        data, got = self._whole(asked[0], asked[1], 0)
        return data, got.peer

    def recvmsg(self, *args: Any) -> tuple[bytes, Any, int, Any]:
        """As recvmsg of a plain socket."""
        asked = numbers_of(args, 3)
        if asked is None or asked[2] & _ERRQUEUE:
            return super().recvmsg(*args)
        data, got = self._whole(asked[0], asked[2] & ~_TRUNC, asked[1])
        return data, got.ancillary, got.flags, got.peer

    def recv_into(self, *args: Any) -> int:
        """As recv_into of a plain socket."""
        asked = numbers_of((0, *args[1:]), 3)
        view = writable_view(args[0], asked[1]) if args and asked else None
        if not view or asked is None or asked[2] & _ERRQUEUE:
            return super().recv_into(*args)
        return self._into([view], asked[2], 0)[0]

    def recvfrom_into(self, *args: Any) -> tuple[int, Any]:
        """As recvfrom_into of a plain socket."""
        asked = numbers_of((0, *args[1:]), 3)
        view = writable_view(args[0], asked[1]) if args and asked else None
        if view is None or asked is None or asked[2] & _ERRQUEUE:
            return super().recvfrom_into(*args)
        size, got = self._into([view], asked[2], 0)
        return size, got.peer

    def recvmsg_into(self, *args: Any) -> tuple[int, Any, int, Any]:
        """As recvmsg_into of a plain socket."""
        asked = numbers_of((0, *args[1:]), 3)
        if asked is not None and args and isinstance(args[0], Iterator):
            # An iterator gives its buffers once, and gevent would hand it over again.
            _base.recvfrom(self, 0, _PEEK)
        views, args = writable_views(args)
        if views is None or asked is None or asked[2] & _ERRQUEUE:
            return super().recvmsg_into(*args)
        size, got = self._into(views, asked[2], asked[1])
        return size, got.ancillary, got.flags, got.peer

    def _next(self, size: int) -> tuple[bytes, Any]:
        """What most programs do: the next datagram, of which ``size`` octets are wanted."""
        flow: Flow = self._state
        before = flow.form.header
        while True:
            data, source = _recvfrom(self, _ROOM)
            if source == flow.relay:
                peer = flow.known(data[:before])
                if peer is not None:
                    return data[before : before + size], peer
            elif data[:1] not in _KINDS:
                flow.heard_plainly(source)
                return data[:size], source
            elif (peer := flow.known_directly(data[:DIRECT_SIZE])) is not None:
                return data[DIRECT_SIZE : DIRECT_SIZE + size], peer
            got = self._judge([data], len(data), [], 0, source, 0)
            if got is not None:
                payload = data if got.joined is None else got.joined
                return payload[got.offset : got.offset + size], got.peer

    def _whole(self, size: int, flags: int, ancillary: int) -> tuple[bytes, Got]:
        """Receive into a buffer of ours; with MSG_TRUNC the octets not asked for are zeros."""
        room = _rooms.pop() if _rooms else bytearray(_ROOM)
        try:
            got = self._receive([room], flags, ancillary)
            payload = got.joined if got.joined is not None else memoryview(room)[: got.size]
            data = bytes(payload[got.offset : got.offset + size])
        finally:
            _keep(room)
        missing = got.size - got.offset - size
        if missing > 0:
            got.flags |= _TRUNC
            if flags & _TRUNC:
                data += bytes(missing)
        return data, got

    def _into(self, views: list[memoryview], flags: int, ancillary: int) -> tuple[int, Got]:
        """Receive into the program's buffers, between one for the header and one for the rest."""
        room = _rooms.pop() if _rooms else bytearray(_ROOM)
        try:
            vectors = [bytearray(self._state.head), *views, room]
            got = self._receive(vectors, flags, ancillary)
            if got.joined is not None:
                scatter(got.joined, views)
            elif got.offset != len(vectors[0]):
                scatter(gather(vectors, got.size)[got.offset :], views)
        finally:
            _keep(room)
        size, space = got.size - got.offset, sum(map(len, views))
        if size > space:
            got.flags |= _TRUNC
        return (size if flags & _TRUNC else min(size, space)), got

    def _receive(self, vectors: Sequence[Any], flags: int, ancillary: int) -> Got:
        """Receive the next datagram that is the program's."""
        while True:
            size, extra, told, source = _recvmsg_into(self, vectors, ancillary, flags & ~_TRUNC)
            got = self._judge(vectors, size, extra, told, source, flags)
            if got is not None:
                return got
            if flags & _PEEK:
                _base.recvfrom(self, 0)  # not for the program: the next may be

    def _judge(
        self, vectors: Sequence[Any], size: int, extra: Any, told: int, source: Any, flags: int
    ) -> Got | None:
        """Return what the program gets of what was received; None if it is not for it."""
        flow: Flow = self._state
        head = vectors[0]
        if source != flow.relay and not self._is_new_relay(flow, source, head, size):
            if size >= DIRECT_SIZE and head[0] == DIRECT_4 and not flow.form.v6:
                peer = flow.heard_directly(gather(vectors, DIRECT_SIZE))
                if peer is not None:
                    return Got(size, DIRECT_SIZE, None, extra, told, peer)
            flow.heard_plainly(source)
            return Got(size, 0, None, extra, told, source)
        before = flow.head = flow.form.header
        if size >= before and head[0] == flow.form.whole:
            try:
                peer = flow.heard(bytes(head[:before]))
            except RemoteProtocolError:
                return None
            return Got(size, before, None, extra, told, peer)
        return self._unusual(gather(vectors, size), extra, told, flags)

    def _unusual(self, data: bytes, extra: Any, told: int, flags: int) -> Got | None:
        """Take what the relay says that is no whole datagram."""
        flow: Flow = self._state
        if flow.is_refusal(data):
            if flags & _PEEK:
                _base.recvfrom(self, 0)  # an error is told once
            raise _refused()
        joined = flow.join(data, bool(flags & _PEEK))
        return None if joined is None else Got(len(joined[0]), 0, joined[0], extra, told, joined[1])

    def _is_new_relay(self, flow: Flow, source: Any, head: Any, size: int) -> bool:
        """Whether it is a relay's since another process has learnt that the port has moved."""
        framed = size >= flow.form.header and head[0] in flow.form.framed
        return framed and flow.look_again(self) and source == flow.relay

    # --- sending

    def send(self, data: Any, flags: Any = 0) -> int:
        """As send of a plain socket."""
        header = self._state.peer_header
        payload = readable_views([data])[0] if header is not None else None
        if header is None or payload is None or not isinstance(flags, int):
            return super().send(data, flags)
        return self._send(header, payload, (), flags, None)

    def sendto(self, *args: Any) -> int:
        """As sendto of a plain socket."""
        if len(args) == 2 and type(args[0]) is bytes and LAYER.gate is None:
            header = self._state.header_of(args[1])
            if header is not None and len(args[0]) <= _SMALL:
                return self._send_small(header, *args) if header else _sendto(self, *args)
        if not 2 <= len(args) <= 3:
            return super().sendto(*args)
        data, flags = args[0], args[1] if len(args) == 3 else 0
        address, header = self._route(args[-1])
        payload = readable_views([data])[0] if header else None
        if payload is None or not isinstance(flags, int):
            return super().sendto(data, *args[1:-1], address)
        return self._send(header, payload, (), flags, address)

    def _send_small(self, header: bytes, data: bytes, address: Any) -> int:
        """Send to a peer that is known, as most programs do."""
        flow: Flow = self._state
        if flow.peer_header is not None:
            self._tell_of_refusal(flow)
        way = flow.ways.way(header) if flow.ways is not None else None
        if way is None:
            if flow.ways is not None:
                self._miss_way(flow, header)
            if flow.is_own:
                return _sendto(self, data, address)
            return _sendto(self, header + data, flow.relay) - len(header)
        try:
            return _sendto(self, way[0] + data, way[1]) - DIRECT_SIZE
        except OSError as error:
            self._look_at(error, flow, header)
            return self._send_small(header, data, address)

    def sendmsg(
        self, buffers: Any, ancdata: Any = (), flags: Any = 0, address: Any = None
    ) -> int:
        """As sendmsg of a plain socket."""
        header = self._state.peer_header
        if address is not None:
            address, header = self._route(address)
        if not header or not isinstance(flags, int):
            return super().sendmsg(buffers, ancdata, flags, address)
        payload, buffers = readable_views(buffers)
        if payload is None:
            return super().sendmsg(buffers, ancdata, flags, address)
        return self._send(header, payload, ancdata, flags, address)

    def _route(self, address: Any) -> tuple[Any, bytes]:
        """The address with its host in numbers, and the header that it needs, if any.

        Raises PermissionError where a route denies.
        """
        if LAYER.gate is not None:
            address = LAYER.gate.passed(self, address)
        header = self._state.header_for(address)
        if header is None and _is_named(address, 4 if self.family == socket.AF_INET6 else 2):
            try:
                address = _looked_up(self, address)
            except OSError:
                return address, b""  # the kernel's own layer tells of it
            header = self._state.header_for(address)
        return address, header or b""

    def _send(
        self, header: bytes, payload: list[memoryview], ancillary: Any, flags: int, address: Any
    ) -> int:
        flow: Flow = self._state
        if flow.peer_header is not None:
            self._tell_of_refusal(flow)
        size = sum(view.nbytes for view in payload)
        if flow.ways is not None and size + DIRECT_SIZE <= MOST_PAYLOAD:
            sent = self._send_past_the_relay(flow, header, payload, ancillary, flags)
            if sent >= 0:
                return sent
        if flow.is_own:
            return _sendmsg(self, payload, ancillary, flags, address)
        if size + len(header) <= flow.form.most:
            return _sendmsg(self, [header, *payload], ancillary, flags, flow.relay) - len(header)
        if size > flow.form.most:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        data = memoryview(b"".join(payload))
        first, second = flow.next_parts(header)
        _sendmsg(self, [first, data[: size // 2]], ancillary, flags, flow.relay)
        _sendmsg(self, [second, data[size // 2 :]], ancillary, flags, flow.relay)
        return size

    def _send_past_the_relay(
        self, flow: Flow, header: bytes, payload: list[memoryview], ancillary: Any, flags: int
    ) -> int:
        """Send where there is a way now; else return -1, and have one looked for."""
        assert flow.ways is not None
        way = flow.ways.way(header)
        if way is None:
            self._miss_way(flow, header)
            return -1
        before, place = way
        try:
            return _sendmsg(self, [before, *payload], ancillary, flags, place) - DIRECT_SIZE
        except OSError as error:
            self._look_at(error, flow, header)
            return -1

    def _miss_way(self, flow: Flow, header: bytes) -> None:
        """A datagram goes by the relay: is that where it was, and should there be a way?"""
        assert flow.ways is not None
        if flow.ways.is_over:
            flow.look_again(self)
        if flow.wants_way(header):
            self._want_way(flow, header)

    @staticmethod
    def _look_at(error: OSError, flow: Flow, header: bytes) -> None:
        """Leave a way that cannot be used from here; raises what it is not to blame for."""
        if error.errno not in _NO_WAY or flow.ways is None:
            raise error
        flow.ways.failed(header)

    def _want_way(self, flow: Flow, header: bytes) -> None:
        """Have the agent look for a way past the relay; the datagram goes to its sibling."""
        if flow.form.v6:
            return  # there are none by IPv6
        host, port = _base.getsockname(self)
        said = NO_WAYS if flow.kernel_connected else header
        try:
            _base.sendto(
                self,
                flow.label.magic + said,
                socket.MSG_DONTWAIT,
                ("127.0.0.1" if is_wildcard(host) else host, port),
            )
        except OSError:
            return  # it is only said now and then, and the next time is as good

    def _tell_of_refusal(self, flow: Flow) -> None:
        """Raise if the peer that the socket is connected to has refused what was sent before."""
        if self._takes_refusal(flow):
            raise _refused()

    def _takes_refusal(self, flow: Flow) -> bool:
        """Whether the next thing here is the peer's refusal, which is told once."""
        try:
            head, source = _base.recvfrom(self, flow.form.header, _PEEK)
        except OSError:
            return False  # there is nothing, or it is for the call to tell
        if source != flow.relay or not flow.is_refusal(head):
            return False
        _base.recvfrom(self, 0)
        return True

    # --- options: one is ours by IPv6 (demux.sibling_of), one is how errors are told

    def getsockopt(self, *args: Any) -> Any:
        """As getsockopt of a plain socket: SO_REUSEPORT is what the program has made of it.

        SO_ERROR tells of the peer's refusal, too, if nothing came before that.
        """
        if self._is_reuseport(args) and len(args) == 2:
            return self._state.reuseport
        found = super().getsockopt(*args)
        flow: Flow = self._state
        if found == 0 and flow.peer_header is not None and args == _ERROR_OPTION:
            return errno.ECONNREFUSED if self._takes_refusal(flow) else 0
        return found

    def setsockopt(self, *args: Any) -> None:
        """As setsockopt of a plain socket; that the port is shared is ours to end."""
        if self._is_reuseport(args) and isinstance(args[-1], int):
            self._state.reuseport = int(bool(args[-1]))
        else:
            super().setsockopt(*args)

    def _is_reuseport(self, args: tuple[Any, ...]) -> bool:
        v6 = self._state is not None and self._state.form.v6
        return v6 and args[:2] == (socket.SOL_SOCKET, socket.SO_REUSEPORT)

    # --- names

    def getsockname(self) -> Any:
        """The proxy address."""
        name = _base.getsockname(self)
        link, flow = LAYER.link, self._state
        if link is not None and link.config.identity == "local":
            return name
        if link is not None and flow.edition not in (None, link.edition()):
            flow.again()
        return flow.shown(flow.label.public)

    def getpeername(self) -> Any:
        """The peer that the program has connected to."""
        flow: Flow = self._state
        peer = flow.label.peer
        return _base.getpeername(self) if peer is None else flow.shown(peer)

    def connect(self, address: Any) -> None:
        """Connect: in the kernel, or to a peer behind the relay by a filter."""
        self._connect_by(address, _base.connect)

    def connect_ex(self, address: Any) -> int:
        """As connect, with an errno instead of OSError."""
        return self._connect_by(address, _base.connect_ex) or 0

    def _connect_by(self, address: Any, how: Callable[[Datagram, Any], int | None]) -> int | None:
        flow: Flow = self._state
        address, header = self._route(address)
        by_relay = bool(header) and not flow.is_own
        error = None
        if not by_relay or flow.kernel_connected:
            # Nothing but another connect() takes a kernel's connect back.
            error = how(self, flow.relay if by_relay else address)
            if not error and not flow.kernel_connected:
                flow.kernel_connected = True
                self._want_way(flow, b"")
        if not error:
            flow.connect(self, (canonical(address[0]), address[1]) if by_relay else None)
        return error


def _refused() -> OSError:
    return ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


def _is_named(address: Any, most: int) -> bool:
    """Whether the host of an address is a name that somebody has to look up."""
    if type(address) is not tuple or not 2 <= len(address) <= most:
        return False
    if not isinstance(address[0], str) or not isinstance(address[1], int):
        return False
    return address[0] not in ("", "<broadcast>")


def _looked_up(sock: Datagram, address: Any) -> Any:
    """Return the address with its host in numbers; raises OSError."""
    if sock.family == socket.AF_INET:
        return gevent.socket.gethostbyname(address[0]), *address[1:]
    found = gevent.socket.getaddrinfo(address[0], None, socket.AF_INET6, socket.SOCK_DGRAM)
    host, _, *rest = found[0][4]
    return (host, *address[1:]) if not any(rest) else (host, address[1], *rest)


def _keep(room: bytearray) -> None:
    if len(_rooms) < _MOST_ROOMS:
        _rooms.append(room)
