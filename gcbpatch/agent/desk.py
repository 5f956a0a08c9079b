"""What programs ask of the agent, one function per message of the door.

It ties listeners, brokers and the gateway together. It must never block: everything that
waits is a task, and closing the door connection withdraws it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import socket

from ..addresses import V6, Address, format_address
from ..config import ClientConfig
from ..errors import RefusedError, RemoteProtocolError, Status, errno_of
from ..outlets import has_way
from ..routes import Way
from ..wire.messages import Call, Endpoint, PathKind
from . import opening, streams
from .answer import answer
from .broker import Broker
from .brokers import Brokers
from .control import Unreachable
from .datagrams import Datagrams
from .door import (
    Bind,
    Bound,
    Dial,
    Dialled,
    DoorError,
    Hold,
    Listen,
    Listening,
    Ready,
    Vacate,
    World,
    close_all,
)
from .entrance import Entrance
from .gateway import Gateway
from .listeners import Listener, Listeners
from .meeting import Meeting
from .memory import Between, Memory
from .opening import FAILURES
from .places import Place
from .race import race
from .reception import Reception
from .registrants import Registrants
from .tasks import Tasks

log = logging.getLogger("gcbpatch.agent")

CONNECTOR_PORTS = range(32768, 60999)
"""Ports by which listeners know our connectors that have bound none, taken in turn."""


class Desk:
    """Everything the agent is for."""

    def __init__(self, config: ClientConfig, client: bytes) -> None:
        self.listeners = Listeners(self._ended)
        self.datagrams = Datagrams(client, config)
        self.registrants = Registrants((self.listeners, self.datagrams))
        self.reception = Reception()
        self._tasks = Tasks()
        self._memory = Memory()
        self._routes = config.routes
        self._never = config.register == "never"
        start = random.randrange(len(CONNECTOR_PORTS))
        self._ports = itertools.islice(itertools.cycle(CONNECTOR_PORTS), start, None)
        self.brokers = Brokers(
            config, client, self.registrants, self.reception.port, self._called
        )
        gateway = config.gateway
        self._gateway = Gateway(gateway, client, config, self.registrants) if gateway else None
        self._entrance: Entrance | None = None
        if self._gateway is not None:
            self._entrance = Entrance(self._gateway, self.reception.port)
            self.registrants.collections += (self._entrance,)
            self.brokers.elsewhere = lambda: self._entrance.endpoints if self._entrance else []
        self.datagrams.use(self.brokers, self._gateway)

    @property
    def busy(self) -> bool:
        """Whether anything here still needs the agent."""
        return self.listeners.in_use or len(self.datagrams) > 0

    async def datagram(
        self, asked: Bind | Hold | Vacate, fds: list[int]
    ) -> tuple[Bound, tuple[int, ...]]:
        """Do what is asked about a UDP port; raises DoorError for a wrong number of ``fds``."""
        if len(fds) != isinstance(asked, Hold):
            close_all(fds)
            raise DoorError(f"{type(asked).__name__} came with {len(fds)} descriptors")
        if isinstance(asked, Bind):
            return await self.datagrams.bind(asked)
        if isinstance(asked, Hold):
            return await self.datagrams.hold(asked, fds[0])
        return self.datagrams.vacate(), ()

    async def listen(
        self, asked: Listen, take: socket.socket, put: socket.socket
    ) -> tuple[Listening, tuple[int, ...]]:
        """Register a listener, with DPF first where there is a gateway, else with GCB.

        Several processes of a tree may ask for one, and several sockets may share a port: it
        is registered once. Who asked for another than he gets is given the ends of its queue.
        """
        known = self.listeners.get(asked.listener)
        one = self.listeners.add(asked, take, put)
        shares = one.listener != asked.listener
        if known is not None or shares:
            await one.settled.wait()
        else:
            await self._register(one)
            one.settled.set()
        return listening(one), _ends(one) if shares else ()

    async def _register(self, one: Listener) -> None:
        way = self._routes.way_at(one.bound[0])
        forwarded = way is not Way.GCB and await self._forward(one)
        brokered = way is Way.GCB or (way is None and not self._never)
        if not forwarded and brokered and self.brokers:
            if self._entrance is not None:
                await self._entrance.open()
            await self.brokers.register(one)
        log.info(
            "listener %s: %s",
            format_address(one.bound),
            f"{format_address(one.proxy)} by {one.how}" if one.how and one.proxy else one.reason,
        )

    async def _forward(self, one: Listener) -> bool:
        if self._gateway is None or one.family == V6:
            return False  # dpfd maps IPv4 addresses
        forwarded = await self._gateway.forward(one)
        if not forwarded and self.brokers:
            self._gateway.abandon(one)
        return forwarded

    def find(self, listener: bytes) -> Listening:
        """Tell what is known of a listener now."""
        one = self.listeners.get(listener)
        return Listening(None, reason="not known") if one is None else listening(one)

    def ready(self, asked: Ready) -> Listening:
        """A socket that was bound listens now, or with another backlog."""
        one = self.listeners.get(asked.listener)
        if one is not None:
            self.listeners.ready(one, asked.cookie, asked.backlog)
        return self.find(asked.listener)

    def adopt(self, cookie: int) -> tuple[Listening, tuple[int, ...]]:
        """Tell a process that inherited a listening socket what it is, with its queue's ends."""
        one = self.listeners.by_cookie(cookie)
        if one is None:
            return Listening(None, reason="not known"), ()
        return listening(one), _ends(one)

    async def world(self) -> World:
        """Tell which hosts are brokers' and which the gateway's; greets them if need be."""
        await self.brokers.greet()
        publics = []
        if self._gateway is not None and await self._gateway.reach():
            publics = list(self._gateway.publics)
        return World(self.brokers.hosts, publics)

    async def dial(self, asked: Dial) -> tuple[Dialled, int | None]:
        """Connect to a proxy address; returns the answer and a descriptor that it carries."""
        target = asked.target.address
        brokered = self._routes.way(target[0]) is Way.GCB
        mine = self._mine(target, brokered)
        if brokered:
            target = (mine.how == "gcb" and mine.proxy) or target if mine else target
        elif mine is not None:
            return Dialled("own", kernel=Endpoint.of(mine.nudge_target)), None
        if self._gateway is not None and target[0] in self._gateway.publics:
            return await self._dial_neighbour(target), None
        broker = await self._broker_at(target[0])
        if broker is not None:
            return await self._dial_by(broker, target, asked.port or next(self._ports))
        met = self.brokers.meet((target[0], asked.broker)) if asked.broker else None
        if met is not None and await met.reach():
            return await self._dial_by(met, target, asked.port or next(self._ports))
        return Dialled("kernel", kernel=asked.target, reason="no broker of it answers"), None

    async def _broker_at(self, host: str) -> Broker | None:
        if not has_way(host):
            await self.brokers.greet()  # only who is greeted tells of his other host
        for broker in self.brokers:
            if host in broker.hosts and await broker.reach():
                return broker
        return None

    def _mine(self, target: Address, brokered: bool) -> Listener | None:
        """Return who of this tree listens at ``target``: by its identity, or by its own name."""
        while True:
            found = self.listeners.by_proxy(target)
            if found is None and brokered:
                found = self.listeners.by_bound(target)
            if found is None or self.listeners.is_there(found):
                return found

    async def _dial_neighbour(self, target: Address) -> Dialled:
        assert self._gateway is not None
        inside = await self._gateway.query(target)
        if inside is None:
            return Dialled("kernel", kernel=Endpoint.of(target), reason="no mapping of the gateway")
        return Dialled("neighbour", kernel=Endpoint.of(inside))

    async def _dial_by(
        self, broker: Broker, target: Address, port: int
    ) -> tuple[Dialled, int | None]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            place = self._memory.place(target, began)
            async with opening.ahead(broker, place) as dialled:
                meeting, between = await self._arrange(broker, target, port, dialled)
                kind, sock = await race(broker, self.reception, meeting, dialled)
        except (Unreachable, RefusedError, RemoteProtocolError, OSError, TimeoutError) as error:
            return _failure(target, error), None
        self._memory.learn(between, meeting.paths, kind, loop.time())
        at_its_port = kind in (PathKind.LOCAL, PathKind.DIRECT)
        self._memory.reached(target, sock.getpeername()[:2] if at_its_port else None, loop.time())
        took = (loop.time() - began) * 1000
        log.info("connected to %s: %s, %.1f ms", format_address(target), kind.name, took)
        return Dialled(kind.name.lower(), milliseconds=took, port=port), sock.detach()

    async def _arrange(
        self, broker: Broker, target: Address, port: int, dialled: opening.Ahead
    ) -> tuple[Meeting, Between]:
        """Ask the broker, and leave out what came to nothing lately. Raises as it does."""
        reply = await broker.connect(target, port, dialled.nonce, dialled.source[1])
        between = broker.observed, reply.there or target
        now = asyncio.get_running_loop().time()
        hopeless = self._memory.hopeless(between, reply.paths, now)
        for path in hopeless:
            what = "punch" if path.kind is PathKind.PUNCHED else f"{path.kind.name.lower()} path"
            log.info("%s: no %s, as it came to nothing lately", format_address(target), what)
        return Meeting.of(reply).without(hopeless).challenging(dialled.nonce), between

    def _called(self, broker: Broker, one: Listener, call: Call) -> Status:
        if not self.listeners.is_there(one):
            return Status.UNKNOWN
        self._tasks.run(self._answer(broker, one, call))
        return Status.SUCCESS

    async def _answer(self, broker: Broker, one: Listener, call: Call) -> None:
        who = format_address(call.peer.address)
        try:
            async with one.delivery.place() as place:
                kind, sock = await answer(broker, self.reception, call)
                self._deliver(one, kind, sock, call, place)
        except FAILURES as error:
            log.info("call from %s came to nothing: %s", who, error)

    def _deliver(
        self, one: Listener, kind: PathKind, sock: socket.socket, call: Call, place: Place
    ) -> None:
        who = format_address(call.peer.address)
        if self.listeners.get(one.listener) is None:
            streams.reset(sock)
        elif one.delivery.deliver(sock, call.peer.address, place):
            log.info("accepted %s: %s", who, kind.name)
        else:
            log.warning("the queue of the listener at %s is full: reset %s", one.bound, who)

    def _ended(self, one: Listener) -> None:
        log.info("listener %s ended", format_address(one.bound))
        if one.how == "dpf" and self._gateway is not None:
            self._tasks.run(self._gateway.unforward(one))
        else:
            self._tasks.run(self.brokers.unregister(one))

    async def close(self) -> None:
        """Finish what is under way for listeners that ended, then stop."""
        await self._tasks.finish(1.0)
        await self.datagrams.close()
        await self.brokers.close()
        if self._gateway is not None:
            self._gateway.close()
        self.reception.close()


