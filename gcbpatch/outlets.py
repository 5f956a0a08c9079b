"""Whether this host has a way to an address, as far as its own kernel knows: nothing is sent.

It must never take a route for a proof that somebody is there.
"""

from __future__ import annotations

import _socket

_DISCARD = 9


def has_way(host: str) -> bool:
    """Return whether packets to ``host`` (an IP literal) would leave this host, or arrive in it."""
    family = _socket.AF_INET6 if ":" in host else _socket.AF_INET
    try:
        sock = _socket.socket(family, _socket.SOCK_DGRAM)
    except OSError:
        return False  # a kernel without that family
    try:
        sock.connect((host, _DISCARD))
    except OSError:
        return False
    finally:
        sock.close()
    return True
