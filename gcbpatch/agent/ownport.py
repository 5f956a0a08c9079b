"""Whether the agent's own port is reached from outside, where other agents would dial it.

Asked only where the broker sees this host under an address of its own: there the broker would
name that address to others, who would dial in vain, and wait, if a firewall is before it. Behind
a NAT nobody is told to. It must never be waited for in vain: until something else is
known the port counts as open.
"""

from __future__ import annotations

import asyncio
import logging

from ..addresses import format_address, is_private
from ..errors import RefusedError, RemoteProtocolError
from .reachability import Reachability
from .tasks import Tasks

log = logging.getLogger("gcbpatch.agent")

LATE_SECONDS = 0.03
"""The broker dials back while it arranges; so much later its first packet counts as lost."""
RENEW_SECONDS = 30.0
"""When a connector looks again, who has no heartbeat; meanwhile the finding holds."""


class OwnPort:
    """What one broker has found out about the agent's own port."""

    def __init__(self, reachability: Reachability, port: int) -> None:
        self.is_shut = False
        self._reachability = reachability
        self._port = port
        self._looked_at = ("", float("-inf"))
        self._looking: asyncio.Task[None] | None = None
        self._tasks = Tasks()

    def look(self, patience: float, renew: float = RENEW_SECONDS) -> None:
        """Have it looked at, if that is worth while and was not done ``renew`` seconds ago."""
        host = self._reachability.own_host
        before, when = self._looked_at
        now = asyncio.get_running_loop().time()
        if not host or is_private(host) or (host == before and now - when < renew):
            return
        if host != before:
            self.is_shut = False
        self._looked_at = host, now
        self._looking = self._tasks.run(self._look(host, patience))

    def look_again(self, patience: float) -> None:
        """Have it looked at once more, if it has been before."""
        if self._looked_at[0]:
            self.look(patience, renew=0.0)

    async def settled(self) -> bool:
        """Return whether it is shut, as soon as that is known or should be."""
        if self._looking is not None and not self._looking.done():
            await asyncio.wait([self._looking], timeout=LATE_SECONDS)
        return self.is_shut

    async def _look(self, host: str, patience: float) -> None:
        local = host, self._port
        try:
            found = await self._reachability.dial_back(local, patience)
        except (RefusedError, RemoteProtocolError, OSError) as error:
            log.info("dial-back to %s: %s", format_address(local), error)
            return
        if self.is_shut is not (found is None):
            self.is_shut = found is None
            log.info("the agent at %s is %s", format_address(local),
                     "reached by nobody" if self.is_shut else "reached again")
