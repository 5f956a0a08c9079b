"""Making one connection for one path: the relay's half, or another agent's port.

Either way the other end has proved the rendezvous' secret when the connection is returned:
the broker by joining the halves, another agent by its proof. It must never return a
connection whose other end did not, nor take a recorded proof for a fresh one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from ..errors import RefusedError, RemoteProtocolError, Status
from ..wire import auth
from ..wire.codec import Kind, build
from ..wire.messages import Call, Command, Confirm, ConnectReply, Go, Join, Open, OpenReply, Path
from . import streams
from .broker import Broker

NONCE_BYTES = 16
FAILURES = (OSError, RefusedError, RemoteProtocolError, TimeoutError)


@dataclass(frozen=True)
class Meeting:
    """One rendezvous as one side of it knows it; ``listening`` tells which side."""

    name: bytes
    secret: bytes
    listening: bool
    paths: tuple[Path, ...]

    @classmethod
    def of(cls, arranged: Call | ConnectReply) -> Meeting:
        """Make it of what the broker said."""
        listening = isinstance(arranged, Call)
        return cls(arranged.rendezvous, arranged.secret, listening, tuple(arranged.paths))

    @property
    def go(self) -> bytes:
        """The frame after which the program's bytes follow."""
        return build(Kind.REQUEST, Command.GO, 0, Go(self.name))

    def proof(self, label: str, *nonces: bytes) -> bytes:
        """Prove the secret."""
        return auth.proof(self.secret, label, self.name, *nonces)

    def proves(self, label: str, candidate: bytes, *nonces: bytes) -> bool:
        """Return whether the other side proves the secret."""
        return auth.check_proof(self.secret, label, self.name, candidate, *nonces)


async def join(broker: Broker, meeting: Meeting) -> socket.socket:
    """Dial the relay and wait until it has the other half."""
    sock = await streams.dial(broker.relay)
    label = "join listener" if meeting.listening else "join connector"
    message = Join(meeting.name, meeting.listening, meeting.proof(label))
    await or_close(sock, streams.ask(sock, Command.JOIN, message, broker.key))
    return sock


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
