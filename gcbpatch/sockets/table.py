"""What is known of this process's sockets, keyed by the socket, not by its number.

An inode names a socket over dup, fork, detach and SCM_RIGHTS; SO_COOKIE tells a socket
from a later one that got the same inode. This room must never keep a socket open or alive.
"""

from __future__ import annotations

import _socket
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

from ..addresses import Address

_SO_COOKIE = 57
_LEAST_PRUNE = 256

_cookie_of = struct.Struct("=Q")
_getsockopt = _socket.socket.getsockopt


@dataclass(slots=True)
class Names:
    """The addresses that a connected socket answers with, where the kernel's are not the
    program's: None leaves it to the kernel."""

    local: Address | None
    peer: Address | None

    def release(self) -> None:
        """Nothing is held."""


def cookie_of(sock: _socket.socket) -> int:
    """Return SO_COOKIE: a number that no other socket of this boot has or will have."""
    raw: bytes = _getsockopt(sock, socket.SOL_SOCKET, _SO_COOKIE, 8)
    return int(_cookie_of.unpack(raw)[0])


def inode_of(fd: int) -> int:
    """Return the number that stays with a socket over dup, fork and SCM_RIGHTS."""
    return os.fstat(fd).st_ino


def close_if(sock: _socket.socket, inode: int) -> None:
    """Close a socket of ours, unless its number is another file's by now.

    A program may close descriptors that it has not opened (daemons close them all), and
    the kernel gives their numbers to its next files.
    """
    try:
        ours = inode_of(sock.fileno()) == inode
    except OSError:
        ours = False
    if ours:
        sock.close()
    else:
        sock.detach()


class Table:
    """State of sockets; entries of sockets that are gone are dropped as the table grows."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[int, Any]] = {}
        self._prune_at = _LEAST_PRUNE

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, sock: _socket.socket, state: Any) -> None:
        """Remember ``state`` for a socket."""
        if len(self._entries) >= self._prune_at:
            self.prune()
        self._entries[inode_of(sock.fileno())] = cookie_of(sock), state

    def find(self, sock: _socket.socket) -> Any:
        """Return what is known of a socket; None if nothing."""
        entry = self._entries.get(inode_of(sock.fileno()))
        if entry is None or entry[0] != cookie_of(sock):
            return None
        return entry[1]

    def states(self) -> list[Any]:
        """Return what is known, of all sockets."""
        return [state for _, state in self._entries.values()]

    def drop(self, sock: _socket.socket) -> None:
        """Forget a socket."""
        self._entries.pop(inode_of(sock.fileno()), None)

    def prune(self) -> None:
        """Drop the entries of sockets that this process holds no longer."""
        here = _inodes_here()
        for inode in [i for i in self._entries if i not in here]:
            self._entries.pop(inode)[1].release()
        self._prune_at = max(_LEAST_PRUNE, 2 * len(self._entries))


def _inodes_here() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the listing's own descriptor, or one that another thread closed
        if target.startswith("socket:["):
            found.add(int(target[8:-1]))
    return found
