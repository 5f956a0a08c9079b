"""What a process knows of one registered UDP port: who is reached through the relay.

A peer that was heard through the relay is answered through it, so that it sees the address
that it spoke to. A peer on a broker's host is a proxy address and gets our own proxy address
to see. Everybody else is reached by the kernel alone. This room must never send anything,
and never remember peers without bound.
"""

from __future__ import annotations

import _socket
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from ..addresses import Address, canonical, is_ip, shown
from ..errors import RemoteProtocolError
from ..wire import datagrams
from . import demux
from .demux import Label
from .ways import WayPage

MOST_PEERS = 8192
PEER_SECONDS = 1800.0
"""A peer that was silent for twice as long is forgotten."""

_K = TypeVar("_K")
_V = TypeVar("_V")


class Recent(Generic[_K, _V]):
    """Values in two generations: the older goes when the younger is full, or of age.

    A look-up costs one dictionary access and, unlike cachetools', may happen in several
    threads at once: every step is one operation of a dictionary.
    """

    def __init__(self, most: int = MOST_PEERS, seconds: float = PEER_SECONDS) -> None:
        self._most, self._seconds = most, seconds
        self.young: dict[_K, _V] = {}
        """What was put lately; to be looked into only."""
        self._old: dict[_K, _V] = {}
        self._until = time.monotonic() + seconds

    def __len__(self) -> int:
        return len(self.young) + len(self._old)

    def get(self, key: _K) -> _V | None:
        """Return a value, and keep it for longer."""
        value = self.young.get(key)
        if value is None:
            value = self._old.pop(key, None)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: _K, value: _V) -> None:
        """Remember a value."""
        now = time.monotonic()
        if len(self.young) >= self._most or now >= self._until:
            self.young, self._old = {}, self.young
            self._until = now + self._seconds
        self.young[key] = value


@dataclass(frozen=True, slots=True)
class Form:
    """What datagrams look like that come from and go to a relay of one family."""

    v6: bool
    whole: int
    header: int
    """Octets before a payload."""
    framed: tuple[int, ...]
    """First octets of what a relay sends."""
    most: int
    """Octets that a datagram can hold."""


FORMS = {
    False: Form(
        False, datagrams.WHOLE_4, datagrams.HEADER_4,
        (datagrams.WHOLE_4, datagrams.PART_4, datagrams.REFUSED_4), datagrams.MOST_PAYLOAD,
    ),
    True: Form(
        True, datagrams.WHOLE_6, datagrams.HEADER_6,
        (datagrams.WHOLE_6, datagrams.PART_6, datagrams.REFUSED_6), datagrams.MOST_PAYLOAD_6,
    ),
}


