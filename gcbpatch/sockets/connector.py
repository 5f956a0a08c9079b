"""Which connects are for the agent, and which for the kernel alone.

Only addresses of hosts that are known to be brokers, or of our own gateway, go to the
agent; everything else is the kernel's as ever, once it has been asked whether it is a broker.
It must never wait for an answer to that.
"""

from __future__ import annotations

import _socket
import enum
import functools
import logging
import time
from typing import TYPE_CHECKING, Any

from gevent.socket import getaddrinfo

from ..addresses import BROKER_PORT, Address, is_ip, is_multicast, is_private, is_wildcard
from ..errors import Status
from ..outlets import has_way
from ..routes import Way
from .known import ALWAYS, NEVER, Fading, Known
from .later import AgentGone, Later, door
from .link import Link

if TYPE_CHECKING:
    from .question import Question, Told

log = logging.getLogger("gcbpatch")

# Loaded when a host is asked for the first time, and the messages with it.
_questions = Later("gcbpatch.sockets.question")

WORLD_SECONDS = 60.0
WORLD_FAILURE_SECONDS = 5.0
YES_SECONDS = 3600.0
NO_SECONDS = 600.0
NO_PROXY_SECONDS = 2.0
"""Somebody may be about to register there."""
MOST_ANSWERS = 4096
_LOOPBACK = ("127.", "::1")


class Choice(enum.Enum):
    """Who connects; with QUESTION the kernel does, while the host is asked what it is."""

    KERNEL = enum.auto()
    AGENT = enum.auto()
    QUESTION = enum.auto()


@functools.lru_cache(MOST_ANSWERS)
def _may_be_a_broker(host: str) -> bool:
    """Whether it is worth asking: what is private has to be configured, or routed."""
    return is_ip(host) and not (is_private(host) or is_wildcard(host) or is_multicast(host))


class Connector:
    """Decides for each address who connects to it."""

    def __init__(self, link: Link, known: Known) -> None:
        self.link = link
        self._known = known
        config = link.config
        self._routes = config.routes
        self._command_ports = {BROKER_PORT, *(port for _, port in config.brokers)}
        self._configured = {host for host, _ in config.brokers}
        # A broker known by a name or by an inside address has its proxies somewhere else,
        # and only the gateway knows its public addresses: then the agent must be asked.
        self._self_evident = config.gateway is None and all(
            is_ip(host) and not is_private(host) for host in self._configured
        )
        self._world: frozenset[str] = frozenset(self._configured)
        self._fresh_until = ALWAYS if self._self_evident else NEVER
        self._failed_until = NEVER
        self._asks_agent = False
        # What was answered: hosts that are brokers, with the port that said so; hosts that
        # are none; and addresses of brokers that are nobody's proxy.
        self._met: Fading[str] = Fading(YES_SECONDS, MOST_ANSWERS)
        self._brokerless: Fading[str] = Fading(NO_SECONDS, MOST_ANSWERS)
        self._without_proxy: Fading[Address] = Fading(NO_PROXY_SECONDS, MOST_ANSWERS)

    def choose(self, target: Address) -> tuple[Choice, float]:
        """Return who connects to ``target``, an IP literal, and until when that is known.

        Until then, a time of time.monotonic(), it is the same unless Known is told to forget.
        """
        host, port = target
        if port in self._command_ports or not 0 < port < 65536:
            return Choice.KERNEL, ALWAYS
        way = self._routes.way(host)
        if way in (Way.GCB, Way.DPF):
            return Choice.AGENT, NEVER
        if way is not None or host.startswith(_LOOPBACK):
            return Choice.KERNEL, ALWAYS
        if host in self._hosts() or host in self._met:
            return Choice.AGENT, NEVER
        if self._is_out_of_reach(host):
            # Not remembered: ways come and go.
            agent = host in self._hosts_by_agent()
            return Choice.AGENT if agent else Choice.KERNEL, NEVER
        return self._choose_unknown(target)

    def _is_out_of_reach(self, host: str) -> bool:
        """Whether nobody but a broker, spoken to in the other family, may have a way there."""
        v6 = ":" in host
        others = any(not is_ip(one) or (":" in one) != v6 for one in self._configured)
        return others and not has_way(host)

    def _choose_unknown(self, target: Address) -> tuple[Choice, float]:
        """The same for a host that is none of ours: was it asked, and is it worth asking?"""
        until = max(self._fresh_until, self._failed_until)
        asked_until = max(self._brokerless.until(target[0]), self._without_proxy.until(target))
        if asked_until > time.monotonic():
            return Choice.KERNEL, min(until, asked_until)
        if _may_be_a_broker(target[0]):
            return Choice.QUESTION, NEVER
        return Choice.KERNEL, until

    # --- hosts that nobody has told us of

    def ask(self, target: Address, told: Told) -> Question | None:
        """Ask an unknown host; None if it cannot be asked: it is no broker then."""

        def learn(said: Status | None, port: int) -> None:
            self._learn_of(target, said, port)
            told(said, port)

        try:
            question: Question = _questions.Question(target, self._command_ports, learn)
        except (AgentGone, OSError):
            self.is_silent(target)
            return None
        return question

    def _learn_of(self, target: Address, said: Status | None, port: int) -> None:
        if said is Status.SUCCESS:
            self._brokerless.discard(target[0])
            self._met.add(target[0], port)
            self._known.forget()
        elif said is Status.UNKNOWN:
            self._without_proxy.add(target)
        else:
            self.is_silent(target)

    def is_silent(self, target: Address) -> None:
        """Nobody answers there; a late answer is welcome all the same."""
        self._brokerless.add(target[0])

    def expire(self) -> None:
        """Which hosts are brokers' is to be asked again."""
        if not self._self_evident:
            self._fresh_until = NEVER
            self._known.forget()

    def begin(self, address: Address, port: int, broker: int = 0) -> Any:
        """Ask the agent; returns the door connection on which the answer comes.

        ``broker`` is the port at which that host has said that it is one.
        """
        broker = broker or self._met.number(address[0])
        return self.link.begin(door.Dial(door.Endpoint.of(address), port, broker))

    def _hosts_by_agent(self) -> frozenset[str]:
        """The same, of an agent: only who has greeted the brokers knows all their hosts."""
        if not self._asks_agent:
            self._asks_agent, self._self_evident, self._fresh_until = True, False, NEVER
        return self._hosts()

    def _hosts(self) -> frozenset[str]:
        """The hosts whose addresses may be brokered, as far as anybody knows now."""
        now = time.monotonic()
        if now < self._fresh_until:
            return self._world
        if now < self._failed_until:
            return frozenset()
        return self._ask_world()

    def _ask_world(self) -> frozenset[str]:
        self._known.forget()
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
        config = self.link.config
        if self._asks_agent or config.gateway is not None or self.link.is_in_use():
            return None
        found: set[str] = set()
        for host in self._configured:
            try:
                infos = getaddrinfo(host, None, 0, _socket.SOCK_STREAM)
            except (_socket.gaierror, UnicodeError):
                return None
            found.update(str(info[4][0]) for info in infos)
        return None if any(map(is_private, found)) else frozenset(found)

    def _learn(self, world: frozenset[str]) -> None:
        self._known.forget()
        self._world = world
        self._fresh_until = time.monotonic() + WORLD_SECONDS
