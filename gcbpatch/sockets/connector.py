"""Which connects are for the agent, and which for the kernel alone.

Only addresses of hosts that are known to be brokers, or of our own gateway, go to the
agent; everything else is the kernel's as ever and costs a set look-up. It must never send
anything itself.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from cachetools import TTLCache

from ..addresses import Address, is_ip, is_private
from ..agent import door
from ..routes import Way
from ..wire.messages import Endpoint
from .link import AgentGone, Link

log = logging.getLogger("gcbpatch")

WORLD_SECONDS = 60.0
WORLD_FAILURE_SECONDS = 5.0
_LOOPBACK = "127."


class Connector:
    """Decides for each address who connects to it."""

    def __init__(self, link: Link) -> None:
        self.link = link
        config = link.config
        self._routes = config.routes
        self._command_ports = {port for _, port in config.brokers}
        self._configured = {host for host, _ in config.brokers}
        # A broker known by a name or by an inside address has its proxies somewhere else,
        # and only the gateway knows its public addresses: then the agent must be asked.
        self._self_evident = config.gateway is None and all(
            is_ip(host) and not is_private(host) for host in self._configured
        )
        self._worlds: TTLCache[str, frozenset[str]] = TTLCache(1, WORLD_SECONDS, time.monotonic)
        self._world: frozenset[str] = frozenset()
        self._fresh_until = 0.0
        self._failures: TTLCache[str, bool] = TTLCache(1, WORLD_FAILURE_SECONDS, time.monotonic)

    def wanted(self, target: Address) -> bool:
        """Return whether the agent should make a connection to ``target``, an IPv4 literal."""
        host, port = target
        if not self._routes.table and self._known_as_ordinary(host):
            return False
        if port in self._command_ports or not 0 < port < 65536:
            return False
        way = self._routes.way(host)
        if way is not None:
            return way is not Way.KERNEL
        return not host.startswith(_LOOPBACK) and host in self._hosts()

    def _known_as_ordinary(self, host: str) -> bool:
        """Whether it takes no more than a set to see that a host is nobody's: most are."""
        if self._self_evident:
            return host not in self._configured
        return time.monotonic() < self._fresh_until and host not in self._world

    def begin(self, address: Address, port: int) -> Any:
        """Ask the agent; returns the door connection on which the answer comes."""
        return self.link.begin(door.Dial(Endpoint.of(address), port))

    def _hosts(self) -> frozenset[str] | set[str]:
        if self._self_evident:
            return self._configured
        if "world" not in self._worlds and "world" not in self._failures:
            self._ask_world()
        return self._worlds.get("world", frozenset())

    def _ask_world(self) -> None:
        try:
            world = self.link.ask(door.AskWorld())
        except AgentGone as error:
            self._failures["world"] = True
            self.link.warn_once("no agent: %s", error)
            return
        config = self.link.config
        publics_missing = config.gateway is not None and not world.publics
        self._world = frozenset(world.brokers) | frozenset(world.publics)
        self._worlds["world"] = self._world
        self._fresh_until = time.monotonic() + WORLD_SECONDS
        if publics_missing and not config.brokers:
            self._failures["world"] = True
            del self._worlds["world"]
            self._fresh_until = 0.0
            self.link.warn_once("dpfd does not answer")
