"""Tells two halves of a rendezvous where each other's NAT has put them, so that they can punch.

Only where it can work: each half is seen under the port that it left from, so its NAT keeps
ports and will show the same one to the other side; or its agent has found out that its NAT
shows the same to all. It must never tell anybody an address without having been asked to by both.
"""

from __future__ import annotations

import socket
import struct

from gcbpatch.addresses import is_private
from gcbpatch.wire.messages import Endpoint, Join, JoinReply

_RTT = struct.Struct("=I")
_RTT_AT = 68  # struct tcp_info, tcpi_rtt, in microseconds
MOST_MILLISECONDS = 10000


def introductions(
    connector: tuple[socket.socket, Join], listener: tuple[socket.socket, Join]
) -> tuple[JoinReply | None, JoinReply | None]:
    """Return what each of the two is told beyond that they are joined."""
    here, there = _mapped(*connector), _mapped(*listener)
    if here is None or there is None or here.host == there.host:
        return None, None
    if (":" in here.host) != (":" in there.host):
        return None, None
    near, far = _round_trip(connector[0]), _round_trip(listener[0])
    both, late = near + far, max(near, far)
    return (
        JoinReply(there, listener[1].nonce, (late - near) // 2, both),
        JoinReply(here, connector[1].nonce, (late - far) // 2, both),
    )


def _mapped(sock: socket.socket, asked: Join) -> Endpoint | None:
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
