"""UDP proxy sockets, and the relay between them and the programs that they stand for.

All programs' datagrams come to the relay's socket, one for each family, which shares the command
port: the kernel tells data from commands by the first bit (relay_socket). Each listener has a proxy
socket of its own, which its peers send to. A header names the peer (gcbpatch.wire.datagrams),
so there is no table of peers; what is remembered of them is bounded and only saves time.

One watcher per socket, and nothing else per datagram than a receive and a send. Datagrams may
be lost: what cannot be sent at once is dropped. This room must never send a program's
datagrams to an address that has not proved that it is the program's, and never let a proxy
socket reach the relay, or this host's loopback.
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from gcbpatch.addresses import (
    Address,
    family_of,
    is_link_local,
    is_loopback,
    is_multicast,
    is_wildcard,
    unmapped,
)
from gcbpatch.errors import RemoteProtocolError
from gcbpatch.wire import datagrams
from gcbpatch.wire.datagrams import MOST_HEADER, MOST_PAYLOAD, WHOLE_4, WHOLE_6, Parts

from . import arrival
from .limits import Meter
from .proxies import is_local, is_taken, new_socket
from .refusals import refused_peers, tell_of_refusals

log = logging.getLogger("brokerd")

BATCH = 64
"""Datagrams per wake-up, so that neither commands nor other listeners are starved."""
MOST_BATCHES = 32
"""Of datagrams that were sent before a listener's end, which are relayed before it is over."""
RECEIVE_BUFFER = 4 * 1024 * 1024
MOST_REMEMBERED = 16384
"""Peers of all listeners whose headers need not be made anew."""
MOST_JOINING = 64
"""Listeners of which parts of datagrams wait for the others, MOST_PARTS each."""
MOST_PARTS = 4

_BROKEN = (errno.EBADF, errno.ENOTSOCK, errno.EINVAL)
_WHOLE_SIZES = {WHOLE_4: datagrams.HEADER_4, WHOLE_6: datagrams.HEADER_6}
_NOBODY: Address = ("", 0)


class Proxy:
    """The UDP proxy socket of one listener, and where its program is.

    ``until`` is when the program has to have said FLOW again.
    """

    __slots__ = (
        "family", "header", "meter", "number", "parts", "relay", "sock", "until", "via", "watcher",
        "where",
    )

    def __init__(self, sock: socket.socket, name: Address, watcher: Any) -> None:
        self.sock = sock
        self.family = family_of(name[0])
        self.header = datagrams.whole(name)
        self.relay: socket.socket | None = None
        self.watcher = watcher
        self.where: Address | None = None
        self.via: arrival.Ancillary = []
        self.until = 0.0
        self.meter: Meter | None = None
        self.parts: Parts | None = None
        self.number = 0


