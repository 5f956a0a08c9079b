"""Connections of the agent before a program owns them: dial, exact frames, refuse.

Every read takes exactly the bytes of the frame it is for, since the next byte belongs to
the program. It must never keep a connection that it hands on.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios

from ..addresses import Address
from ..errors import RefusedError, RemoteProtocolError, Status
from ..wire import auth
from ..wire.codec import Frame, Kind, build, message_of, parse, status_of
from ..wire.messages import Command, Message
from ..wire.session import FrameReader

LEAST_DOUBT = 0.25
_RTT = struct.Struct("=I")
_RTT_AT = 68  # struct tcp_info, tcpi_rtt, in microseconds
_RESET = struct.pack("ii", 1, 0)


def shared(source: Address) -> socket.socket:
    """Return a socket on a port that other sockets of ours are on, too; raises OSError."""
    family = socket.AF_INET6 if ":" in source[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        _share(sock, 1)
        sock.bind(source)
    except BaseException:
        sock.close()
        raise
    return sock


def _share(sock: socket.socket, value: int) -> None:
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        sock.setsockopt(socket.SOL_SOCKET, option, value)


def unshare(sock: socket.socket) -> socket.socket:
    """Make a socket again what a program's own would be, and return it."""
    _share(sock, 0)
    hurry(sock, 0)
    return sock


def hurry(sock: socket.socket, value: int = 1) -> None:
    """Have frames that follow each other leave at once: no ACK is waited for (RFC 896)."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, value)


async def dial(
    address: Address, source: Address | None = None, shared: bool = False
) -> socket.socket:
    """Connect to ``address``; raises OSError. The socket is closed if this is cancelled.

    With ``shared`` others may be bound to the same port afterwards; it is nobody else's now.
    """
    if shared:
        return await connected(fresh(address), address)
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if source is not None:
            sock.bind(source)
    except BaseException:
        sock.close()
        raise
    return await connected(sock, address)


def fresh(address: Address) -> socket.socket:
    """Return a socket to reach ``address``, on a port that is nobody's, and may be shared now."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(("", 0))
        _share(sock, 1)
    except BaseException:
        sock.close()
        raise
    return sock


async def connected(sock: socket.socket, address: Address) -> socket.socket:
    """Connect it and return it; it is closed if that fails or is withdrawn."""
    try:
        hurry(sock)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def read_frame(sock: socket.socket) -> Frame:
    """Read exactly one frame; raises RemoteProtocolError or ConnectionError."""
    loop = asyncio.get_running_loop()
    reader = FrameReader()
    while True:
        data = await loop.sock_recv(sock, reader.wants)
        if not data:
            raise ConnectionResetError("closed before a whole frame came")
        frame = reader.feed(data)
        if frame is not None:
            return frame


async def ask(
    sock: socket.socket, command: Command, message: Message, key: auth.Key | None
) -> Message:
    """Send a request as first frame and return the reply.

    Raises RefusedError for a status other than SUCCESS, RemoteProtocolError, OSError.
    """
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, auth.sealed(key, Kind.REQUEST, command, 0, message))
    frame = await read_frame(sock)
    if frame.kind is not Kind.REPLY or frame.command != command:
        raise RemoteProtocolError(Status.MALFORMED, f"no reply to {command.name}")
    auth.check_reply(frame, key)
    if status_of(frame) is not Status.SUCCESS:
        raise RefusedError(status_of(frame), command.name)
    return message_of(frame)


async def say(sock: socket.socket, command: Command, message: Message) -> None:
    """Send a request that has no reply; never sealed, since such prove the secret in their body."""
    frame = build(Kind.REQUEST, command, 0, message)
    await asyncio.get_running_loop().sock_sendall(sock, frame)


async def read_message(sock: socket.socket, command: Command) -> Message:
    """Read a request that has no reply; raises RemoteProtocolError for any other frame."""
    frame = await read_frame(sock)
    if frame.kind is not Kind.REQUEST or frame.command != command:
        raise RemoteProtocolError(Status.MALFORMED, f"something else than {command.name}")
    return message_of(frame)


async def reply(
    sock: socket.socket, frame: Frame, status: Status, message: Message | None = None
) -> None:
    """Answer a request on a stream, without a MAC: proofs stand in the messages."""
    answer = auth.reply_to(frame, None, status, message)
    await asyncio.get_running_loop().sock_sendall(sock, answer)


async def ready_bytes(sock: socket.socket, frame: bytes) -> bool:
    """Wait until one frame lies in the receive queue; take it only if it is ``frame``.

    Returns False when the peer closed or sent something else.
    """
    got = await read_frame(sock)
    acknowledge(sock)
    return got == parse(frame)


def acknowledge(sock: socket.socket) -> None:
    """Let go of an acknowledgement that TCP holds back to send it along with an answer.

    There is no answer to GO, and the program's first bytes would wait 40 ms for it (RFC 896
    and RFC 1122, 4.2.3.2).
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def reset(sock: socket.socket) -> None:
    """Close so that the peer sees RST: nobody read what it sent."""
    linger_not(sock)
    sock.close()


def linger_not(sock: socket.socket) -> None:
    """Let the peer see RST when this socket is closed."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def doubt(sock: socket.socket) -> float:
    """Return after how many seconds without an acknowledgement a connection may be dead."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_AT + _RTT.size)
    return max(LEAST_DOUBT, 3 * float(_RTT.unpack_from(info, _RTT_AT)[0]) / 1e6)


def is_unheard(sock: socket.socket) -> bool:
    """Return whether something that was said has not been acknowledged by the peer's TCP."""
    octets = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    return struct.unpack("i", octets)[0] > 0


async def readable(sock: socket.socket) -> None:
    """Wait until there is something to read, an end or an error among it."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.add_reader(sock, _settle, future)
    try:
        await future
    finally:
        loop.remove_reader(sock)


async def writable(sock: socket.socket) -> None:
    """Wait until a connect has ended, well or not."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.add_writer(sock, _settle, future)
    try:
        await future
    finally:
        loop.remove_writer(sock)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
