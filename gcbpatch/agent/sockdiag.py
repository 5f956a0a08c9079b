"""The kernel's word on the end of a socket: destroy events by netlink, without privileges.

A socket ends when its last descriptor anywhere is closed: dup, fork and descriptors in
flight are respected, which no bookkeeping of ours could do. Layouts: linux/inet_diag.h.
This room must never decide what an end means.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence

from ..addresses import Address

_NETLINK_SOCK_DIAG = 4
_SOL_NETLINK = 270
_ADD_MEMBERSHIP = 1
_TCP_DESTROY_GROUPS = (1, 3)
_UDP_DESTROY_GROUPS = (2, 4)
"""Each for IPv4 and for IPv6."""
_SO_ATTACH_FILTER = 26
_HEADER = struct.Struct("=IHHII")
_SPORT_AT = 20
"""netlink header (16), and four bytes of inet_diag_msg."""
_DPORT_AT = 22
_COOKIE_AT = 60
_INSTRUCTION = struct.Struct("HBBI")
Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, constant (linux/filter.h)."""
_SOCK_DIAG_BY_FAMILY = 20
_DUMP_FLAGS = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_TCP_LISTEN = 10
_TCP_SYN_RECV = 3
_STATE_AT = 17
"""netlink header (16), family."""
_REQUEST = struct.Struct("=BBBBI")
_DUMP_SECONDS = 2.0
_REQUEST_FLAG = 1
_NO_COOKIE = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
"""No interface, and INET_DIAG_NOCOOKIE twice: whatever the socket's cookie is."""
_UNREAD_AT = 72
"""netlink header (16), four bytes, the socket's id (48), expires."""
_INODE_AT = _UNREAD_AT + 12
"""Two queues, uid."""

# Load the destination port; keep the event only if it is 0: a listener never had a peer.
# Without this every connection that ends on this machine would wake the agent.
_ONLY_LISTENERS = ((0x28, 0, 0, _DPORT_AT), (0x15, 0, 1, 0), (0x06, 0, 0, 0xFFFFFFFF), (6, 0, 0, 0))


_MOST_PORTS = 64
"""Above this many ports, it is cheaper to look at every event than to compare."""


def open_events() -> socket.socket:
    """Return a non-blocking netlink socket that reports listeners' ends; raises OSError."""
    return _open(_TCP_DESTROY_GROUPS, _ONLY_LISTENERS)


def open_datagram_events() -> socket.socket:
    """Return one that reports the ends of UDP sockets on the ports given to only_ports()."""
    return _open(_UDP_DESTROY_GROUPS, _of_ports(()))


def only_ports(events: socket.socket, ports: Iterable[int]) -> None:
    """Have events of other local ports dropped: they must not wake the agent."""
    _attach(events, _of_ports(sorted(set(ports))))


def _of_ports(ports: Sequence[int]) -> Sequence[Instruction]:
    everything: Instruction = (0x06, 0, 0, 0xFFFFFFFF)
    if len(ports) > _MOST_PORTS:
        return (everything,)
    # A match jumps over the rest of the comparisons and over the refusal behind them.
    tests = [(0x15, len(ports) - i, 0, port) for i, port in enumerate(ports)]
    return ((0x28, 0, 0, _SPORT_AT), *tests, (0x06, 0, 0, 0), everything)


def _open(groups: Sequence[int], program: Sequence[Instruction]) -> socket.socket:
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    try:
        events.setblocking(False)
        _attach(events, program)
        events.bind((0, 0))
        for group in groups:
            events.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except OSError:
        events.close()
        raise
    return events


def _attach(events: socket.socket, program: Sequence[Instruction]) -> None:
    buffer = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*i) for i in program))
    fprog = struct.pack("HP", len(program), ctypes.addressof(buffer))
    events.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


