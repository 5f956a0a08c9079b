"""TCP hole punching: both sides connect to each other at the same time (RFC 5128, 3.4).

The relayed half and the punch leave from one port: the broker sees at the half how the NAT
maps that port, and tells it to the other side when both halves are there (its answer to
JOIN), or before, if it can foretell them (its answer to CONNECT, and CALL). A gateway that
answers what it does not expect with RST kills the hole that a first packet was to make in the
other one; there a first packet goes out that lives long enough for one's own gateway, and not
for the other.

Connects go to one address, from one port, and listen to nobody. It must never return a
connection on which the other side has not proved the rendezvous' secret over nonces of both.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket

from ..addresses import Address
from ..errors import RemoteProtocolError, Status
from ..wire.messages import Command, JoinReply, Message, Punch
from . import streams
from .meeting import NONCE_BYTES, Meeting

log = logging.getLogger("gcbpatch.agent")

TRIES = 3
LOW_TTL = (0, 2, 3)
"""For the first packet of each try, once one was refused; 0 leaves it as it is."""
LEAST_SECONDS = 0.1
MOST_SECONDS = 0.5
"""Of one try."""
PROOF_SECONDS = 1.0
DEFAULT_TTL = -1


class Hole:
    """One side's part in a punch: its nonce, and what the broker tells about the other side.

    ``early`` is what it has told before the relayed half, which leaves from ``source``, was
    answered; what the answer says counts in the end.
    """

    def __init__(
        self, nonce: bytes = b"", early: JoinReply | None = None, source: Address = ("", 0)
    ) -> None:
        self.nonce = nonce or os.urandom(NONCE_BYTES)
        self._early = (early, source) if early is not None and early.peer is not None else None
        self._introduced: asyncio.Future[tuple[JoinReply, Address] | None]
        self._introduced = asyncio.get_running_loop().create_future()

    def introduce(self, reply: Message | None, source: Address) -> None:
        """The relayed half, which left from ``source``, was answered; None if it failed."""
        if self._introduced.done():
            return
        told = isinstance(reply, JoinReply) and reply.peer is not None
        self._introduced.set_result((reply, source) if told else None)  # type: ignore[arg-type]

    async def punch(self, meeting: Meeting) -> socket.socket:
        """Wait for the introduction and connect. Raises OSError or RemoteProtocolError."""
        if self._early is None:
            return await self._try(await self._told(), meeting)
        log.info("introduced before the relay is ready")
        begun = asyncio.get_running_loop().time()
        trying = asyncio.ensure_future(self._try(self._early, meeting))
        try:
            await asyncio.wait((trying, self._introduced), return_when=asyncio.FIRST_COMPLETED)
            if _has_come_about(trying) or _same(await self._told(), self._early):
                # The other side is told at last when both are there: it may begin only now.
                late = asyncio.get_running_loop().time() - begun >= LEAST_SECONDS
                if not (late and await _is_in_vain(trying)):
                    return await trying
        except BaseException:
            await _withdraw(trying)
            raise
        await _withdraw(trying)
        return await self._try(await self._told(), meeting)

    async def _told(self) -> tuple[JoinReply, Address]:
        introduced = await asyncio.shield(self._introduced)
        if introduced is None:
            raise ConnectionRefusedError("the broker sees no way to punch")
        return introduced

    async def _try(self, introduced: tuple[JoinReply, Address], meeting: Meeting) -> socket.socket:
        reply, source = introduced
        assert reply.peer is not None
        way = _Way(source, reply.peer.address, reply)
        for number in range(TRIES):
            sock = await way.attempt(number)
            if sock is not None and await _proved(sock, meeting, self.nonce, reply.nonce):
                return sock
        raise ConnectionRefusedError("nothing came through")


def _same(one: tuple[JoinReply, Address], other: tuple[JoinReply, Address]) -> bool:
    """Whether two introductions are to the same other side, at the same place, from one port."""
    (here, source), (there, elsewhere) = one, other
    return (here.peer, here.nonce, source[1]) == (there.peer, there.nonce, elsewhere[1])


def _has_come_about(trying: asyncio.Task[socket.socket]) -> bool:
    return trying.done() and not trying.cancelled() and trying.exception() is None


async def _is_in_vain(trying: asyncio.Task[socket.socket]) -> bool:
    """Wait for its end; return whether nothing has come through at all."""
    await asyncio.wait([trying])
    return isinstance(trying.exception(), ConnectionRefusedError)


async def _withdraw(trying: asyncio.Task[socket.socket]) -> None:
    trying.cancel()
    for result in await asyncio.gather(trying, return_exceptions=True):
        if isinstance(result, socket.socket):
            result.close()


class _Way:
    """The tries, at times on which both sides agree."""

    def __init__(self, source: Address, peer: Address, reply: JoinReply) -> None:
        loop = asyncio.get_running_loop()
        self._source, self._peer = source, peer
        self._start = loop.time() + reply.wait / 1000
        self._length = min(max(LEAST_SECONDS, 2 * reply.round_trip / 1000), MOST_SECONDS)
        self._refused = False

    async def attempt(self, number: int) -> socket.socket | None:
        """Connect within the time of one try; None if nothing came of it."""
        begin = self._start + number * self._length
        end, now = begin + self._length, asyncio.get_running_loop().time()
        if now >= end:
            return None
        await asyncio.sleep(max(0.0, begin - now))
        if self._refused:
            sock = await self._connect(begin + self._length / 2, LOW_TTL[number])
            if sock is not None:
                return sock
        return await self._connect(end)

    async def _connect(self, end: float, ttl: int = 0) -> socket.socket | None:
        loop = asyncio.get_running_loop()
        sock = streams.shared(self._source)
        try:
            streams.hurry(sock)
            async with asyncio.timeout_at(end):
                await _connected(sock, self._peer, ttl)
            return sock
        except OSError as error:  # TimeoutError among them
            sock.close()
            self._refused |= isinstance(error, ConnectionRefusedError)
        except BaseException:
            sock.close()
            raise
        await asyncio.sleep(max(0.0, end - loop.time()))
        return None


async def _connected(sock: socket.socket, peer: Address, ttl: int) -> None:
    """Connect; with ``ttl``, the first packet has that, and all that follow the usual one."""
    loop = asyncio.get_running_loop()
    if not ttl or sock.family != socket.AF_INET:
        await loop.sock_connect(sock, peer)
        return
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
    sock.connect_ex(peer)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, DEFAULT_TTL)
    await streams.writable(sock)
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        raise OSError(number, os.strerror(number))


async def _proved(sock: socket.socket, meeting: Meeting, mine: bytes, theirs: bytes) -> bool:
    """Prove the secret both ways; False if the connection ended, as one of an earlier try may.

    Raises RemoteProtocolError if somebody else is there.
    """
    nonces = (theirs, mine) if meeting.listening else (mine, theirs)
    labels = ("punch listener", "punch connector")
    own, other = labels if meeting.listening else labels[::-1]
    try:
        async with asyncio.timeout(PROOF_SECONDS):
            await streams.say(sock, Command.PUNCH, Punch(meeting.proof(own, *nonces)))
            said = await streams.read_message(sock, Command.PUNCH)
        if isinstance(said, Punch) and meeting.proves(other, said.proof, *nonces):
            return True
        raise RemoteProtocolError(Status.NOT_AUTHORIZED, "a stranger at the punched address")
    except OSError:
        sock.close()
        return False
    except BaseException:
        sock.close()
        raise
