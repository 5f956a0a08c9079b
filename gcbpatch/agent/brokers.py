"""All brokers that we may use: found by name, chosen by chance, left when they are gone.

A broker that answers takes a listener with a probability as its free capacity is. When one
has been silent for as long as it keeps registrations, what was registered there is over, and
its listeners move to another. It must never move anybody as long as his registration lives,
unless the broker itself asks for it, and never keep a program waiting for a silent broker
while another answers.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

from ..addresses import Address, format_address, is_ip, is_link_local
from ..config import ClientConfig
from ..errors import RefusedError, Status
from ..outlets import has_way
from ..wire.messages import UDP, Card, Endpoint
from .broker import Broker, OnCall, OnMeet
from .choice import ordered
from .heart import Heart
from .registrants import Collection, Registrant
from .tasks import Tasks

log = logging.getLogger("gcbpatch.agent")

LEAST_WAIT = 0.3
"""Seconds that brokers have to answer beyond the first of them: one may be lost on the way."""

LOOKUP_SECONDS = 2.0
MOST_MET = 64
"""Brokers that are remembered though nobody has configured them."""


async def resolve(config: ClientConfig) -> list[Address]:
    """Return the brokers as IP addresses; a name that does not resolve is logged and left out."""
    loop = asyncio.get_running_loop()
    found: list[Address] = []
    for host, port in config.brokers:
        if is_ip(host):
            found.append((host, port))
            continue
        try:
            async with asyncio.timeout(config.patience):
                infos = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except OSError as error:
            log.warning("broker %s: %s", host, error)
            continue
        found += [(str(info[4][0]), port) for info in infos if not is_link_local(str(info[4][0]))]
    return list(dict.fromkeys(found))


RegisterPort = Callable[[Registrant, list[Broker]], Awaitable[bool]]


async def _nowhere(_: Registrant, __: list[Broker]) -> bool:
    return False


def _has_way(address: Address) -> bool:
    if has_way(address[0]):
        return True
    log.info("no way to the broker at %s", format_address(address))
    return False


class Brokers:
    """The brokers of one agent; ``on_news`` is called when a listener has another address."""

    def __init__(
        self,
        config: ClientConfig,
        client: bytes,
        registrants: Collection,
        reception_port: int,
        on_call: OnCall,
    ) -> None:
        self._config = config
        self._client = client
        self._registrants = registrants
        self._reception_port = reception_port
        self._on_call = on_call
        self._brokers: dict[Address, Broker] = {}
        self._met: dict[Address, Broker] = {}
        self._homeless: set[bytes] = set()
        self._heart = Heart(config.lifetime, self._beat)
        self._looked_up = float("-inf")
        self._tasks = Tasks()
        self._loop = asyncio.get_running_loop()
        self.on_news: Callable[[], None] = lambda: None
        self.on_meet: OnMeet = lambda _, __: Status.UNKNOWN
        self.elsewhere: Callable[[], list[Endpoint]] = list
        """Where else than at its own address this agent may be dialled."""
        self.register_port: RegisterPort = _nowhere
        """Registers a UDP port with one of these brokers, if one takes it."""

    def __bool__(self) -> bool:
        """Whether there are brokers to be had, known by address or by a name that may resolve."""
        return bool(self._config.brokers)

    def __iter__(self) -> Iterator[Broker]:
        return iter(list(self._brokers.values()))

    @property
    def hosts(self) -> list[str]:
        """Hosts whose ports may be proxy addresses."""
        return sorted(set().union(*(broker.hosts for broker in self)))

    # --- which there are

    async def find(self) -> bool:
        """Look up the brokers' names; return whether there is one that was not known before.

        Not more often than every LOOKUP_SECONDS, and for as long as our patience at most.
        """
        now = self._loop.time()
        if now < self._looked_up + LOOKUP_SECONDS:
            return False
        self._looked_up = now
        found = [one for one in await resolve(self._config) if _has_way(one)]
        fresh = [address for address in found if address not in self._brokers]
        for address in fresh:
            self._brokers[address] = Broker(
                address,
                self._client,
                self._config,
                self._registrants,
                self._reception_port,
                self._on_call,
                self._left,
            )
            self._brokers[address].on_news = lambda: self.on_news()
            self._brokers[address].on_meet = lambda one, card: self.on_meet(one, card)
            self._brokers[address].standing.elsewhere = lambda: self.elsewhere()
        if found:
            self._forget_all_but(set(found))
        return bool(fresh)

    def meet(self, address: Address) -> Broker:
        """Return a broker that has made itself known; it never gets a token of ours."""
        met = self._met.pop(address, None)
        if met is None:
            config = replace(self._config, token="", token_file="")
            met = Broker(
                address,
                self._client,
                config,
                self._registrants,
                self._reception_port,
                self._on_call,
                self._left,
            )
            met.is_configured = False
        self._met[address] = met
        if len(self._met) > MOST_MET:
            self._met.pop(next(iter(self._met))).close()
        return met

    def _forget_all_but(self, found: set[Address]) -> None:
        """A name stands for others now; who has our listeners stays until they have moved."""
        for broker in self:
            if broker.address not in found and not broker.in_use:
                del self._brokers[broker.address]
                broker.close()

    async def candidates(self, but: Broker | None = None) -> list[Broker]:
        """Return those that answer, the one to ask first in front, without ``but``.

        Names are looked up again when none of those known answers.
        """
        answering = await self._answering(but)
        if not answering and await self.find():
            answering = await self._answering(but)
        return ordered(((one, one.free) for one in answering), random.random)

    async def greet(self) -> None:
        """Get to know all that answer soon."""
        await self._answering(None)

    async def _answering(self, but: Broker | None) -> list[Broker]:
        """Return who answers: of those not known yet, who does so about as soon as the first."""
        ones = [one for one in self if one is not but]
        sure = [one for one in ones if one.answers]
        asked = {self._tasks.run(one.reach()): one for one in ones if not one.answers}
        # Those that have been silent are asked as well, but waited for only if nobody answers.
        pending = {task for task, one in asked.items() if not (sure and one.is_silent)}
        began, limit = self._loop.time(), LEAST_WAIT if sure else None
        while pending:
            done, pending = await asyncio.wait(
                pending, timeout=limit, return_when=asyncio.FIRST_COMPLETED
            )
            sure += [asked[task] for task in done if task.result()]
            if not done:
                break
            if sure:
                limit = max(LEAST_WAIT, 2 * (self._loop.time() - began))
        return sure

    # --- who is registered where

    async def register(self, one: Registrant) -> bool:
        """Get ``one`` a proxy address somewhere; goes on trying if nobody has one now."""
        candidates = await self.candidates()
        if candidates and not any(broker.gives(one.family) for broker in self):
            log.info("no broker has addresses of IPv%d", one.family)
            return False
        if await self._register_at(one, candidates):
            return True
        one.reason = one.reason or "no broker answers"
        self._homeless.add(one.listener)
        self._heart.start()
        return False

    async def _register_at(self, one: Registrant, brokers: list[Broker]) -> bool:
        fitting = [broker for broker in brokers if broker.gives(one.family)]
        for broker in sorted(fitting, key=lambda broker: not broker.is_spoken_in(one.family)):
            if await broker.register(one):
                return True
            broker.disown(one)
        return False

    async def _beat(self) -> bool:
        """Find a home for those that have none; goes on as long as there is one."""
        self._registrants.check()
        for listener in sorted(self._homeless):
            one = self._registrants.get(listener)
            if one is None or await self._register_at(one, await self.candidates()):
                self._homeless.discard(listener)
                self.on_news()
        return bool(self._homeless)

    async def _left(self, broker: Broker, ones: list[Registrant]) -> None:
        """A broker is gone, or wants to be left: move its listeners to another, if there is one."""
        await self.find()
        others = await self.candidates(broker)
        for one in ones:
            before = one.proxy
            register = self.register_port if one.protocol == UDP else self._register_at
            if not await register(one, others):
                continue
            self._tasks.run(broker.unregister(one))
            assert before is not None and one.proxy is not None
            log.warning(
                "the listener at %s is at %s now: its broker is gone, or going",
                format_address(before),
                format_address(one.proxy),
            )
            self.on_news()

    async def introduce(self, target: Address, card: Card) -> None:
        """Give a card to the holder of a proxy address; raises as Broker.introduce does."""
        for broker in self:
            if target[0] in broker.hosts and await broker.reach():
                await broker.introduce(target, card)
                return
        raise RefusedError(Status.UNKNOWN, "no broker of ours")

    async def unregister(self, one: Registrant) -> None:
        """Give a proxy address back, wherever it is."""
        self._homeless.discard(one.listener)
        await asyncio.gather(*(b.unregister(one) for b in self if b.has(one)))

    async def close(self) -> None:
        """Stop; registrations are left to their lifetime."""
        self._heart.stop()
        for broker in (*self, *self._met.values()):
            broker.close()
        await self._tasks.finish(1.0)
