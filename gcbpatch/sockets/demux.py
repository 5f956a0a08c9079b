"""Splits the control datagrams off a program's UDP port, in the kernel.

A sibling socket on the same port, held by the agent, gets what begins with the port's magic.
A filter on the program's own socket drops what the sibling does not take: what comes while
the program's socket is connected, and, when it is connected through the relay, everybody else.
The filter also carries, in instructions without effect, what a process has to know that gets
the socket by fork, exec or SCM_RIGHTS (SO_GET_FILTER gives it back). Layouts: linux/filter.h.

This room must never leave SO_REUSEPORT on where a program could see it.
"""

from __future__ import annotations

import _socket
import ctypes
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..addresses import Address, pack_host, unpack_host
from ..wire.datagrams import HEADER_4, HEADER_6, REFUSED_4, REFUSED_6, direct, tag, whole

_SO_ATTACH_REUSEPORT_CBPF = 51
_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
_MOST_INSTRUCTIONS = 4096
_INSTRUCTION = struct.Struct("=HBBI")
_MAGIC = struct.Struct(">II")
_FPROG = struct.Struct("HP")

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, constant."""

# Load a constant, the length, a word, a half, an octet; jump if equal, if at least; return.
_IMM, _LEN, _WORD, _HALF, _OCTET = 0x00, 0x80, 0x20, 0x28, 0x30
_EQUAL, _LEAST, _RETURN = 0x15, 0x35, 0x06
_EVERYTHING = 0xFFFFFFFF
_UDP_HEADER = 8
_SOURCE_HOST, _SOURCE_HOST_6 = 0xFFF00000 + 12, 0xFFF00000 + 8
"""SKF_NET_OFF and where IPv4, and IPv6, has its source address."""
_IS_V6 = 0x10000
"""In a word that carries a port: its host has four words."""
_ADDRESS_WORDS = 5
_CARRIED = 7 + 3 * _ADDRESS_WORDS
_LABEL = 0x47434275
"""Says that a filter is one of ours: "GCBu"."""

# Called without letting other threads run, so that one buffer is enough for all.
_getsockopt = ctypes.PyDLL(None).getsockopt
_buffer = ctypes.create_string_buffer(_MOST_INSTRUCTIONS * _INSTRUCTION.size)
_base = _socket.socket


NOWHERE: Address = ("0.0.0.0", 1)
"""The relay of a port that has none, since it is reached by its own address."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a registered socket carries along. ``peer`` is whom it is connected to by relay."""

    magic: bytes
    listener: bytes
    public: Address
    relay: Address
    peer: Address | None = None


def attach(sock: _socket.socket, label: Label) -> None:
    """Put the filter and the label on the program's socket; raises OSError."""
    words = [_LABEL, *_MAGIC.unpack(label.magic), *struct.unpack(">4I", label.listener)]
    for address in (label.public, label.relay, label.peer):
        words += _words_of(address)
    carried: list[Instruction] = [(_IMM, 0, 0, word) for word in words]
    rule = _only(label) if label.peer else _without(label)
    _set(sock, _SO_ATTACH_FILTER, [*carried, *rule])


def label_of(sock: _socket.socket) -> Label | None:
    """Return what attach() put on a socket, in whatever process; None if it is not ours."""
    program = _filter_of(_base.fileno(sock))
    if len(program) < _CARRIED or program[0] != (_IMM, 0, 0, _LABEL):
        return None
    words = [constant for _, _, _, constant in program[1:_CARRIED]]
    starts = range(6, len(words), _ADDRESS_WORDS)
    addresses = [_address_of(*words[at : at + _ADDRESS_WORDS]) for at in starts]
    magic, listener = _MAGIC.pack(*words[:2]), struct.pack(">4I", *words[2:6])
    public, relay, peer = addresses
    if public is None or relay is None:
        return None
    return Label(magic, listener, public, relay, peer)


def has_filter(sock: _socket.socket) -> bool:
    """Return whether the program has put a filter of its own on a socket."""
    return bool(_filter_of(_base.fileno(sock)))


