"""The agent's own TCP port, where other agents' OPEN arrives: local, direct and reverse paths.

Nothing is handed on before the dialler has proved the secret of a rendezvous that is
expected here, and this side has proved it back. It must never keep a stranger longer than
STRANGER_SECONDS, nor more than MOST_STRANGERS of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator

from ..addresses import Address, format_address
from ..errors import RemoteProtocolError, Status
from ..wire import auth
from ..wire.codec import Kind, message_of
from ..wire.messages import Command, Open, OpenReply
from . import streams
from .acceptor import Acceptor

log = logging.getLogger("gcbpatch.agent")

STRANGER_SECONDS = 10.0
MOST_STRANGERS = 256
AHEAD_SECONDS = 2.0
"""How long an OPEN may come before the CALL that announces it: they take different ways."""


class Reception:
    """Accepts OPEN for the rendezvous that are expected."""

    def __init__(self) -> None:
        self._expected: dict[tuple[bytes, bool], tuple[bytes, asyncio.Queue[socket.socket]]] = {}
        self._announced = asyncio.Condition()
        self._strangers: set[asyncio.Task[None]] = set()
        self._refused: set[str] = set()
        self._acceptor = Acceptor(socket.create_server(("", 0), backlog=128), self._accepted)

    @property
    def port(self) -> int:
        """The port that is announced to brokers."""
        return int(self._acceptor.socket.getsockname()[1])

    @contextlib.asynccontextmanager
    async def expect(
        self, rendezvous: bytes, secret: bytes, listening: bool
    ) -> AsyncIterator[asyncio.Queue[socket.socket]]:
        """Within this context, connections that prove ``secret`` come out of the queue given.

        ``listening`` tells which side dials: one agent may be both sides of a rendezvous.
        """
        queue: asyncio.Queue[socket.socket] = asyncio.Queue()
        self._expected[rendezvous, listening] = secret, queue
        async with self._announced:
            self._announced.notify_all()
        try:
            yield queue
        finally:
            del self._expected[rendezvous, listening]
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
        entry = await self._entry(side)
        if entry is None or not auth.check_proof(
            entry[0], "open dialler", asked.rendezvous, asked.proof
        ):
            await streams.reply(sock, frame, Status.NOT_AUTHORIZED)
            raise RemoteProtocolError(Status.NOT_AUTHORIZED, "an OPEN without a right token")
        secret, queue = entry
        proof = auth.proof(secret, "open acceptor", asked.rendezvous)
        await streams.reply(sock, frame, Status.SUCCESS, OpenReply(proof))
        if side not in self._expected:
            raise ConnectionAbortedError("the rendezvous ended meanwhile")
        return queue

    async def _entry(
        self, side: tuple[bytes, bool]
    ) -> tuple[bytes, asyncio.Queue[socket.socket]] | None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AHEAD_SECONDS), self._announced:
                await self._announced.wait_for(lambda: side in self._expected)
        return self._expected.get(side)

    def close(self) -> None:
        """Stop accepting."""
        self._acceptor.close()
        for task in self._strangers:
            task.cancel()
