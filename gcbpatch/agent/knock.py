"""Whether a UDP port is reached from outside as it is: then no broker need stand for it.

The broker sends a datagram with the port's magic from a port of its own that ours has never
sent to. If a firewall lets that in, it lets in everybody's. Asked only where the broker sees
this host under its own address, and before the port has sent anything: behind a NAT the port's
own datagrams make a mapping, which may let in strangers for as long as it lives.

This room must never take silence of the broker for a finding.
"""

from __future__ import annotations

import asyncio
from collections import deque

from ..addresses import Address, is_private, is_wildcard
from ..config import ClientConfig
from ..errors import RefusedError, Status
from ..routes import Way
from ..wire.messages import UDP, Command, Probe, ProbeReply
from .broker import Broker
from .reachability import LOOK_SECONDS, LOOKS

MOST_HEARD = 16


class Knocks:
    """What has come to one port with its magic and nothing else."""

    def __init__(self, bound: Address, magic: bytes) -> None:
        self._bound, self._magic = bound, magic
        self._sources: deque[Address] = deque(maxlen=MOST_HEARD)

    def heard(self, source: Address) -> None:
        """Somebody knocks."""
        self._sources.append(source)

    def is_asked(self, broker: Broker, config: ClientConfig) -> bool:
        """Whether it is to be found out for this port."""
        hello = broker.control.hello
        if config.register != "auto" or hello is None or is_private(hello.observed.host):
            return False
        if hello.observed.host != self._own_host(broker):
            return False
        return config.routes.way_at(self._bound[0]) is not Way.GCB

    def _own_host(self, broker: Broker) -> str:
        return broker.control.local_host if is_wildcard(self._bound[0]) else self._bound[0]

    async def find(self, broker: Broker, client: bytes, patience: float) -> Address | None:
        """Have the broker knock; return the address at which the port is reached, None if at none.

        Raises as Control.ask does.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            reply = await broker.control.ask(
                Command.PROBE,
                lambda cookie: Probe(client, cookie, UDP, self._bound[1], self._magic),
                patience,
            )
        except RefusedError as error:
            if error.status is Status.UNSUPPORTED:
                return None
            raise
        assert isinstance(reply, ProbeReply)
        took = loop.time() - began
        for _ in range(LOOKS):
            if reply.source.address in self._sources:
                return reply.target.address
            await asyncio.sleep((LOOK_SECONDS + took / 4) / LOOKS)
        return reply.target.address if reply.source.address in self._sources else None
