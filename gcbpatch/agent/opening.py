"""Making one connection for one path: the relay's half, or another agent's port.

Either way the other end has proved the rendezvous' secret when the connection is returned:
the broker by joining the halves, another agent by its proof. It must never return a
connection whose other end did not, nor take a recorded proof for a fresh one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Coroutine
from typing import Any

from ..errors import RefusedError, RemoteProtocolError, Status
from ..wire.messages import Command, Confirm, Join, Message, Open, OpenReply, Path
from . import streams
from .broker import Broker
from .meeting import NONCE_BYTES, Meeting
from .punch import Hole

FAILURES = (OSError, RefusedError, RemoteProtocolError, TimeoutError)


async def join(broker: Broker, meeting: Meeting, hole: Hole | None = None) -> socket.socket:
    """Dial the relay and wait until it has the other half.

    With ``hole`` it is dialled from a port that the punch can use, too.
    """
    if hole is None:
        return (await _join(broker, meeting, await streams.dial(broker.relay)))[0]
    sock, reply, source = None, None, ("", 0)
    try:
        sock = await streams.dial(broker.relay, shared=True)
        source = sock.getsockname()[:2]
        sock, reply = await _join(broker, meeting, sock, hole.nonce, source[1])
    finally:
        hole.introduce(reply, source)
    return sock


async def _join(
    broker: Broker, meeting: Meeting, sock: socket.socket, nonce: bytes = b"", port: int = 0
) -> tuple[socket.socket, Message]:
    label = "join listener" if meeting.listening else "join connector"
    message = Join(meeting.name, meeting.listening, meeting.proof(label), nonce, port)
    reply = await or_close(sock, streams.ask(sock, Command.JOIN, message, broker.key))
    return sock, reply


async def open_at(path: Path, meeting: Meeting) -> socket.socket:
    """Dial another agent's port at the first of the path's addresses that takes us."""
    problem: Exception = ConnectionRefusedError("the path names no address")
    for endpoint in path.addresses:
        try:
            sock = await streams.dial(endpoint.address)
            await or_close(sock, _open(sock, meeting))
            return sock
        except FAILURES as error:
            problem = error
    raise problem


async def _open(sock: socket.socket, meeting: Meeting) -> None:
    """Say OPEN, check who answers, and prove that the OPEN was made for this connection."""
    mine = os.urandom(NONCE_BYTES)
    message = Open(meeting.name, meeting.listening, meeting.proof("open dialler", mine), mine)
    reply = await streams.ask(sock, Command.OPEN, message, None)
    if not isinstance(reply, OpenReply) or not meeting.proves(
        "open acceptor", reply.proof, mine, reply.nonce
    ):
        raise RemoteProtocolError(Status.NOT_AUTHORIZED, "who answered has no right token")
    confirm = Confirm(meeting.proof("open confirmed", mine, reply.nonce))
    await streams.say(sock, Command.CONFIRM, confirm)


async def or_close(sock: socket.socket, step: Coroutine[Any, Any, Any]) -> Any:
    """Return what ``step`` returns; close ``sock`` if it fails or is withdrawn."""
    try:
        return await step
    except BaseException:
        sock.close()
        raise