def _ends(one: Listener) -> tuple[int, ...]:
    """Return descriptors of a listener's queue to give away."""
    return tuple(os.dup(end.fileno()) for end in one.delivery.ends)


def listening(one: Listener) -> Listening:
    """Return the door's answer about a listener."""
    public = Endpoint.of(one.proxy) if one.how and one.proxy else None
    return Listening(public, one.claim, one.how, one.error, one.reason, one.listener)


def _failure(target: Address, error: Exception) -> Dialled:
    """What a program's connect sees: an errno, or the advice to ask the kernel itself.

    A broker that does not answer, does not know us or does not know the address leaves the
    connector what it would be without any broker: an ordinary one.
    """
    reason = f"{type(error).__name__}: {error}"
    log.info("connect to %s: %s", format_address(target), reason)
    ordinary = (Status.NOT_AUTHORIZED, Status.UNKNOWN, Status.STALE_EPOCH)
    if isinstance(error, RefusedError):
        if error.status in ordinary:
            return Dialled("kernel", kernel=Endpoint.of(target), reason=reason)
        return Dialled(error=errno_of(error.status), reason=reason)
    if isinstance(error, Unreachable | RemoteProtocolError):
        return Dialled("kernel", kernel=Endpoint.of(target), reason=reason)
    return Dialled(error=getattr(error, "errno", 0) or 110, reason=reason)