def ended(data: bytes) -> Iterator[int]:
    """Yield the cookies of the sockets whose end ``data`` (one netlink datagram) tells."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind = _HEADER.unpack_from(data, offset)[:2]
        if kind != _SOCK_DIAG_BY_FAMILY or offset + length > len(data):
            return
        if length < _COOKIE_AT + 8:
            return
        low, high = struct.unpack_from("=II", data, offset + _COOKIE_AT)
        yield low | high << 32
        offset += (length + 3) & ~3


def read_ended(events: socket.socket) -> tuple[set[int], bool]:
    """Return the cookies of all ends told since, and whether the kernel has lost some."""
    found: set[int] = set()
    try:
        while True:
            found.update(ended(events.recv(65536)))
    except BlockingIOError:
        return found, False
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
        return found, True


def listening() -> set[int]:
    """Return the cookies of all sockets in this network namespace that listen for TCP.

    For when events were lost, and now and then to be sure. Raises OSError.
    """
    return _dump(socket.IPPROTO_TCP, 1 << _TCP_LISTEN)


def datagram_sockets() -> set[int]:
    """Return the cookies of all UDP sockets in this network namespace; raises OSError."""
    return _dump(socket.IPPROTO_UDP, 0xFFFFFFFF)


def _dump(protocol: int, states: int) -> set[int]:
    found: set[int] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as diag:
        diag.settimeout(_DUMP_SECONDS)
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, protocol, 0, 0, states) + bytes(48)
            header = _HEADER.pack(
                _HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _DUMP_FLAGS, family, 0
            )
            diag.send(header + request)
            while _read_dump(diag.recv(65536), found):
                pass
    return found


def accepted(local: Address, peer: Address) -> tuple[int, int] | None:
    """Return the inode of the connection that stands at ``local``, and its octets not yet read.

    None if no process has accepted it: one that waits in a backlog stands on no file, and its
    inode is 0. IPv4 addresses are so also where the listening socket is a dual-stack one.
    Raises OSError.
    """
    data = _look_up(local, peer, _NO_COOKIE)
    if data is None or len(data) < _INODE_AT + 4:
        return None
    unread, _, _, inode = struct.unpack_from("=IIII", data, _UNREAD_AT)
    return (inode, unread) if inode else None


def is_half_open(local: Address, peer: Address) -> bool:
    """Return whether a listening socket at ``local`` has a first packet from ``peer``, no more.

    IPv4 addresses are so also where it is a dual-stack one. Raises OSError.
    """
    data = _look_up(local, peer, _NO_COOKIE)
    return data is not None and len(data) > _STATE_AT and data[_STATE_AT] == _TCP_SYN_RECV


def listens(local: Address, cookie: int) -> bool:
    """Return whether who would answer at ``local`` is the socket ``cookie``.

    No is not the last word: where several share a port, another may have been found. Raises
    OSError.
    """
    wanted = struct.pack("=III", 0, cookie & 0xFFFFFFFF, cookie >> 32)
    nobody = "::" if ":" in local[0] else "0.0.0.0"
    return _look_up(local, (nobody, 0), wanted) is not None


def _look_up(local: Address, peer: Address, cookie: bytes) -> bytes | None:
    """Ask for one TCP socket; returns its message, None if there is none with that cookie."""
    ports = struct.pack("!HH", local[1], peer[1])
    family = socket.AF_INET6 if ":" in local[0] else socket.AF_INET
    hosts = b"".join(socket.inet_pton(family, a[0]).ljust(16, b"\0") for a in (local, peer))
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
    request += ports + hosts + cookie
    header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_FLAG, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as diag:
        diag.settimeout(_DUMP_SECONDS)
        diag.send(header + request)
        data = diag.recv(65536)
    return data if _HEADER.unpack_from(data)[1] == _SOCK_DIAG_BY_FAMILY else None


def _read_dump(data: bytes, found: set[int]) -> bool:
    """Add the cookies of one datagram of a dump; return whether more comes."""
    found.update(ended(data))
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind = _HEADER.unpack_from(data, offset)[:2]
        if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < _HEADER.size:
            return False
        offset += (length + 3) & ~3
    return True
