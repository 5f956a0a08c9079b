"""What hosts say to datagrams that they do not take: ICMP, read off a socket's error queue.

A socket that is not connected is told of ICMP errors only if it asks (ip(7), IP_RECVERR);
they then name whom the datagram was for. Layouts: linux/errqueue.h. This room must never
leave errors in the queue, which would awaken a watcher for ever, and never wait for one.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

from gcbpatch.addresses import Address

# Linux's numbers, which the socket module of Python 3.11 does not name.
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_EXTENDED_ERROR = struct.Struct("=IBBBBII")
_BY_ICMP = {(socket.IPPROTO_IP, _IP_RECVERR): 2, (socket.IPPROTO_IPV6, _IPV6_RECVERR): 3}
_ROOM = 512


def tell_of_refusals(sock: socket.socket) -> None:
    """Have the kernel keep what ICMP says to this socket's datagrams."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)


def refused_peers(sock: socket.socket) -> Iterator[Address]:
    """Return those to whom datagrams could not be delivered as no socket is there.

    They are hosts that said "port unreachable"; what else is in the queue is passed over,
    as the kernel would do for a connected socket. The queue is empty afterwards.
    """
    while True:
        try:
            _, ancillary, _, peer = sock.recvmsg(1, _ROOM, socket.MSG_ERRQUEUE)
        except OSError:
            return  # EAGAIN: the queue is empty
        if any(map(_is_refusal, ancillary)):
            yield peer[0], peer[1]


def _is_refusal(message: tuple[int, int, bytes]) -> bool:
    level, kind, data = message
    by_icmp = _BY_ICMP.get((level, kind))
    if by_icmp is None or len(data) < _EXTENDED_ERROR.size:
        return False
    number, origin, *_ = _EXTENDED_ERROR.unpack_from(data)
    return bool(number == errno.ECONNREFUSED and origin == by_icmp)
