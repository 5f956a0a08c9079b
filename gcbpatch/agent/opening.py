"""Making one connection for one path: the relay's half, or another agent's port.

Either way the other end has proved the rendezvous' secret when the connection is returned:
the broker by joining the halves, another agent by its proof. It must never return a
connection whose other end did not, nor take a recorded proof for a fresh one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from ..addresses import Address, format_address
from ..errors import RefusedError, RemoteProtocolError, Status
from ..wire.messages import Command, Confirm, Join, Open, OpenReply, Path, PathKind
from . import streams
from .attempts import Attempt, attempts
from .broker import Broker
from .halves import Half
from .meeting import NONCE_BYTES, Meeting
from .punch import Hole

log = logging.getLogger("gcbpatch.agent")

FAILURES = (OSError, RefusedError, RemoteProtocolError, TimeoutError)


class Begun:
    """A connection that is dialled while nobody knows yet what for; who takes it has it."""

    def __init__(self, sock: socket.socket, address: Address) -> None:
        self.address = address
        self._sock = sock
        self._dialling = asyncio.ensure_future(streams.connected(sock, address))
        self._is_taken = False

    async def take(self) -> socket.socket:
        """Wait until it is there; it is the caller's then. Raises OSError."""
        sock = await self._dialling
        self._is_taken = True
        return sock

    async def close(self) -> None:
        """Close it, unless somebody has taken it."""
        self._dialling.cancel()
        await asyncio.gather(self._dialling, return_exceptions=True)
        if not self._is_taken:
            self._sock.close()


class Ahead:
    """What a connector dials while it asks its broker: the relay, and where it got through before.

    The relayed half leaves from ``source``, which a punch can use, too. ``nonce`` is for that,
    and for the other side to prove itself over. Raises OSError if not even a port is to be had.
    """

    def __init__(self, relay: Address, place: Address | None) -> None:
        sock = streams.fresh(relay)
        host, port = sock.getsockname()[:2]
        self.source: Address = host, port
        self.nonce = os.urandom(NONCE_BYTES)
        self.relay = Begun(sock, relay)
        self._place = Begun(streams.fresh(place), place) if place else None
        self._all = [self.relay, *([self._place] if self._place else [])]

    async def dial(self, address: Address) -> socket.socket:
        """Return a connection to another agent's port, the one that was begun if it leads there."""
        begun = self._place
        if begun is None or begun.address != address:
            return await streams.dial(address)
        self._place = None
        log.info("%s was dialled ahead", format_address(address))
        return await begun.take()

    async def close(self) -> None:
        """Close what nobody has taken."""
        for begun in self._all:
            await begun.close()


@contextlib.asynccontextmanager
async def ahead(broker: Broker, place: Address | None) -> AsyncIterator[Ahead]:
    """Begin to dial. Raises OSError."""
    made = Ahead(broker.relay, place)
    try:
        yield made
    finally:
        await made.close()


@contextlib.asynccontextmanager
async def waiting(broker: Broker, nonce: bytes) -> AsyncIterator[Half | None]:
    """Take one that waits at the relay, the one of that nonce if possible; None without any."""
    half = await broker.halves.take(nonce)
    try:
        yield half
    finally:
        if half is not None:
            half.close()


async def join(
    broker: Broker, meeting: Meeting, hole: Hole | None, dialled: Ahead | Half | None
) -> socket.socket:
    """Have a connection to the relay, say JOIN, and wait until it has the other half.

    One is dialled if there is none yet. ``hole`` learns what the broker tells of the other side.
    """
    try:
        if isinstance(dialled, Half):
            log.info("joining on a connection that waited at %s", format_address(broker.address))
            return await _join_waiting(broker, meeting, dialled.hand_over(), hole)
        return await _join_dialled(broker, meeting, hole, dialled)
    finally:
        if hole is not None:
            hole.introduce(None, ("", 0))


