"""Whether the NAT on the way to a broker shows one port of ours under one address to everybody.

HELLO from one port to two ports of the broker tells (RFC 5780, 4.3): if it sees the same address
at both, a mapping is the same for all destinations. That is asked only where ports are not kept,
since a NAT that keeps them shows the same to all anyway. What holds for UDP is taken to hold for
TCP (RFC 5382). It must never be waited for in vain: as long as nothing is known, mappings count
as dependent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket

from ..addresses import Address, format_address
from ..errors import RemoteProtocolError
from ..wire import auth
from ..wire.codec import MAX_DATAGRAM, Kind, message_of, parse
from ..wire.messages import Command, Hello, HelloReply
from .control import Control
from .tasks import Tasks

log = logging.getLogger("gcbpatch.agent")

TRIES = 3
AGAIN_SECONDS = 0.5
LATE_SECONDS = 0.02
"""The answers are about as long under way as a CONNECT: so much later they may come."""


class Mapping:
    """What is known of the NATs between us and one broker."""

    def __init__(self, client: bytes, key: auth.Key | None) -> None:
        self.is_independent = False
        """Whether the broker is known to see a port where everybody does."""
        self._client = client
        self._key = key
        self._looked_at: tuple[str, str] | None = None
        self._tasks = Tasks()
        self._looking: asyncio.Task[None] | None = None

    def look(self, control: Control) -> None:
        """Find it out, if it matters and is not known of this way to the broker."""
        hello = control.hello
        if hello is None or not hello.second or control.by_line:
            return
        way = control.local_host, hello.observed.host
        if hello.observed.port == control.local_port or way == self._looked_at:
            return
        self._looked_at, self.is_independent = way, False
        self._looking = self._tasks.run(self._compare(control.broker, hello.second))

    async def settled(self) -> bool:
        """Return whether it is independent, as soon as the answers are there or are overdue."""
        if self._looking is not None and not self._looking.done():
            await asyncio.wait([self._looking], timeout=LATE_SECONDS)
        return self.is_independent

    async def _compare(self, broker: Address, second: int) -> None:
        ports = broker[1], second
        seen = await observed_at(broker[0], ports, self._client, self._key)
        if len(seen) == len(ports):
            self.is_independent = len(set(seen.values())) == 1
        log.info(
            "seen by the broker as %s",
            " and ".join(format_address(address) for address in seen.values()) or "nothing",
        )


async def observed_at(
    host: str, ports: tuple[int, ...], client: bytes, key: auth.Key | None
) -> dict[int, Address]:
    """Return where these ports of a broker see one port of ours; without those that are silent."""
    seen: dict[int, Address] = {}
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        asked = {int.from_bytes(os.urandom(8), "big"): port for port in ports}
        for _ in range(TRIES):
            try:
                for transaction, port in asked.items():
                    hello = auth.sealed(
                        key, Kind.REQUEST, Command.HELLO, transaction, Hello(client)
                    )
                    sock.sendto(hello, (host, port))
                async with asyncio.timeout(AGAIN_SECONDS):
                    while len(seen) < len(ports):
                        await _note(sock, asked, key, seen)
                break
            except OSError:  # TimeoutError among them
                continue
    return seen


async def _note(
    sock: socket.socket, asked: dict[int, int], key: auth.Key | None, seen: dict[int, Address]
) -> None:
    """Take in one datagram; what is no answer to one of the questions is passed over."""
    data, source = await asyncio.get_running_loop().sock_recvfrom(sock, MAX_DATAGRAM + 1)
    try:
        frame = parse(data)
        auth.check_reply(frame, key)
        said = message_of(frame) if frame.command == Command.HELLO else None
    except RemoteProtocolError:
        return
    port = asked.get(frame.transaction)
    if isinstance(said, HelloReply) and port is not None and source[1] == port:
        seen[port] = said.observed.address