def detach(sock: _socket.socket) -> None:
    """Take the filter off again, and what sibling_of() has left."""
    if sock.family == socket.AF_INET6:
        _base.setsockopt(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
    _base.setsockopt(sock, socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def connected(sock: _socket.socket, label: Label, peer: Address | None) -> Label:
    """Let only ``peer``'s datagrams from the relay come, or again everybody's with None."""
    changed = replace(label, peer=peer)
    attach(sock, changed)
    return changed


def sibling_of(sock: _socket.socket, magic: bytes) -> _socket.socket:
    """Return a socket on the same port that gets what begins with ``magic``; raises OSError.

    The program's socket was bound without SO_REUSEPORT, so nobody else is there. It has the
    option only while the sibling joins: the kernel asks the one that it finds first, the
    sibling, whether there is a group. By IPv6 it finds the program's first, which has to keep
    the option then; who looks at it is told otherwise.
    """
    sibling = _base(sock.family, socket.SOCK_DGRAM)
    try:
        _base.setsockopt(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _join(sibling, sock, magic)
    except OSError:
        sibling.close()
        _base.setsockopt(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
        raise
    if sock.family == socket.AF_INET:
        _base.setsockopt(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
    return sibling


def _join(sibling: _socket.socket, sock: _socket.socket, magic: bytes) -> None:
    sibling.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if sock.family == socket.AF_INET6:  # or it would not be one of the group
        only = _base.getsockopt(sock, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        sibling.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
    device = _base.getsockopt(sock, socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 64)
    if device:
        sibling.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
    # Before it is bound: what comes until the group can choose must not wait in its queue.
    _set(sibling, _SO_ATTACH_FILTER, _matching(magic, _UDP_HEADER, yes=_EVERYTHING, no=0))
    sibling.bind(_base.getsockname(sock))
    _set(sibling, _SO_ATTACH_REUSEPORT_CBPF, _matching(magic, 0, yes=1, no=0))


def _matching(magic: bytes, at: int, yes: int, no: int) -> list[Instruction]:
    """Return ``yes`` for what has the magic at ``at``, else ``no``."""
    first, second = _MAGIC.unpack(magic)
    return [
        (_LEN, 0, 0, 0),
        (_LEAST, 0, 5, at + 8),
        (_WORD, 0, 0, at),
        (_EQUAL, 0, 3, first),
        (_WORD, 0, 0, at + 4),
        (_EQUAL, 0, 1, second),
        (_RETURN, 0, 0, yes),
        (_RETURN, 0, 0, no),
    ]


def _without(label: Label) -> list[Instruction]:
    """Everything but what the sibling takes, and the relay's word that a peer refused.

    The kernel tells an unconnected socket nothing of refusals, either.
    """
    first, second = _MAGIC.unpack(label.magic)
    refusal = REFUSED_6 if ":" in label.relay[0] else REFUSED_4
    relays = _all_equal([(_OCTET, _UDP_HEADER, refusal), *_from(label.relay)])
    return [
        (_LEN, 0, 0, 0),
        (_LEAST, 0, 5 + len(relays), _UDP_HEADER + 8),
        (_WORD, 0, 0, _UDP_HEADER),
        (_EQUAL, 0, 2, first),
        (_WORD, 0, 0, _UDP_HEADER + 4),
        (_EQUAL, len(relays), 0, second),
        *relays,
        (_RETURN, 0, 0, 0),
        (_RETURN, 0, 0, _EVERYTHING),
    ]


def _only(label: Label) -> list[Instruction]:
    """Nothing but what has the peer's tag, and frames from the relay whose header names it."""
    assert label.peer is not None
    v6 = ":" in label.peer[0]
    words = enumerate(_host_words(label.peer[0]))
    tests = [
        *_from(label.relay),
        (_HALF, _UDP_HEADER + 2, label.peer[1]),
        *((_WORD, _UDP_HEADER + 4 + 4 * number, word) for number, word in words),
    ]
    named = _all_equal(tests)
    program: list[Instruction] = [
        (_LEN, 0, 0, 0),
        (_LEAST, 0, len(named) + 1, _UDP_HEADER + (HEADER_6 if v6 else HEADER_4)),
        *named,
        (_RETURN, 0, 0, _EVERYTHING),
        (_RETURN, 0, 0, 0),
    ]
    return program if v6 else [*_directed(label), *program]


def _directed(label: Label) -> list[Instruction]:
    """Let in what has the peer's tag; other datagrams are looked at further."""
    assert label.peer is not None
    header = whole(label.peer)
    before = struct.unpack(">4I", direct(header, tag(label.listener, header)))
    direct_tests = [(_WORD, _UDP_HEADER + 4 * n, word) for n, word in enumerate(before)]
    directed: list[Instruction] = [(_LEN, 0, 0, 0), (_LEAST, 0, 9, 24)]
    for number, (load, at, value) in enumerate(direct_tests):
        directed += [(load, 0, 0, at), (_EQUAL, 0, 2 * (4 - number) - 1, value)]
    return [*directed, (_RETURN, 0, 0, _EVERYTHING)]


Test = tuple[int, int, int]
"""How to load, from where, and what has to be there."""


def _from(source: Address) -> list[Test]:
    """What is true of a datagram from there."""
    at = _SOURCE_HOST_6 if ":" in source[0] else _SOURCE_HOST
    words = enumerate(_host_words(source[0]))
    return [*((_WORD, at + 4 * number, word) for number, word in words), (_HALF, 0, source[1])]


def _all_equal(tests: Sequence[Test]) -> list[Instruction]:
    """Go on behind these if all are true, and one instruction further on if not."""
    program: list[Instruction] = []
    for number, (load, at, value) in enumerate(tests):
        program += [(load, 0, 0, at), (_EQUAL, 0, 2 * (len(tests) - number) - 1, value)]
    return program


def _host_words(host: str) -> tuple[int, ...]:
    packed = pack_host(host)
    return struct.unpack(f">{len(packed) // 4}I", packed)


def _words_of(address: Address | None) -> tuple[int, ...]:
    if address is None:
        return (0,) * _ADDRESS_WORDS
    words, port = _host_words(address[0]), address[1]
    return (port | _IS_V6 if len(words) == 4 else port, *words, *(0,) * (4 - len(words)))


def _address_of(port: int, *words: int) -> Address | None:
    size = 4 if port & _IS_V6 else 1
    host = struct.pack(f">{size}I", *words[:size])
    return (unpack_host(host), port & ~_IS_V6) if port else None


def _set(sock: _socket.socket, option: int, program: Sequence[Instruction]) -> None:
    octets = b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(octets, len(octets))
    fprog = _FPROG.pack(len(program), ctypes.addressof(buffer))
    _base.setsockopt(sock, socket.SOL_SOCKET, option, fprog)


def _filter_of(fd: int) -> list[Instruction]:
    """Return the filter on a socket; empty if there is none, or one that cannot be read.

    Not getsockopt() of Python, whose buffer would have as many octets as the kernel takes
    for instructions.
    """
    count = ctypes.c_uint(_MOST_INSTRUCTIONS)
    if _getsockopt(fd, socket.SOL_SOCKET, _SO_ATTACH_FILTER, _buffer, ctypes.byref(count)):
        return []
    octets = ctypes.string_at(_buffer, count.value * _INSTRUCTION.size)
    return list(_INSTRUCTION.iter_unpack(octets))
