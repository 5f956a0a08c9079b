"""Socket options that a program set on one socket and must find on another of its own.

A brokered connection is made by the agent, so the kernel could not hand down what the
program set before connect(), or on its listening socket. This room must never set an option
that the program has not set: the kernel tunes the others by itself.
"""

from __future__ import annotations

import _socket
import contextlib
import functools
import logging
import socket
from collections.abc import Iterator
from typing import Any

log = logging.getLogger("gcbpatch")

_SO_BUF_LOCK = 72
_BUFFERS = ((socket.SO_SNDBUF, 1), (socket.SO_RCVBUF, 2))
"""Buffer sizes, with the bit of SO_BUF_LOCK that tells that a program has set them."""

_IP, _TCP, _SOCKET = socket.IPPROTO_IP, socket.IPPROTO_TCP, socket.SOL_SOCKET
_IP_MTU_DISCOVER = 10
_TCP_USER_TIMEOUT = 18

# Level, option, size of the value. IP_TOS changes SO_PRIORITY, so it comes first.
_CARRIED = (
    (_IP, socket.IP_TOS, 4),
    (_IP, socket.IP_TTL, 4),
    (_IP, _IP_MTU_DISCOVER, 4),
    (_SOCKET, socket.SO_REUSEADDR, 4),
    (_SOCKET, socket.SO_REUSEPORT, 4),
    (_SOCKET, socket.SO_KEEPALIVE, 4),
    (_SOCKET, socket.SO_OOBINLINE, 4),
    (_SOCKET, socket.SO_PRIORITY, 4),
    (_SOCKET, socket.SO_MARK, 4),
    (_SOCKET, socket.SO_RCVLOWAT, 4),
    (_SOCKET, socket.SO_LINGER, 8),
    (_SOCKET, socket.SO_RCVTIMEO, 16),
    (_SOCKET, socket.SO_SNDTIMEO, 16),
    (_TCP, socket.TCP_NODELAY, 4),
    (_TCP, socket.TCP_CORK, 4),
    (_TCP, socket.TCP_KEEPIDLE, 4),
    (_TCP, socket.TCP_KEEPINTVL, 4),
    (_TCP, socket.TCP_KEEPCNT, 4),
    (_TCP, socket.TCP_LINGER2, 4),
    (_TCP, _TCP_USER_TIMEOUT, 4),
    (_TCP, socket.TCP_WINDOW_CLAMP, 4),
    (_TCP, socket.TCP_NOTSENT_LOWAT, 4),
    (_TCP, socket.TCP_CONGESTION, 16),
)

Options = tuple[tuple[int, int, Any], ...]
"""Level, option and value, in the order in which they are to be set."""

_get = _socket.socket.getsockopt


def _values(sock: _socket.socket) -> tuple[bytes, ...]:
    return tuple(_get(sock, level, option, size) for level, option, size in _CARRIED)


@functools.cache
def _defaults(family: int) -> tuple[tuple[bytes, ...], tuple[int, int]]:
    """Return the values of a fresh socket, and its buffer sizes."""
    fresh = _socket.socket(family, socket.SOCK_STREAM)
    try:
        sizes = _get(fresh, _SOCKET, socket.SO_SNDBUF), _get(fresh, _SOCKET, socket.SO_RCVBUF)
        return _values(fresh), sizes
    finally:
        fresh.close()


def changed(sock: _socket.socket) -> Options:
    """Return what a program has set on a TCP socket that is not connected."""
    defaults, sizes = _defaults(sock.family)
    pairs = zip(_CARRIED, _values(sock), defaults, strict=True)
    found = [(level, option, value) for (level, option, _), value, usual in pairs if value != usual]
    return (*found, *_changed_buffers(sock, sizes))


def inherited(listening: _socket.socket) -> Options:
    """Return what the kernel hands down from a listening socket: all but the priority."""
    found = changed(listening)
    priority = (_SOCKET, socket.SO_PRIORITY)
    handed = tuple(option for option in found if option[:2] != priority)
    # To set the service is to set a priority, too.
    with_service = any(option[:2] == (_IP, socket.IP_TOS) for option in handed)
    return (*handed, (*priority, 0)) if with_service else handed


def _changed_buffers(sock: _socket.socket, usual: tuple[int, int]) -> Options:
    """Return the buffer sizes that were set; getsockopt() tells the double of what was set."""
    found = []
    for (option, bit), size in zip(_BUFFERS, usual, strict=True):
        value = _get(sock, _SOCKET, option)
        if _locked(sock, bit, value != size):
            found.append((_SOCKET, option, value // 2))
    return tuple(found)


def _locked(sock: _socket.socket, bit: int, otherwise: bool) -> bool:
    try:
        return bool(_get(sock, _SOCKET, _SO_BUF_LOCK) & bit)
    except OSError:  # before Linux 5.14
        return otherwise


def carry(options: Options, target: _socket.socket) -> None:
    """Set ``options`` on a connection of the same program."""
    for level, option, value in options:
        try:
            _socket.socket.setsockopt(target, level, option, value)
        except OSError as error:
            # Set with a right that the program has given up since: the kernel would have
            # handed it down, but the connection is good without it.
            log.info("socket option %d of level %d not carried over: %s", option, level, error)


@contextlib.contextmanager
def shareable(sock: _socket.socket) -> Iterator[None]:
    """Let the agent listen on the port of a bound socket meanwhile, to have it dialled back."""
    level, option = socket.SOL_SOCKET, socket.SO_REUSEADDR
    was = _get(sock, level, option)
    _socket.socket.setsockopt(sock, level, option, 1)
    try:
        yield
    finally:
        if sock.fileno() >= 0:  # nobody closed it meanwhile
            _socket.socket.setsockopt(sock, level, option, was)
