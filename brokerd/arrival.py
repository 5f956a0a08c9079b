"""To which of our hosts a datagram came, so that what answers it leaves from there.

A NAT, and a client that looks, knows an answer by its source. This room must never send or
receive.
"""

from __future__ import annotations

import socket
import struct

# Linux's number, which the socket module of Python 3.11 does not name.
_IP_PKTINFO = 8
_INFO_4 = struct.Struct("@i4s4s")
_INFO_6 = struct.Struct("@16sI")
ROOM = socket.CMSG_SPACE(_INFO_6.size)
"""Octets of ancillary data that it comes in."""

Ancillary = list[tuple[int, int, bytes]]


def tell(sock: socket.socket) -> None:
    """Have the kernel say it with every datagram."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)


def host_in(ancillary: Ancillary) -> str:
    """Return the host of ours that a datagram was sent to; the wildcard if nothing says it."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            return socket.inet_ntoa(_INFO_4.unpack(data[: _INFO_4.size])[1])
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return socket.inet_ntop(socket.AF_INET6, _INFO_6.unpack(data[: _INFO_6.size])[0])
    return "0.0.0.0"


def leaving_from(host: str) -> Ancillary:
    """Return what has to go along with a datagram that is to leave from a host of ours."""
    if ":" in host:
        info = _INFO_6.pack(socket.inet_pton(socket.AF_INET6, host), 0)
        return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)]
    info = _INFO_4.pack(0, socket.inet_aton(host), bytes(4))
    return [(socket.IPPROTO_IP, _IP_PKTINFO, info)]
