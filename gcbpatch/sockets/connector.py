"""Which connects are for the agent, and which for the kernel alone.

Only addresses of hosts that are known to be brokers, or of our own gateway, go to the
agent; everything else is the kernel's as ever and costs a set look-up. It must never send
anything itself.
"""

from __future__ import annotations

import _socket
import logging
import math
import time
from typing import Any

from gevent.socket import getaddrinfo

from ..addresses import Address, is_ip, is_private
from ..routes import Way
from .later import AgentGone, door
from .link import Link

log = logging.getLogger("gcbpatch")

WORLD_SECONDS = 60.0
WORLD_FAILURE_SECONDS = 5.0
_LOOPBACK = "127."
_MOST_ORDINARY = 1024


class Connector:
    """Decides for each address who connects to it."""

    def __init__(self, link: Link) -> None:
        self.link = link
        config = link.config
        self._routes = config.routes
        self._table = self._routes.current
        self._command_ports = {port for _, port in config.brokers}
        self._configured = {host for host, _ in config.brokers}
        # A broker known by a name or by an inside address has its proxies somewhere else,
        # and only the gateway knows its public addresses: then the agent must be asked.
        self._self_evident = config.gateway is None and all(
            is_ip(host) and not is_private(host) for host in self._configured
        )
        self._world: frozenset[str] = frozenset(self._configured)
        self._fresh_until = math.inf if self._self_evident else 0.0
        self._failed_until = 0.0
        self._ordinary: set[str] = set()

    def is_ordinary(self, address: Any) -> bool:
        """Whether it is known already that the agent has nothing to do with ``address``.

        This is all that most connects cost; False only means that wanted() must look.
        """
        return (
            type(address) is tuple
            and len(address) > 1
            and type(address[0]) is str
            and address[0] in self._ordinary
            and (self._self_evident or time.monotonic() < self._fresh_until)
            and self._routes.current is self._table
        )

    def wanted(self, target: Address) -> bool:
        """Return whether the agent should make a connection to ``target``, an IPv4 literal."""
        host, port = target
        if port in self._command_ports or not 0 < port < 65536:
            return False
        if not self._is_of_interest(host):
            self._remember(host)
            return False
        return True

    def _is_of_interest(self, host: str) -> bool:
        table = self._routes.current
        if table is not self._table:
            self._table = table
            self._ordinary.clear()
        way = table.way(host)
        if way is not None:
            return way in (Way.GCB, Way.DPF)
        return not host.startswith(_LOOPBACK) and host in self._hosts()

    def _remember(self, host: str) -> None:
        """Have the next connect to an ordinary host cost no more than a look into a set."""
        if len(self._ordinary) >= _MOST_ORDINARY:
            self._ordinary.clear()
        self._ordinary.add(host)

    def expire(self) -> None:
        """Which hosts are brokers' is to be asked again."""
        if not self._self_evident:
            self._fresh_until = 0.0

    def begin(self, address: Address, port: int) -> Any:
        """Ask the agent; returns the door connection on which the answer comes."""
        return self.link.begin(door.Dial(door.Endpoint.of(address), port))

    def _hosts(self) -> frozenset[str]:
        """The hosts whose addresses may be brokered, as far as anybody knows now."""
        now = time.monotonic()
        if now < self._fresh_until:
            return self._world
        if now < self._failed_until:
            return frozenset()
        return self._ask_world()

    def _ask_world(self) -> frozenset[str]:
        self._ordinary.clear()
        named = self._named()
        if named is not None:
            self._learn(named)
            return self._world
        try:
            world = self.link.ask(door.AskWorld())
        except AgentGone as error:
            self._failed_until = time.monotonic() + WORLD_FAILURE_SECONDS
            self.link.warn_once("no agent: %s", error)
            return frozenset()
        config = self.link.config
        if config.gateway is not None and not world.publics and not config.brokers:
            self._failed_until = time.monotonic() + WORLD_FAILURE_SECONDS
            self.link.warn_once("dpfd does not answer")
            return frozenset()
        self._learn(frozenset(world.brokers) | frozenset(world.publics))
        return self._world

    def _named(self) -> frozenset[str] | None:
        """The hosts of brokers known by name, found without an agent; None if it must be asked.

        An ordinary connect starts no agent: a broker whose name stands for public addresses
        has its proxies there, as one has that is configured by such an address.
        """
        if self.link.config.gateway is not None or self.link.is_in_use():
            return None
        found: set[str] = set()
        for host in self._configured:
            try:
                infos = getaddrinfo(host, None, _socket.AF_INET, _socket.SOCK_STREAM)
            except (_socket.gaierror, UnicodeError):
                return None
            found.update(str(info[4][0]) for info in infos)
        return None if any(map(is_private, found)) else frozenset(found)

    def _learn(self, world: frozenset[str]) -> None:
        self._ordinary.clear()
        self._world = world
        self._fresh_until = time.monotonic() + WORLD_SECONDS
