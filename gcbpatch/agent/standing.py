"""How this host stands towards one broker, and so towards everybody beyond it.

It must never delay what a program waits for by more than its two parts do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from ..wire.auth import Key
from ..wire.messages import ConnectReply, Endpoint, PathKind
from .control import Control
from .mapping import Mapping
from .ownport import OwnPort
from .reachability import Reachability

log = logging.getLogger("gcbpatch.agent")


class Standing:
    """Whether the agent's port is reached, and what a NAT between makes of ports."""

    def __init__(
        self,
        control: Control,
        reachability: Reachability,
        client: bytes,
        key: Key | None,
        port: int,
    ) -> None:
        """``port`` is where the agent takes connections."""
        self.mapping = Mapping(client, key)
        self._own = OwnPort(reachability, port)
        self._control = control
        self._port = port
        self._told: list[Endpoint] = []
        self.elsewhere: Callable[[], list[Endpoint]] = list
        """Where else than at our own address the agent is reached: a gateway's mapping."""

    def look(self, patience: float) -> None:
        """Find out what is not known yet, meanwhile."""
        self.mapping.look(self._control)
        self._own.look(patience)

    def look_again(self, patience: float) -> None:
        """Firewalls change: a heartbeat is the time to see."""
        self._own.look_again(patience)

    @property
    def is_told(self) -> bool:
        """Whether the broker was told what is true now."""
        return self._told == self.endpoints

    def tell(self) -> list[Endpoint]:
        """Return what to tell the broker of where another agent may dial this one."""
        self._told = self.endpoints
        return self._told

    @property
    def endpoints(self) -> list[Endpoint]:
        """Where another agent may dial this one, as far as is known now."""
        here = [] if self._own.is_shut else [Endpoint(self._control.local_host, self._port)]
        return here + self.elsewhere()

    async def settled(self) -> None:
        """Wait a moment for whether the agent's port is shut, if that is being looked at."""
        await self._own.settled()

    async def of_use(self, reply: ConnectReply) -> ConnectReply:
        """Return the reply without the path that a shut port leaves nothing of."""
        if not await self._own.settled() or self.elsewhere():
            return reply
        log.info("no reverse path, since this agent's port is shut")
        paths = [path for path in reply.paths if path.kind is not PathKind.REVERSE]
        return msgspec.structs.replace(reply, paths=paths)
