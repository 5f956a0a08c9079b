"""Our life at the gateway: command sessions to dpfd, mappings, and their management sockets.

Each mapping has a management socket that exists exactly as long as the program's socket
does; dpfd asks it for proof when it wants to know whether the client still lives (Son &
Livny 2003, section 3). This room must never answer for a listener that the kernel has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from dataclasses import dataclass, field

from cachetools import TTLCache

from ..addresses import Address, format_address
from ..config import ClientConfig
from ..errors import EXHAUSTED, RefusedError, RemoteProtocolError, Status, errno_of
from ..wire import auth
from ..wire.codec import Kind, message_of
from ..wire.messages import (
    TCP,
    Command,
    Endpoint,
    Forward,
    ForwardReply,
    Message,
    Prove,
    ProveReply,
    Query,
    QueryReply,
    Renew,
    RenewReply,
    Session,
    SessionReply,
    Unforward,
)
from . import streams
from .acceptor import Acceptor
from .heart import Heart
from .registrants import Collection, Registrant

log = logging.getLogger("gcbpatch.agent")

RENEW_CHUNK = 64
PROVE_SECONDS = 10.0
MOST_PROOFS = 64
MOST_NEIGHBOURS = 1024
NEIGHBOUR_SECONDS = 5.0
"""How long an answer to QUERY is believed: a neighbour that goes takes its mapping with it."""
FAILURES = (OSError, RefusedError, RemoteProtocolError, TimeoutError)


@dataclass(slots=True)
class _Management:
    """The management socket of one mapping and the nonce that it proves."""

    acceptor: Acceptor
    nonce: bytes = field(repr=False)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.acceptor.socket.getsockname()[1])


class Gateway:
    """The dpfd that DPF_SERVER names."""

    def __init__(
        self, address: Address, client: bytes, config: ClientConfig, listeners: Collection
    ) -> None:
        self.address = address
        self.publics: tuple[str, ...] = ()
        self._client = client
        self._config = config
        self._key = config.key()
        self._listeners = listeners
        self._session: socket.socket | None = None
        self._turn = asyncio.Lock()
        self._managements: dict[bytes, _Management] = {}
        self._proofs: set[asyncio.Task[None]] = set()
        self._heart = Heart(config.lifetime, self._beat)
        self._silent = False
        self._neighbours: TTLCache[Address, Address | None] = TTLCache(
            MOST_NEIGHBOURS, NEIGHBOUR_SECONDS, asyncio.get_running_loop().time
        )

    @property
    def is_silent(self) -> bool:
        """Whether it did not answer when it was last asked."""
        return self._silent

    @property
    def patience(self) -> float:
        """Seconds to wait: a dpfd that has been silent gets one try, not a program's time."""
        return 0.3 if self._silent else self._config.patience

    def _note_failure(self, error: Exception, *, told: bool = False) -> None:
        """Warn once; not where the program is told, who warns itself that nothing is left."""
        level = logging.DEBUG if self._silent else logging.INFO if told else logging.WARNING
        if isinstance(error, RefusedError) and error.status is Status.UNSUPPORTED:
            level = logging.INFO  # a gateway that maps no UDP ports is nothing to warn of
        log.log(level, "dpfd at %s: %s", format_address(self.address), error or "no answer")
        self._silent = self._silent or not isinstance(error, RefusedError)

    async def reach(self) -> bool:
        """Return whether dpfd answers; its public addresses are known afterwards."""
        if self.publics:
            return True
        try:
            async with asyncio.timeout(self.patience), self._turn:
                await self._open_session()
        except FAILURES as error:
            self._note_failure(error, told=not self._config.brokers)
            return False
        return True

    async def forward(self, one: Registrant) -> bool:
        """Get a mapping for ``one``; what happened stands in it. Keeps at it from now on."""
        management = self._manage(one)
        self._heart.start()
        try:
            host = await self._local_host()
            reply = await self._ask(Command.FORWARD, self._forward(one, management, host))
        except FAILURES as error:
            told = one.protocol == TCP and not self._config.brokers
            self._note_failure(error, told=told)
            one.reason = f"dpfd: {error or 'no answer'}"
            if isinstance(error, RefusedError) and error.status in EXHAUSTED:
                one.error = errno_of(error.status)
            return False
        assert isinstance(reply, ForwardReply)
        one.proxy, one.how, one.error, one.reason = reply.public.address, "dpf", 0, ""
        self._heart.granted(reply.lifetime)
        return True

    def _forward(self, one: Registrant, management: _Management, host: str) -> Forward:
        inside = host if one.nudge_target[0] == "127.0.0.1" else one.bound[0]
        wished = one.proxy or ("0.0.0.0", one.wished)
        return Forward(
            client=self._client,
            listener=one.listener,
            protocol=one.protocol,
            inside=Endpoint(inside, one.bound[1]),
            wished=Endpoint.of(wished),
            management=Endpoint(host, management.port),
            nonce=management.nonce,
            lifetime=self._config.lifetime,
        )

    async def _local_host(self) -> str:
        async with asyncio.timeout(self.patience), self._turn:
            session = await self._open_session()
            return str(session.getsockname()[0])

    async def unforward(self, one: Registrant) -> None:
        """Take the mapping back; its management socket is gone at once in any case."""
        self.abandon(one)
        try:
            await self._ask(Command.UNFORWARD, Unforward(self._client, one.listener))
        except FAILURES as error:
            log.info("unforward at %s: %s", format_address(self.address), error or "no answer")

    def abandon(self, one: Registrant) -> None:
        """Close the management socket and try no more."""
        management = self._managements.pop(one.listener, None)
        if management is not None:
            management.acceptor.close()

    async def query(self, public: Address) -> Address | None:
        """Return where inside ``public`` leads; None when it is no mapping of the gateway's.

        What was answered is taken for true for NEIGHBOUR_SECONDS.
        """
        if public in self._neighbours:
            return self._neighbours[public]
        try:
            reply = await self._ask(Command.QUERY, Query(Endpoint.of(public), TCP))
        except FAILURES as error:
            log.info("query of %s: %s", format_address(public), error or "no answer")
            if isinstance(error, RefusedError) and error.status is Status.UNKNOWN:
                self._neighbours[public] = None
            return None
        assert isinstance(reply, QueryReply)
        self._neighbours[public] = reply.inside.address
        return reply.inside.address

    async def _ask(self, command: Command, message: Message) -> Message:
        """One request over the command session, opened again once if it has gone stale."""
        async with asyncio.timeout(self.patience), self._turn:
            session = await self._open_session()
            try:
                return await self._whole(session, command, message)
            except (OSError, RemoteProtocolError):
                session = await self._open_session()
                return await self._whole(session, command, message)

    async def _whole(self, session: socket.socket, command: Command, message: Message) -> Message:
        """One exchange; a session with half of one on it is dropped: nobody can use it."""
        try:
            return await streams.ask(session, command, message, self._key)
        except BaseException as error:
            if not isinstance(error, RefusedError):
                self._drop_session()
            raise

    async def _open_session(self) -> socket.socket:
        if self._session is not None:
            return self._session
        session = await streams.dial(self.address)
        self._session = session
        reply = await self._whole(session, Command.SESSION, Session(self._client))
        assert isinstance(reply, SessionReply)
        self.publics = tuple(reply.public)
        self._silent = False
        return session

    def _drop_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _manage(self, one: Registrant) -> _Management:
        known = self._managements.get(one.listener)
        if known is not None:
            return known
        nonce = os.urandom(16)
        sock = socket.create_server(("", 0), backlog=16)
        acceptor = Acceptor(sock, lambda asker, _: self._asked(asker, nonce))
        management = self._managements[one.listener] = _Management(acceptor, nonce)
        return management

    def _asked(self, sock: socket.socket, nonce: bytes) -> None:
        """Somebody wants proof; only so many at a time, since only dpfd has a reason to."""
        if len(self._proofs) >= MOST_PROOFS:
            sock.close()
            return
        task = asyncio.ensure_future(_prove(sock, nonce))
        self._proofs.add(task)
        task.add_done_callback(self._proofs.discard)

    async def _beat(self) -> bool:
        """Renew all mappings; goes on as long as there is one."""
        self._listeners.check()
        mine = sorted(self._managements)
        for start in range(0, len(mine), RENEW_CHUNK):
            await self._renew(mine[start : start + RENEW_CHUNK])
        return bool(self._managements)

    async def _renew(self, ids: list[bytes]) -> None:
        try:
            reply = await self._ask(Command.RENEW, Renew(self._client, ids))
        except FAILURES as error:
            self._note_failure(error)
            return
        assert isinstance(reply, RenewReply)
        for one in filter(None, map(self._listeners.get, reply.lost)):
            await self.forward(one)

    def close(self) -> None:
        """Stop; mappings are left to their lifetime and their refused management sockets."""
        self._heart.stop()
        self._drop_session()


async def _prove(sock: socket.socket, nonce: bytes) -> None:
    """Answer challenges until the asker closes."""
    with contextlib.closing(sock):
        try:
            async with asyncio.timeout(PROVE_SECONDS):
                while True:
                    await _prove_once(sock, nonce)
        except (OSError, RemoteProtocolError, TimeoutError) as error:
            log.debug("management socket: %s", error)


async def _prove_once(sock: socket.socket, nonce: bytes) -> None:
    frame = await streams.read_frame(sock)
    if frame.kind is not Kind.REQUEST or frame.command != Command.PROVE:
        await streams.reply(sock, frame, Status.UNSUPPORTED)
        raise RemoteProtocolError(Status.UNSUPPORTED, "only PROVE is taken here")
    asked = message_of(frame)
    assert isinstance(asked, Prove)
    proof = auth.proof(nonce, "management", asked.challenge)
    await streams.reply(sock, frame, Status.SUCCESS, ProveReply(proof))
