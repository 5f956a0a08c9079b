"""Dialling back: one first packet to a client's port, never a connection.

To a port of UDP it is a datagram from a port that the client has never sent to.

What a probe sends is an ordinary SYN. Its socket takes only packets that have passed no router
since they were sent with the greatest TTL there is (GTSM, RFC 5082), which is said of no answer.
So the handshake never ends: the listener's kernel keeps a half-open connection, which its agent
can see, and which no accept() ever returns. With the probing socket closed, the next repetition
of the answer is refused, and nothing is left on either side.

Only hosts that have proved their address are dialled, and only at that address. This room
must never let a handshake end, nor tell anybody what answered.
"""

from __future__ import annotations

import socket
from collections import deque

from gcbpatch.addresses import Address

PROBE_SECONDS = 2.0
"""How long a half-open connection is kept up: one repetition of a lost SYN long, and its way."""
MOST_PROBES = 1024
"""With one more, the oldest is over."""

_IP_MINTTL = 21
_IPV6_MINHOPCOUNT = 73
_FARTHEST = 255


class Probes:
    """All probes under way."""

    def __init__(self) -> None:
        self._open: deque[tuple[float, socket.socket]] = deque()

    def __len__(self) -> int:
        return len(self._open)

    def send(self, via: str, target: Address, now: float) -> Address:
        """Probe ``target`` from our host ``via``; return where from. Raises OSError."""
        if len(self._open) >= MOST_PROBES:
            self._open.popleft()[1].close()
        sock = _unanswerable(via)
        try:
            # Whatever comes of it shows at the other end; an address without a route, nowhere.
            sock.connect_ex(target)
            source: Address = sock.getsockname()[:2]
        except OSError:
            sock.close()
            raise
        self._open.append((now + PROBE_SECONDS, sock))
        return source

    @staticmethod
    def say(via: str, target: Address, data: bytes) -> Address:
        """Send one datagram from a port that nobody knows; return where from. Raises OSError."""
        family = socket.AF_INET6 if ":" in via else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.bind((via, 0))
            source: Address = sock.getsockname()[:2]
            sock.sendto(data, target)
            return source

    def expire(self, now: float) -> None:
        """Let go of those whose time is over."""
        while self._open and self._open[0][0] <= now:
            self._open.popleft()[1].close()

    def close(self) -> None:
        """Let go of all."""
        self.expire(float("inf"))


def _unanswerable(via: str) -> socket.socket:
    """Return a TCP socket at our host ``via`` that no handshake can end on."""
    family = socket.AF_INET6 if ":" in via else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _take_and_send_only_fresh(sock)
        sock.bind((via, 0))
    except OSError:
        sock.close()
        raise
    return sock


def _take_and_send_only_fresh(sock: socket.socket) -> None:
    """Answers come with a TTL of 64, or what is left of it; ours goes out with the greatest."""
    if sock.family == socket.AF_INET6:
        level, least, sent = socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, socket.IPV6_UNICAST_HOPS
    else:
        level, least, sent = socket.IPPROTO_IP, _IP_MINTTL, socket.IP_TTL
    sock.setsockopt(level, least, _FARTHEST)
    sock.setsockopt(level, sent, _FARTHEST)