class Flow:
    """One registered port; shared by the dups of its socket in this process."""

    def __init__(self, label: Label, hosts: frozenset[str], ports: frozenset[int]) -> None:
        """``hosts`` are those of proxy addresses, except at the ``ports`` of commands."""
        self.label = label
        self.form = FORMS[":" in label.relay[0]]
        self.relay: Any = self.shown(label.relay)
        self.parts = datagrams.Parts()
        self.kernel_connected = False
        self.reuseport = 0
        """What the program finds under SO_REUSEPORT, which by IPv6 is set for ourselves."""
        self.sockets: weakref.WeakSet[_socket.socket] = weakref.WeakSet()
        """The objects in this process by which the port is used."""
        self.again: Callable[[], None] = _nothing
        """Tells an agent of the port that does not know it, or asks what it is called now."""
        self.edition: tuple[int, int] | None = None
        """Of the agent's news when it was asked last."""
        self._hosts = hosts | {label.public[0]}
        self._ports = ports
        # Headers of peers through the relay; empty ones stand for peers of the kernel's.
        # Peers are as the socket shows them.
        self._headers: Recent[Any, bytes] = Recent()
        self._peers: Recent[bytes, Any] = Recent()
        self._directed: Recent[bytes, tuple[bytes, Any]] = Recent()
        self.head = self.form.header
        """Octets before the payload of what was heard last: those of the next may be as many."""
        self.ways: WayPage | None = None
        self._number = 0
        self.peer_header = datagrams.whole(label.peer) if label.peer else None
        """Of the peer that the socket is connected to through the relay."""
        self.peer_refusal = datagrams.refused(label.peer) if label.peer else None

    @property
    def is_own(self) -> bool:
        """Whether the port is reached by its own address: then nothing goes by a relay."""
        return self.relay == demux.NOWHERE

    def release(self) -> None:
        """Nothing is held: the sibling is the agent's."""

    def shown(self, address: Address) -> Any:
        """Return an address as the socket shows it."""
        return shown(address, self.form.v6)

    def header_for(self, address: Any) -> bytes | None:
        """Return what has to stand before a datagram to ``address``, which may be nothing.

        None if it is no address in numbers: the kernel's own layer says what is wrong with
        it, or what it means.
        """
        if self.form.v6:
            address = _in_full(address)
        if type(address) is not tuple or len(address) != (4 if self.form.v6 else 2):
            return None
        host, port = address[:2]
        if not isinstance(host, str) or not isinstance(port, int):
            return None
        header = self._headers.get(address)
        if header is None and is_ip(host):
            header = self._header_of(canonical(host), port) if not any(address[2:]) else b""
            self._headers.put(address, header)
        return header

    def _header_of(self, host: str, port: int) -> bytes:
        proxied = host in self._hosts and port not in self._ports and 0 < port < 65536
        is_relay = (host, port) == self.label.relay
        return datagrams.whole((host, port)) if proxied and not is_relay else b""

    def header_of(self, address: Any) -> bytes | None:
        """As header_for, of what has been asked for lately; None for everything else."""
        try:
            return self._headers.young.get(address)
        except TypeError:
            return None  # no address at all, which is for others to say

    def known(self, header: bytes) -> Any:
        """The peer of a header, if it has been heard lately and is answered by relay."""
        peer = self._peers.young.get(header)
        return peer if peer is not None and self._headers.young.get(peer) == header else None

    def known_directly(self, before: bytes) -> Any:
        """The peer that spoke past the relay, if it has been heard lately."""
        known = self._directed.young.get(before)
        return known[1] if known is not None and self.known(known[0]) is not None else None

    def heard(self, header: bytes) -> Any:
        """Return the peer that the header of a whole datagram names; it is answered by relay.

        Raises RemoteProtocolError when it names none.
        """
        peer = self._peers.get(header)
        if peer is None:
            peer = self.shown(datagrams.parse(header).peer)
            self._peers.put(header, peer)
        if self._headers.get(peer) != header:
            self._headers.put(peer, header)
        return peer

    def heard_directly(self, before: bytes) -> Any:
        """Return the peer that spoke past the relay; None if it does not prove to be one."""
        known = self._directed.get(before)
        if known is None:
            header = datagrams.undirected(self.label.listener, before)
            if header is None:
                return None
            try:
                known = header, self.heard(header)
            except RemoteProtocolError:
                return None
            self._directed.put(before, known)
        header, peer = known
        if self._headers.get(peer) != header:
            self._headers.put(peer, header)
        self.head = datagrams.DIRECT_SIZE
        return peer

    def wants_way(self, header: bytes) -> bool:
        """Return whether the agent is to be told that this peer is spoken with by the relay."""
        if self.ways is None or not self.ways.is_due(header):
            return False
        host, port = datagrams.parse(header).peer
        return host in self._hosts and port not in self._ports

    def heard_plainly(self, peer: Any) -> None:
        """This peer speaks with us by itself, and is answered so."""
        if self.is_own:
            return  # headers are only what its ways are looked up by
        known = self._headers.get(peer)
        if known or (known is None and peer[0] in self._hosts):
            self._headers.put(peer, b"")

    def join(self, data: bytes, peeked: bool) -> tuple[bytes, Any] | None:
        """Take what came from the relay and is no whole datagram of its family.

        Returns the datagram that it completes, and its peer; None for none, and for garbage.
        """
        try:
            header = datagrams.parse(data)
            if header.part == 0:
                return None
            peer = self.heard(datagrams.whole(header.peer))
        except RemoteProtocolError:
            return None
        payload = data[header.size :]
        joined = self.parts.join(header, payload, time.monotonic(), peeked)
        return None if joined is None else (joined, peer)

    def is_refusal(self, data: bytes) -> bool:
        """Return whether the relay tells that the peer of this connected socket takes nothing."""
        return self.peer_refusal is not None and data == self.peer_refusal

    def next_parts(self, header: bytes) -> tuple[bytes, bytes]:
        """Return the headers of the two parts of the next datagram that needs them."""
        self._number += 1
        return datagrams.parts(datagrams.parse(header).peer, self._number)

    def moved(self, sock: _socket.socket, public: Address, relay: Address) -> None:
        """The port was registered anew, and may have another proxy address now."""
        if (public, relay) != (self.label.public, self.label.relay):
            self.label = replace(self.label, public=public, relay=relay)
            self.relay = self.shown(relay)
            self._hosts |= {public[0]}
            demux.attach(sock, self.label)
            if self.kernel_connected and self.label.peer is not None:
                _socket.socket.connect(sock, self.relay)

    def look_again(self, sock: _socket.socket) -> bool:
        """Another process may have moved the port: return whether its label says so."""
        label = demux.label_of(sock)
        if label is None or label.relay == self.label.relay:
            return False
        self.label, self.relay = label, self.shown(label.relay)
        self._hosts |= {label.public[0]}
        return True

    def connect(self, sock: _socket.socket, peer: Address | None) -> None:
        """Let the socket hear only ``peer`` through the relay; with None, whomever it could."""
        if peer != self.label.peer:
            self.label = demux.connected(sock, self.label, peer)
        self.peer_header = datagrams.whole(peer) if peer else None
        self.peer_refusal = datagrams.refused(peer) if peer else None


def _in_full(address: Any) -> Any:
    """An IPv6 address with all its four words, if it has them or lacks the last two only."""
    if type(address) is not tuple or not 2 <= len(address) <= 4:
        return address
    return (*address, 0, 0)[:4]


def _nothing() -> None:
    """Nobody registers this port."""
