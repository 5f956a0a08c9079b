"""What is known of this process's sockets, keyed by the socket, not by its number.

SO_COOKIE names a socket over dup, fork, detach and SCM_RIGHTS, and no later one gets the same.
This room must never keep a socket open or alive.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import socket
import struct
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_SO_COOKIE = 57
_INET, _STREAM = socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK
_LEAST_PRUNE = 256

_cookie_of = struct.Struct("=Q")
_getsockopt = _socket.socket.getsockopt


@dataclass(slots=True)
class Names:
    """The addresses that a connected socket answers with, where the kernel's are not the
    program's: None leaves it to the kernel."""

    local: Any
    peer: Any
    fresh: bool = False
    """Connected just now: one more connect() succeeds, as the kernel has it."""

    def release(self) -> None:
        """Nothing is held."""


def cookie_of(sock: _socket.socket) -> int:
    """Return SO_COOKIE: a number that no other socket of this boot has or will have."""
    raw: bytes = _getsockopt(sock, socket.SOL_SOCKET, _SO_COOKIE, 8)
    return int(_cookie_of.unpack(raw)[0])


def is_same(sock: _socket.socket, cookie: int) -> bool:
    """As is_still(), by the cookie: quicker, and a later file never has the same."""
    try:
        return cookie_of(sock) == cookie
    except OSError:
        return False


def inode_of(fd: int) -> int:
    """Return the number by which /proc names a socket; it stays over dup, fork and SCM_RIGHTS."""
    return os.fstat(fd).st_ino


def is_still(sock: _socket.socket, inode: int) -> bool:
    """Return whether a socket's number still stands for the file that it was.

    A program may close descriptors that it has not opened (daemons close them all), and
    the kernel gives their numbers to its next files.
    """
    try:
        return inode_of(sock.fileno()) == inode
    except OSError:
        return False


def close_if(sock: _socket.socket, inode: int) -> None:
    """Close a socket of ours, unless its number is another file's by now."""
    if is_still(sock, inode):
        sock.close()
    else:
        sock.detach()


class Table:
    """State of sockets; entries of sockets that are gone are dropped as the table grows."""

    def __init__(self) -> None:
        self._entries: dict[int, Any] = {}
        self._prune_at = _LEAST_PRUNE

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, sock: _socket.socket, state: Any) -> None:
        """Remember ``state`` for a socket."""
        if len(self._entries) >= self._prune_at:
            self.prune()
        self._entries[cookie_of(sock)] = state

    def find(self, sock: _socket.socket) -> Any:
        """Return what is known of a socket; None if nothing."""
        return self._entries.get(cookie_of(sock))

    def drop(self, cookie: int) -> None:
        """Forget a socket."""
        self._entries.pop(cookie, None)

    def states(self) -> list[Any]:
        """Return what is known, of all sockets."""
        return list(self._entries.values())

    def prune(self) -> None:
        """Drop the entries of sockets that this process holds no longer."""
        here = set(_cookies_here())
        for cookie in [c for c in self._entries if c not in here]:
            self._entries.pop(cookie).release()
        self._prune_at = max(_LEAST_PRUNE, 2 * len(self._entries))


class Twins:
    """Sockets that were made of the descriptor of an unconnected one: it may have others."""

    def __init__(self) -> None:
        self._by_inode: dict[int, weakref.WeakSet[Any]] = {}

    def note(self, sock: Any) -> None:
        """Remember a socket that may be another one, too."""
        if len(self._by_inode) >= _LEAST_PRUNE:
            self._by_inode = {inode: known for inode, known in self._by_inode.items() if known}
        self._by_inode.setdefault(inode_of(sock.fileno()), weakref.WeakSet()).add(sock)

    def take(self, sock: Any) -> tuple[list[Any], list[int]]:
        """Return the other objects, and all other numbers, that are this socket."""
        inode = inode_of(sock.fileno())
        known = self._by_inode.pop(inode, None)
        if known is None:
            return [], []
        mine = sock.fileno()
        numbers = [number for number, one in _sockets_here() if one == inode and number != mine]
        return [one for one in known if one.fileno() in numbers], numbers


def _cookies_here() -> Iterator[int]:
    """Yield the cookie of every socket of this process."""
    for number, _ in _sockets_here():
        with contextlib.suppress(OSError):  # another thread has closed it
            # Said to be non-blocking, it is taken as it is: socket.setdefaulttimeout() would
            # have a new object change its file. The rest is not looked at.
            sock = _socket.socket(_INET, _STREAM, 0, number)
            try:
                yield cookie_of(sock)
            finally:
                sock.detach()


def _sockets_here() -> Iterator[tuple[int, int]]:
    """Yield number and inode of every socket of this process."""
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the listing's own descriptor, or one that another thread closed
        if target.startswith("socket:["):
            yield int(name), int(target[8:-1])
