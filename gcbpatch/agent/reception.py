"""The agent's own TCP port, where other agents' OPEN arrives: local, direct and reverse paths.

Nothing is handed on before the dialler has proved the secret of a rendezvous that is
expected here, over a nonce of ours, and this side has proved it back. It must never keep a
stranger longer than STRANGER_SECONDS, nor more than MOST_STRANGERS of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator

from ..addresses import Address, format_address
from ..errors import RemoteProtocolError, Status
from ..wire.codec import Frame, Kind, message_of
from ..wire.messages import Command, Confirm, Open, OpenReply
from . import streams
from .acceptor import Acceptor
from .meeting import NONCE_BYTES, Meeting

log = logging.getLogger("gcbpatch.agent")

STRANGER_SECONDS = 10.0
MOST_STRANGERS = 256
BACKLOG = 128
PORT_TRIES = 16
AHEAD_SECONDS = 2.0
"""How long an OPEN may come before the CALL that announces it: they take different ways."""


def _listening() -> list[socket.socket]:
    """Return a listening socket by IPv4 and, where there is IPv6, one on the same port by that.

    One socket for both would give programs IPv4 connections on IPv6 sockets. Raises OSError.
    """
    for _ in range(PORT_TRIES):
        found = [socket.create_server(("", 0), backlog=BACKLOG)]
        port = found[0].getsockname()[1]
        try:
            found.append(socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                found[0].close()
                continue
        return found
    return [socket.create_server(("", 0), backlog=BACKLOG)]


class Reception:
    """Accepts OPEN for the rendezvous that are expected."""

    def __init__(self) -> None:
        self._expected: dict[
            tuple[bytes, bool], tuple[Meeting, asyncio.Queue[socket.socket]]
        ] = {}
        self._answered: set[bytes] = set()
        """Challenges of those that are expected, over which somebody has proved himself."""
        self._announced = asyncio.Condition()
        self._strangers: set[asyncio.Task[None]] = set()
        self._refused: set[str] = set()
        socks = _listening()
        self.port: int = socks[0].getsockname()[1]
        """The port that is announced to brokers."""
        self._acceptors = [Acceptor(sock, self._accepted) for sock in socks]

    @contextlib.asynccontextmanager
    async def expect(
        self, meeting: Meeting, listening: bool
    ) -> AsyncIterator[asyncio.Queue[socket.socket]]:
        """Within this context, connections that prove the secret come out of the queue given.

        ``listening`` tells which side dials: one agent may be both sides of a rendezvous.
        """
        queue: asyncio.Queue[socket.socket] = asyncio.Queue()
        self._expected[meeting.name, listening] = meeting, queue
        async with self._announced:
            self._announced.notify_all()
        try:
            yield queue
        finally:
            del self._expected[meeting.name, listening]
            self._answered.discard(meeting.challenge)
            while not queue.empty():
                queue.get_nowait().close()

    def _accepted(self, sock: socket.socket, address: Address) -> None:
        if len(self._strangers) >= MOST_STRANGERS:
            streams.reset(sock)
            return
        task = asyncio.ensure_future(self._receive(sock, address))
        self._strangers.add(task)
        task.add_done_callback(self._strangers.discard)

    async def _receive(self, sock: socket.socket, address: Address) -> None:
        try:
            streams.hurry(sock)
            async with asyncio.timeout(STRANGER_SECONDS):
                queue = await self._prove(sock)
        except (OSError, RemoteProtocolError) as error:
            self._complain(address, error)
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            queue.put_nowait(sock)

    def _complain(self, address: Address, error: Exception) -> None:
        """Log a stranger once by its host, and not more strangers than fit in here."""
        if address[0] not in self._refused and len(self._refused) < MOST_STRANGERS:
            self._refused.add(address[0])
            log.warning("agent port: refused %s: %s", format_address(address), error)

    async def _prove(self, sock: socket.socket) -> asyncio.Queue[socket.socket]:
        frame = await streams.read_frame(sock)
        if frame.kind is not Kind.REQUEST or frame.command != Command.OPEN:
            await streams.reply(sock, frame, Status.UNSUPPORTED)
            raise RemoteProtocolError(Status.UNSUPPORTED, "only OPEN is taken here")
        asked = message_of(frame)
        assert isinstance(asked, Open)
        side = asked.rendezvous, asked.listening
        meeting, queue = await self._entry(side) or (None, None)
        if meeting is not None and self._is_answer(asked, meeting):
            await self._reply(sock, frame, asked.nonce, meeting)
        elif meeting is not None and meeting.proves("open dialler", asked.proof, asked.nonce):
            await self._challenge(sock, frame, asked.nonce, meeting)
        else:
            await streams.reply(sock, frame, Status.NOT_AUTHORIZED)
            raise RemoteProtocolError(Status.NOT_AUTHORIZED, "an OPEN without a right token")
        if queue is None or side not in self._expected:
            raise ConnectionAbortedError("the rendezvous ended meanwhile")
        return queue

    def _is_answer(self, asked: Open, meeting: Meeting) -> bool:
        """Whether it proves the secret over the challenge that the listener was sent; once."""
        challenge = meeting.challenge
        if meeting.listening or not challenge or challenge in self._answered:
            return False
        if not meeting.proves("open called", asked.proof, challenge, asked.nonce):
            return False
        self._answered.add(challenge)
        return True

    async def _reply(
        self, sock: socket.socket, frame: Frame, theirs: bytes, meeting: Meeting
    ) -> bytes:
        """Prove ourselves, over a nonce which is returned."""
        mine = os.urandom(NONCE_BYTES)
        proof = meeting.proof("open acceptor", theirs, mine)
        await streams.reply(sock, frame, Status.SUCCESS, OpenReply(proof, mine))
        return mine

    async def _challenge(
        self, sock: socket.socket, frame: Frame, theirs: bytes, meeting: Meeting
    ) -> None:
        """Prove ourselves, and have the dialler prove that its OPEN is not a recorded one."""
        mine = await self._reply(sock, frame, theirs, meeting)
        confirm = await streams.read_message(sock, Command.CONFIRM)
        if not isinstance(confirm, Confirm) or not meeting.proves(
            "open confirmed", confirm.proof, theirs, mine
        ):
            raise RemoteProtocolError(Status.NOT_AUTHORIZED, "an OPEN that was played back")

    async def _entry(
        self, side: tuple[bytes, bool]
    ) -> tuple[Meeting, asyncio.Queue[socket.socket]] | None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AHEAD_SECONDS), self._announced:
                await self._announced.wait_for(lambda: side in self._expected)
        return self._expected.get(side)

    def close(self) -> None:
        """Stop accepting."""
        for acceptor in self._acceptors:
            acceptor.close()
        for task in self._strangers:
            task.cancel()
