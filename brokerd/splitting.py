"""Splits relayed datagrams off the command port, in the kernel, into a queue of their own.

Commands and data come to one port, since a client may be let out to that one only. A flood of
data must not push commands out of the queue that they would share, so there are two sockets,
and a program of the kernel's packet filter chooses by the first bit (docs/protocol.md, 7.10).

The command socket has to be bound before, without SO_REUSEPORT, so that a port that is in use
is found to be. Who joins later, of the same user and on purpose, is never chosen. This room
must never read what comes.
"""

from __future__ import annotations

import array
import socket
import struct

from gcbpatch.wire.datagrams import CONTROL_BIT

_SO_ATTACH_REUSEPORT_CBPF = 51
_INSTRUCTION = struct.Struct("=HBBI")
_FPROG = struct.Struct("HP")
_LENGTH, _OCTET, _ANY_BIT, _RETURN = 0x80, 0x30, 0x45, 0x06

# The place of a socket in the group is the order in which they joined.
_COMMANDS, _DATA = 0, 1
_PROGRAM = (
    (_LENGTH, 0, 0, 0),
    (_ANY_BIT, 0, 3, 0xFFFFFFFF),
    (_OCTET, 0, 0, 0),
    (_ANY_BIT, 0, 1, CONTROL_BIT),
    (_RETURN, 0, 0, _DATA),
    (_RETURN, 0, 0, _COMMANDS),
)


def relay_socket(commands: socket.socket, buffer: int) -> socket.socket:
    """Return a socket on the command socket's port that gets what has the first bit set.

    ``buffer`` is the size of its queue in octets, as far as this user may. Raises OSError.
    """
    relay = socket.socket(commands.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        relay.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        if relay.family == socket.AF_INET6:
            relay.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _join(commands, relay)
    except OSError:
        relay.close()
        raise
    return relay


def _join(commands: socket.socket, relay: socket.socket) -> None:
    # The option stays on: the kernel looks for a group only at sockets that have it.
    for sock in (commands, relay):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    relay.bind(commands.getsockname())
    _choose(relay)


def _choose(sock: socket.socket) -> None:
    program = array.array("B", b"".join(_INSTRUCTION.pack(*one) for one in _PROGRAM))
    fprog = _FPROG.pack(len(_PROGRAM), program.buffer_info()[0])
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, fprog)