async def _join_dialled(
    broker: Broker, meeting: Meeting, hole: Hole | None, dialled: Ahead | None = None
) -> socket.socket:
    """Say JOIN on what was dialled ahead, if that has lived until now, or else on a new one."""
    if dialled is not None:
        try:
            return await _join(broker, meeting, await dialled.relay.take(), hole)
        except OSError as error:
            log.info("dialling %s again: %s", format_address(broker.address), error)
    sock = await streams.dial(broker.relay, shared=True)
    return await _join(broker, meeting, sock, hole)


async def _join_waiting(
    broker: Broker, meeting: Meeting, half: socket.socket, hole: Hole | None
) -> socket.socket:
    """Say JOIN on a connection that has waited, and on a new one if nobody hears that."""
    async with attempts() as running:
        first = running.add(PathKind.RELAYED, _join(broker, meeting, half, hole))
        await asyncio.wait([first], timeout=streams.doubt(half))
        if _is_dead(first, half):
            log.info("a connection that waited at %s is dead", format_address(broker.address))
            running.add(PathKind.RELAYED, _join_dialled(broker, meeting, hole))
        while running.best is None and running.pending:
            await running.progress(math.inf)
        winner = running.best or running.failed
        del running[winner]
        return winner.result()


def _is_dead(first: Attempt, half: socket.socket) -> bool:
    """Whether what was said on ``half`` has come to nobody, as far as TCP knows."""
    if not first.done():
        return streams.is_unheard(half)
    return isinstance(first.exception(), OSError)


async def _join(
    broker: Broker, meeting: Meeting, sock: socket.socket, hole: Hole | None
) -> socket.socket:
    label = "join listener" if meeting.listening else "join connector"
    source = sock.getsockname()[:2]
    independent = hole is not None and await or_close(sock, broker.standing.mapping.settled())
    punches = (hole.nonce, source[1], independent) if hole else ()
    message = Join(meeting.name, meeting.listening, meeting.proof(label), *punches)
    reply = await or_close(sock, streams.ask(sock, Command.JOIN, message, broker.key))
    if hole is not None:
        hole.introduce(reply, source)
    return sock


async def open_at(path: Path, meeting: Meeting, dialled: Ahead | None = None) -> socket.socket:
    """Dial another agent's port at the first of the path's addresses that takes us."""
    dial = dialled.dial if dialled else streams.dial
    problem: Exception = ConnectionRefusedError("the path names no address")
    challenge = meeting.challenge if meeting.listening else b""
    for endpoint in path.addresses:
        try:
            sock = await dial(endpoint.address)
            step, challenge = _open(sock, meeting, challenge), b""
            await or_close(sock, step)
            return sock
        except FAILURES as error:
            problem = error
    raise problem


async def _open(sock: socket.socket, meeting: Meeting, challenge: bytes) -> None:
    """Say OPEN, check who answers, and prove that the OPEN was made for this connection.

    Over a ``challenge`` of the other side, which is good once, OPEN has proved that already.
    """
    mine = os.urandom(NONCE_BYTES)
    labelled = ("open called", challenge, mine) if challenge else ("open dialler", mine)
    message = Open(meeting.name, meeting.listening, meeting.proof(*labelled), mine)
    reply = await streams.ask(sock, Command.OPEN, message, None)
    if not isinstance(reply, OpenReply) or not meeting.proves(
        "open acceptor", reply.proof, mine, reply.nonce
    ):
        raise RemoteProtocolError(Status.NOT_AUTHORIZED, "who answered has no right token")
    if not challenge:
        confirm = Confirm(meeting.proof("open confirmed", mine, reply.nonce))
        await streams.say(sock, Command.CONFIRM, confirm)


async def or_close(sock: socket.socket, step: Coroutine[Any, Any, Any]) -> Any:
    """Return what ``step`` returns; close ``sock`` if it fails or is withdrawn."""
    try:
        return await step
    except BaseException:
        sock.close()
        raise
