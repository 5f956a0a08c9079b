"""Where a connect() is meant to go, in the form in which the layer compares addresses.

What is not an address for the socket's family is left as it is, for the kernel's own layer
to complain about. This room must never decide who connects.
"""

from __future__ import annotations

import _socket
import operator
import socket
from typing import Any

from ..addresses import ANY, V4, V6, Address, is_link_local, is_wildcard, unmapped

_INT_RANGE = 2**31
_NO_LITERALS = ("", "<broadcast>")
"""What the socket module takes for a host though it is neither an address nor a name."""
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def resolved(sock: _socket.socket, address: Any) -> Any:
    """Return the address with an IP literal for its host name, as the kernel's layer would.

    Raises gaierror, or UnicodeError for what is no name, as the kernel's layer does.
    """
    if not _is_pair(sock, address) or not isinstance(address[0], str):
        return address
    host = address[0]
    if host in _NO_LITERALS or _is_literal(sock.family, host):
        return address
    # As bytes, since the kernel's layer takes ASCII as it is, and only the rest for IDNA.
    name = host.encode("ascii") if host.isascii() else host
    found = _socket.getaddrinfo(name, None, sock.family)[0][4]
    # A scope would be lost here; such an address is the kernel's alone.
    return address if any(found[3:]) else (str(found[0]), *address[1:])


def plain(sock: _socket.socket, address: Any) -> Address | None:
    """Return host and port of a destination, a mapped host as the IPv4 host that it stands for.

    None if it is no address, or one that means something to this socket's kernel only.
    """
    if not _is_pair(sock, address) or not isinstance(address[0], str):
        return None
    host = address[0]
    if host in _NO_LITERALS:
        return None
    if sock.family == socket.AF_INET6:
        host = _canonical(host)
        if not host or any(address[2:]) or is_link_local(host):
            return None
        if ":" not in host and sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            return None
    return host, operator.index(address[1])


def family_of(sock: _socket.socket) -> int | None:
    """Return which addresses a bound socket can show (addresses); None if none but its own."""
    if sock.family != socket.AF_INET6:
        return V4 if sock.family == socket.AF_INET else None
    host = _socket.socket.getsockname(sock)[0]
    if unmapped(host) != host:
        return V4
    if not is_wildcard(host):
        return None if is_link_local(host) else V6
    only = _socket.socket.getsockopt(sock, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    return V6 if only else ANY


def _is_pair(sock: _socket.socket, address: Any) -> bool:
    if sock.family not in _FAMILIES or not isinstance(address, tuple):
        return False
    most = 2 if sock.family == socket.AF_INET else 4
    if not 2 <= len(address) <= most or not hasattr(address[1], "__index__"):
        return False
    return -_INT_RANGE <= operator.index(address[1]) < _INT_RANGE


def _is_literal(family: int, host: str) -> bool:
    try:
        _socket.inet_pton(family, host)
    except OSError:
        return False
    except ValueError:
        return True  # no text for a name at all: as it stands, to be complained about
    return True


def _canonical(host: str) -> str:
    """Return an IPv6 host in its one form, a mapped one as IPv4; nothing if it is none."""
    try:
        packed = _socket.inet_pton(socket.AF_INET6, host)
    except (OSError, ValueError):
        return ""
    if packed[:12] == bytes(10) + b"\xff\xff":
        return _socket.inet_ntop(socket.AF_INET, packed[12:])
    return _socket.inet_ntop(socket.AF_INET6, packed)
