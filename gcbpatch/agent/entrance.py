"""The agent's own port, mapped by the gateway: who is to dial this agent then comes straight in.

Where there is a gateway and a listener is registered with a broker all the same (a route says
so, or its own mapping was refused), the broker is told this public address among those at which
the agent takes OPEN, so that nothing is relayed. This room must never be asked for when there
is no broker: a mapping of one's own is better.
"""

from __future__ import annotations

import asyncio
import os

from ..addresses import V4, Address
from ..wire.messages import TCP, Endpoint
from .gateway import Gateway

AGAIN_SECONDS = 30.0
"""How long a gateway that would not map the port is not asked again."""


class Entrance:
    """The port as something that a gateway maps; a collection of itself, to be found again."""

    def __init__(self, gateway: Gateway, port: int) -> None:
        self.listener = os.urandom(16)
        self.protocol = TCP
        self.family = V4
        self.bound: Address = ("0.0.0.0", port)
        self.wished = 0
        self.nonce = b""
        self.proxy: Address | None = None
        self.claim = b""
        self.how = ""
        self.error = 0
        self.reason = ""
        self.relay: Address | None = None
        self._gateway = gateway
        self._turn = asyncio.Lock()
        self._again = float("-inf")

    @property
    def nudge_target(self) -> Address:
        """Where the port is reached from this host."""
        return "127.0.0.1", self.bound[1]

    @property
    def endpoints(self) -> list[Endpoint]:
        """Where others may dial, besides the host's own address."""
        return [Endpoint.of(self.proxy)] if self.how == "dpf" and self.proxy else []

    async def open(self) -> None:
        """Have the port mapped, if it is not; a gateway that refuses is left alone for a while.

        One that is silent is not waited for here: listeners ask it first anyway.
        """
        loop = asyncio.get_running_loop()
        async with self._turn:
            if self.how == "dpf" or self._gateway.is_silent or loop.time() < self._again:
                return
            if not await self._gateway.forward(self):
                self._gateway.abandon(self)
                self._again = loop.time() + AGAIN_SECONDS

    def get(self, listener: bytes) -> Entrance | None:
        """Return this one, if it is of that id."""
        return self if listener == self.listener else None

    def check(self) -> None:
        """The agent's own socket lives as long as the agent."""
