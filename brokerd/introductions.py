"""Tells two halves of a rendezvous where each other's NAT has put them, so that they can punch.

Only where it can work: each half is seen under the port that it left from, so its NAT keeps
ports and will show the same one to the other side; or its agent has found out that its NAT
shows the same to all. It must never tell anybody an address without having been asked to by both.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from gcbpatch.addresses import is_private
from gcbpatch.wire.messages import Connect, Endpoint, Join, JoinReply, Park

_RTT = struct.Struct("=I")
_RTT_AT = 68  # struct tcp_info, tcpi_rtt, in microseconds
MOST_MILLISECONDS = 10000


def introductions(
    connector: tuple[socket.socket, Join], listener: tuple[socket.socket, Join]
) -> tuple[JoinReply | None, JoinReply | None]:
    """Return what each of the two is told beyond that they are joined."""
    here, there = _mapped(*connector), _mapped(*listener)
    if here is None or there is None or not _are_apart(here, there):
        return None, None
    trips = _round_trip(connector[0]), _round_trip(listener[0])
    return _told((here, connector[1].nonce), (there, listener[1].nonce), trips)


class Foretold(NamedTuple):
    """What the two will most likely be told; ``half`` names the listener's connection."""

    connector: JoinReply | None = None
    listener: JoinReply | None = None
    half: bytes = b""


def foretold(host: str, asked: Connect, waiting: tuple[socket.socket, Park]) -> Foretold:
    """Return what two will be told if the connector's NAT keeps ports as well.

    ``host`` is what it is seen under; its half has only just been dialled.
    """
    there = _mapped(*waiting)
    here = Endpoint(host, asked.half)
    if there is None or not asked.half or not asked.nonce or is_private(host):
        return Foretold()
    if not _are_apart(here, there):
        return Foretold()
    far = _round_trip(waiting[0])
    trips = asked.round_trip or far, far
    told = _told((here, asked.nonce), (there, waiting[1].nonce), trips)
    return Foretold(*told, waiting[1].nonce)


def _are_apart(here: Endpoint, there: Endpoint) -> bool:
    return here.host != there.host and (":" in here.host) == (":" in there.host)


def _told(
    connector: tuple[Endpoint, bytes], listener: tuple[Endpoint, bytes], trips: tuple[int, int]
) -> tuple[JoinReply, JoinReply]:
    near, far = trips
    both, late = near + far, max(near, far)
    return (
        JoinReply(*listener, (late - near) // 2, both),
        JoinReply(*connector, (late - far) // 2, both),
    )


def _mapped(sock: socket.socket, asked: Join | Park) -> Endpoint | None:
    """Return where the NAT has put a half that wants to punch, if others will see it there."""
    if not asked.nonce:
        return None
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        return None  # gone, which shows when it is joined
    if is_private(host) or not (asked.independent or port == asked.port):
        return None
    return Endpoint(host, port)


def _round_trip(sock: socket.socket) -> int:
    """Return the milliseconds that the kernel has measured."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_AT + _RTT.size)
    if len(info) < _RTT_AT + _RTT.size:
        return 0
    return min(_RTT.unpack_from(info, _RTT_AT)[0] // 1000, MOST_MILLISECONDS)