class DatagramProxies:
    """All UDP proxy sockets, by their addresses, and the relay's sockets."""

    def __init__(
        self, loop: Any, relays: Sequence[socket.socket], hosts: Mapping[str, str]
    ) -> None:
        """``hosts`` are those of proxy addresses, with what their sockets are bound to."""
        self._loop = loop
        self._relays = {6 if one.family == socket.AF_INET6 else 4: one for one in relays}
        self._hosts = hosts
        self._command_port: int = relays[0].getsockname()[1]
        self._proxies: dict[Address, Proxy] = {}
        self._flows: dict[Address, Proxy] = {}
        self._peers: dict[bytes, Address] = {}
        self._headers: dict[Address, bytes] = {}
        self._paused: list[Proxy] = []
        self._joining: dict[Proxy, float] = {}
        self._room = bytearray(MOST_HEADER + 65536)
        self._view = memoryview(self._room)
        self._payload = self._view[MOST_HEADER:]
        self._watchers = [(loop.io(relay.fileno(), 1), relay) for relay in relays]
        for watcher, relay in self._watchers:
            watcher.start(self._from_programs, relay)

    def __len__(self) -> int:
        return len(self._proxies)

    def open(self, address: Address) -> bool:
        """Open the socket of a proxy address; False if its port is in use or not for this user.

        Raises OSError for everything else, such as no descriptors.
        """
        try:
            sock = _proxy_socket(self._hosts[address[0]], address[1])
        except OSError as error:
            if is_taken(error):
                return False
            raise
        proxy = Proxy(sock, address, self._loop.io(sock.fileno(), 1))
        self._proxies[address] = proxy
        proxy.watcher.start(self._from_peers, proxy)
        return True

    def shut(self, address: Address) -> None:
        """Close the socket of a proxy address: from now on the kernel refuses its peers."""
        self._catch_up()
        proxy = self._proxies.pop(address)
        self._leave(proxy)
        self._joining.pop(proxy, None)
        proxy.watcher.stop()
        proxy.watcher.close()
        proxy.sock.close()

    def flow(
        self, address: Address, where: Address, via: str, meter: Meter, until: float
    ) -> None:
        """The program of the listener at ``address`` is at ``where``, which has been proved.

        It has spoken to ``via``, a host of this broker's, and hears from there.
        """
        proxy = self._proxies[address]
        former = self._flows.get(where)
        if former is not proxy:
            self._leave(proxy)
            if former is not None:
                self._leave(former)
            self._flows[where] = proxy
        proxy.where, proxy.until, proxy.meter = where, until, meter
        proxy.via = arrival.leaving_from(via)
        proxy.relay = self._relays[family_of(where[0])]

    def is_ours(self, address: Address) -> bool:
        """Return whether an address is a proxy socket's: no program is there."""
        host, port = address
        if address in self._proxies:
            return True
        return is_local(host) and any(port == other for _, other in self._proxies)

    def tick(self, now: float) -> None:
        """Forget flows and parts that are over, and listen again to what had its limit."""
        paused, self._paused = self._paused, []
        for proxy in paused:
            if proxy.sock.fileno() >= 0:
                proxy.watcher.start(self._from_peers, proxy)
        for proxy in [one for one in self._flows.values() if one.until <= now]:
            self._leave(proxy)
        for proxy in [one for one, until in self._joining.items() if until <= now]:
            self._forget_parts(proxy)

    def close(self) -> None:
        """Close all."""
        for address in list(self._proxies):
            self.shut(address)
        for watcher, relay in self._watchers:
            watcher.stop()
            watcher.close()
            relay.close()

    def _catch_up(self) -> None:
        """Relay what programs have sent already: a command must not overtake it."""
        for relay in self._relays.values():
            for _ in range(MOST_BATCHES):
                if not self._from_programs(relay):
                    break

    def _leave(self, proxy: Proxy) -> None:
        if proxy.where is not None:
            self._flows.pop(proxy.where, None)
            proxy.where = None

    # --- from peers to the program

    def _from_peers(self, proxy: Proxy) -> None:
        now, meter = time.monotonic(), proxy.meter
        receive = proxy.sock.recvfrom_into
        for number in range(BATCH):
            if meter is not None and not meter.has_room(now):
                # What comes meanwhile waits in the kernel's queue, and is dropped when it is full.
                proxy.watcher.stop()
                self._paused.append(proxy)
                return
            try:
                size, peer = receive(self._payload)
            except BlockingIOError:
                if not number:
                    self._refused(proxy)  # or it would be awakened for ever
                return
            except OSError as error:
                if not self._survives(proxy, error):
                    return
                continue
            if proxy.where is not None:
                self._to_program(proxy, self._header_of(peer[:2]), size)

    def _header_of(self, peer: Address) -> bytes:
        header = self._headers.get(peer)
        if header is None:
            if len(self._headers) >= MOST_REMEMBERED:
                self._headers.clear()
            header = self._headers[peer] = datagrams.whole(peer) if peer[1] else b""
        return header

    def _to_program(self, proxy: Proxy, header: bytes, size: int) -> None:
        """Send what lies in the room, with the header in front; in two parts if need be."""
        assert proxy.meter is not None
        proxy.meter.spend(size)
        if not header:
            return  # from port 0, which cannot be answered
        start = MOST_HEADER - len(header)
        if len(header) + size <= MOST_PAYLOAD:
            self._view[start:MOST_HEADER] = header
            self._send(proxy, [self._view[start : MOST_HEADER + size]])
            return
        proxy.number += 1
        first, second = datagrams.parts(datagrams.parse(header).peer, proxy.number)
        half = size // 2
        self._send(proxy, [first, self._payload[:half]])
        self._send(proxy, [second, self._payload[half:size]])

    def _send(self, proxy: Proxy, buffers: list[Any]) -> None:
        try:
            assert proxy.relay is not None
            proxy.relay.sendmsg(buffers, proxy.via, 0, proxy.where)
        except OSError as error:
            log.debug("datagram to %s:%d lost: %s", *(proxy.where or _NOBODY), error.strerror)

    # --- from programs to peers

    def _from_programs(self, relay: socket.socket) -> bool:
        """Relay a batch; return whether there may be more."""
        now = time.monotonic()
        receive, payload = relay.recvfrom_into, self._payload
        for _ in range(BATCH):
            try:
                size, source = receive(payload)
            except BlockingIOError:
                return False
            except OSError as error:
                log.error("receiving relayed datagrams: %s", error.strerror)
                return False
            proxy = self._flows.get(source[:2])
            if proxy is None or proxy.meter is None or not proxy.meter.has_room(now):
                continue
            head = _WHOLE_SIZES.get(payload[0]) if size else None
            if head is not None and size >= head:
                peer = self._peer_of(bytes(payload[:head]))
                self._to_peer(proxy, peer, payload[head:size])
            else:
                self._unusual(proxy, payload[:size], now)
        return True

    def _peer_of(self, header: bytes) -> Address:
        """Return the peer in a whole header; nobody if it names none that may be sent to."""
        peer = self._peers.get(header)
        if peer is None:
            if len(self._peers) >= MOST_REMEMBERED:
                self._peers.clear()
            peer = self._peers[header] = self._checked(header)
        return peer

    def _checked(self, header: bytes) -> Address:
        try:
            peer = datagrams.parse(header).peer
        except RemoteProtocolError:
            return _NOBODY
        return peer if self._may_be_sent_to(*peer) else _NOBODY

    def _may_be_sent_to(self, host: str, port: int) -> bool:
        """Return whether a listener may send there.

        Not to many at once, nor to the services on this host's loopback, and not to the
        relay: a proxy socket that passed for a program would have datagrams go round for ever.
        """
        if is_multicast(host) or is_wildcard(host) or host.startswith("0."):
            return False
        if is_link_local(host) or unmapped(host) != host:
            return False
        if is_loopback(host) and not any(is_loopback(ours) for ours in self._hosts):
            return False
        return port != self._command_port or not (host in self._hosts or is_local(host))

    def _unusual(self, proxy: Proxy, data: memoryview, now: float) -> None:
        """Relay what is no whole datagram: parts, or nothing that we know."""
        try:
            header = datagrams.parse(data)
        except RemoteProtocolError:
            return
        if header.refused or not self._may_be_sent_to(*header.peer):
            return
        if not header.part:
            return
        joined = self._parts_of(proxy, now).join(header, bytes(data[header.size :]), now)
        if joined is not None:
            self._to_peer(proxy, header.peer, memoryview(joined))

    def _parts_of(self, proxy: Proxy, now: float) -> Parts:
        if proxy.parts is None:
            if len(self._joining) >= MOST_JOINING:
                self._forget_parts(next(iter(self._joining)))
            proxy.parts = Parts(MOST_PARTS)
        self._joining.pop(proxy, None)
        self._joining[proxy] = now + datagrams.PART_SECONDS
        return proxy.parts

    def _forget_parts(self, proxy: Proxy) -> None:
        self._joining.pop(proxy, None)
        proxy.parts = None

    def _to_peer(self, proxy: Proxy, peer: Address, payload: memoryview) -> None:
        assert proxy.meter is not None
        proxy.meter.spend(len(payload))
        host, port = peer
        if not port or family_of(host) != proxy.family:
            return
        if host in self._hosts:
            other = self._proxies.get(peer)
            if other is not None:
                self._across(proxy, other, payload)
                return
        try:
            proxy.sock.sendto(payload, peer)
        except OSError as error:
            # Errors of earlier datagrams are told first, and then nothing has been sent.
            if self._survives(proxy, error) and error.errno != errno.EAGAIN:
                self._try_again(proxy, payload, peer)

    def _try_again(self, proxy: Proxy, payload: memoryview, peer: Address) -> None:
        try:
            proxy.sock.sendto(payload, peer)
        except OSError as error:
            log.debug("datagram to %s:%d lost: %s", *peer, error.strerror)

    def _across(self, proxy: Proxy, other: Proxy, payload: memoryview) -> None:
        """From one listener of this broker to another, without leaving through the kernel."""
        if other.where is None or other.meter is None:
            return
        if not other.meter.has_room(time.monotonic()):
            return
        self._payload[: len(payload)] = payload
        self._to_program(other, proxy.header, len(payload))

    # --- what the network answers

    def _survives(self, proxy: Proxy, error: OSError) -> bool:
        """Take an error of a proxy socket; False if the socket is of no use any more."""
        if error.errno in _BROKEN:
            log.error("proxy socket failed: %s", error.strerror)
            proxy.watcher.stop()
            return False
        if error.errno != errno.EAGAIN:
            self._refused(proxy)
        return True

    def _refused(self, proxy: Proxy) -> None:
        """Tell the program of the peers whose hosts refuse its datagrams."""
        for peer in refused_peers(proxy.sock):
            if proxy.where is not None and peer[1]:
                self._send(proxy, [datagrams.refused(peer)])


def _proxy_socket(host: str, port: int) -> socket.socket:
    sock = new_socket(host, socket.SOCK_DGRAM)
    try:
        tell_of_refusals(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock
