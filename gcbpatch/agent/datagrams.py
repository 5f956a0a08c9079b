"""The program's UDP ports as the agent knows them: registration, and the way kept open.

The agent holds a second socket on each port, the sibling. The kernel gives it the datagrams
that begin with the port's magic and no others, so that the agent speaks with the relay from
the program's own port, through the same mapping of every NAT on the way, and the program's
descriptor never becomes readable for it. A sibling lives no longer than the program's socket:
this room must never keep a port busy that the program has given up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..addresses import V4, V6, Address, format_address, is_wildcard
from ..config import ClientConfig
from ..errors import RefusedError, RemoteProtocolError, Status
from ..routes import Way
from ..wire import auth
from ..wire.codec import MAX_DATAGRAM
from ..wire.datagrams import MAGIC_SIZE
from ..wire.messages import UDP, Call, Card, Command, Flow, FlowReply, HelloReply, Introduce, Meet
from . import sockdiag
from .broker import Broker
from .brokers import Brokers
from .control import Control, Unreachable
from .door import Bind, Bound, Endpoint, Hold
from .gateway import Gateway
from .heart import Heart
from .knock import Knocks
from .reachability import MISSES, OWN
from .registrants import Registrant
from .tasks import Tasks
from .ways import SharedPage, Ways, places_of

log = logging.getLogger("gcbpatch.agent")

REFUSED_SECONDS = 60.0
"""How long a broker without a UDP relay is not asked again."""
COOKIES = 8
"""The last ones by which a port has introduced itself: the broker answers by one of them."""
FAILURES = (Unreachable, RefusedError, RemoteProtocolError)


class Channel(Control):
    """The exchange with a relay port from a program's own port: a magic before each frame."""

    lines = False

    def __init__(
        self,
        sibling: socket.socket,
        magic: bytes,
        relay: Address,
        client: bytes,
        key: auth.Key | None,
    ) -> None:
        self._sibling = sibling
        self._magic = magic
        self.on_stranger: Callable[[bytes, Address], None] = _passed_over
        """Told of what begins with the magic and does not come from the relay."""
        self.on_card: Callable[[Card], Status] = _refuse
        """Told of cards that come to the port itself, which has introduced itself."""
        self._cookies: deque[bytes] = deque(maxlen=COOKIES)
        super().__init__(relay, client, key, self._meet)

    def _open(self) -> socket.socket:
        self._sibling.setblocking(False)
        self._loop.add_reader(self._sibling, self._readable)
        return self._sibling

    def _send(self, data: bytes) -> None:
        self.say(self._magic + data, self.broker)

    def say(self, data: bytes, place: Address) -> None:
        """Send from the program's port; what cannot be sent is lost, as datagrams may be."""
        # Never connected: a connected sibling would get everything that the relay sends.
        try:
            self._socket.sendto(data, place)
        except OSError as error:
            self._log_once("cannot send from a port that is relayed by %s: %s", error)

    def _meet(self, call: Call | Meet) -> Status:
        if isinstance(call, Meet) and call.nonce in self._cookies:
            return self.on_card(call.card)
        return Status.UNKNOWN

    async def introduce(self, target: Address, card: Card, patience: float) -> None:
        """Give a card to the holder of ``target`` from the port itself; raises as ask() does."""

        def say(cookie: bytes) -> Introduce:
            self._cookies.append(cookie)
            return Introduce(self._client, cookie, Endpoint.of(target), card)

        await self.ask(Command.INTRODUCE, say, patience)

    def _readable(self) -> None:
        while True:
            try:
                data, source = self._socket.recvfrom(MAGIC_SIZE + MAX_DATAGRAM + 1)
            except BlockingIOError:
                return
            except OSError as error:
                self._log_once("the relay at %s cannot be reached: %s", error)
                return
            if data[:MAGIC_SIZE] != self._magic:
                continue
            if source[:2] == self.broker:
                self._receive_datagram(data[MAGIC_SIZE:])
            else:
                self.on_stranger(data[MAGIC_SIZE:], source[:2])


def _page_of(one: Port) -> tuple[int, ...]:
    """Return a descriptor of a port's page to give away."""
    return (os.dup(one.page.fd),) if one.page is not None else ()


def _refuse(_: Card) -> Status:
    return Status.UNKNOWN


def _passed_over(_: bytes, __: Address) -> None:
    """Nobody is meant to speak with the port but the relay."""


@dataclass(slots=True)
class Port:
    """One bound UDP socket of a program."""

    listener: bytes
    cookie: int
    bound: Address
    wished: int
    nonce: bytes
    protocol: int = UDP
    family: int = V4
    proxy: Address | None = None
    claim: bytes = b""
    how: str = ""
    error: int = 0
    reason: str = ""
    relay: Address | None = None
    broker: Broker | None = None
    channel: Channel | None = None
    heart: Heart | None = None
    ways: Ways | None = None
    page: SharedPage | None = None
    knocks: Knocks | None = None
    misses: int = 0
    """Knocks in a row that have not come, where the port was reached before."""

    @property
    def nudge_target(self) -> Address:
        """Where the socket is reached from this host."""
        here = "::1" if self.family == V6 else "127.0.0.1"
        return (here if is_wildcard(self.bound[0]) else self.bound[0]), self.bound[1]


class Datagrams:
    """All registered UDP ports of the tree."""

    def __init__(self, client: bytes, config: ClientConfig) -> None:
        self._client = client
        self._config = config
        self._by_id: dict[bytes, Port] = {}
        self._brokers: Brokers | None = None
        self._gateway: Gateway | None = None
        self._refused: dict[Address, float] = {}
        self._events: socket.socket | None = None
        self._tasks = Tasks()
        self._loop = asyncio.get_running_loop()
        self.on_idle: Callable[[], None] = lambda: None
        """Called when no port is left that needs the agent."""

    def use(self, brokers: Brokers, gateway: Gateway | None) -> None:
        """Register with these."""
        self._brokers, self._gateway = brokers, gateway
        brokers.on_meet = self._met
        brokers.register_port = self._move

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Port]:
        return iter(list(self._by_id.values()))

    def get(self, listener: bytes) -> Port | None:
        """Return the port of that id, if it lives."""
        return self._by_id.get(listener)

    async def bind(self, asked: Bind) -> tuple[Bound, tuple[int, ...]]:
        """Register a port that the program has bound, with DPF first, else with GCB.

        The page comes along for one that is known: several processes of a tree tell a new
        agent of it, and a port that has another broker now is asked about again.
        """
        known = self._by_id.get(asked.listener)
        if known is not None:
            return self._bound(known), _page_of(known)
        one = Port(asked.listener, asked.cookie, asked.bound.address, asked.wished, os.urandom(8))
        one.family = asked.family
        self._watch(one)
        way = self._config.routes.way_at(one.bound[0])
        forwarded = way is not Way.GCB and await self._forward(one)
        never = way is Way.DPF or (way is None and self._config.register == "never")
        if not forwarded and (never or not await self._register(one)):
            self._drop(one)
        log.info(
            "UDP port %s: %s",
            format_address(one.bound),
            f"{format_address(one.proxy)} by {one.how}" if one.how and one.proxy else one.reason,
        )
        return self._bound(one), ()

    async def _forward(self, one: Port) -> bool:
        if self._gateway is None or one.family == V6:
            return False  # dpfd maps IPv4 addresses
        if await self._gateway.forward(one):
            return True
        self._gateway.abandon(one)
        return False

    async def _register(self, one: Port) -> bool:
        assert self._brokers is not None
        if await self._register_with(one, await self._brokers.candidates()):
            return True
        one.reason = one.reason or "no broker answers"
        return False

    async def _register_with(self, one: Port, brokers: list[Broker]) -> bool:
        for broker in brokers:
            if broker.control.by_line:
                one.reason = "no datagrams reach the broker"
            elif self._refused.get(broker.address, 0.0) > self._loop.time():
                one.reason = one.reason or "the broker relays no datagrams"
            elif not broker.gives(one.family) or not broker.is_spoken_in(one.family):
                one.reason = one.reason or "the broker is of the other family"
            elif await self._register_at(broker, one):
                return True
        return False

    async def _move(self, one: Registrant, brokers: list[Broker]) -> bool:
        """Register a port with another broker; the program has to give a sibling again."""
        if not isinstance(one, Port) or not await self._register_with(one, brokers):
            return False
        self._release(one)
        return True

    async def _register_at(self, broker: Broker, one: Port) -> bool:
        if await broker.register(one) and one.relay is not None:
            one.broker = broker
            return True
        broker.disown(one)
        if one.how or UDP in broker.unsupported:
            self._refused[broker.address] = self._loop.time() + REFUSED_SECONDS
        if one.how:
            one.how, one.reason = "", "the broker relays no datagrams"
            self._tasks.run(broker.unregister(one))
        return False

    def _bound(self, one: Port) -> Bound:
        if not one.how or one.proxy is None:
            return Bound(None, error=one.error, reason=one.reason)
        assert self._brokers is not None
        hosts = self._brokers.hosts
        relay = Endpoint.of(one.relay) if one.relay else None
        held = one.channel is not None
        return Bound(Endpoint.of(one.proxy), relay, hosts, one.how, held=held)

    async def hold(self, asked: Hold, fd: int) -> tuple[Bound, tuple[int, ...]]:
        """Take the sibling of a registered port: let datagrams come, and keep the way open.

        Along with the answer goes the page of the port's ways past the relay.
        """
        one = self._by_id.get(asked.listener)
        sibling = socket.socket(fileno=fd)
        if one is None or one.relay is None or one.channel is not None:
            sibling.close()
            return Bound(None, reason="not known"), ()
        key = self._config.key()
        one.channel = Channel(sibling, asked.magic, one.relay, self._client, key)
        one.channel.on_stranger = lambda data, source: self._heard(one, data, source)
        one.knocks = Knocks(one.bound, asked.magic)
        try:
            if await self._is_reached(one):
                self._settle(one)
                self._open_ways(one, asked.magic)
                return self._bound(one), _page_of(one)
            one.heart = Heart(self._config.lifetime, lambda: self._beat(one))
            await self._flow(one)
        except FAILURES as error:
            self._end(one)
            return Bound(None, reason=f"the relay: {error}"), ()
        one.heart.start()
        self._open_ways(one, asked.magic)
        return self._bound(one), _page_of(one)

    # --- ports that are reached as they are

    async def _is_reached(self, one: Port) -> bool:
        """Whether a port needs no broker; raises what of FAILURES keeps the broker from telling."""
        broker, knocks = one.broker, one.knocks
        if one.family == V6:
            return False  # as ways past the relay, for ports of IPv4 only
        if broker is None or knocks is None or not knocks.is_asked(broker, self._config):
            return False
        return await knocks.find(broker, self._client, self._config.patience) is not None

    def _settle(self, one: Port) -> None:
        """Let a port be known by its own address; from now on it is only looked after."""
        assert one.broker is not None
        host = one.broker.control.local_host if is_wildcard(one.bound[0]) else one.bound[0]
        one.proxy, one.claim, one.relay, one.how = (host, one.bound[1]), b"", None, OWN
        log.info("UDP port %s is reached without us", format_address(one.bound))
        self._tasks.run(one.broker.unregister(one))
        one.heart = Heart(self._config.lifetime, lambda: self._knock_again(one))
        one.heart.start()

    async def _knock_again(self, one: Port) -> bool:
        """Look whether a port is still reached: firewalls change."""
        if self._by_id.get(one.listener) is not one:
            return False
        try:
            one.misses = 0 if await self._is_reached(one) else one.misses + 1
        except FAILURES as error:
            log.info("dial-back to %s: %s", format_address(one.bound), error)
        if one.misses < MISSES:
            return True
        log.warning("UDP port %s is not reached any more without us", format_address(one.bound))
        assert self._brokers is not None
        heart = one.heart
        if not await self._register_with(one, await self._brokers.candidates()):
            one.how = OWN
            return True
        one.heart = None
        self._release(one)
        self._brokers.on_news()
        return heart is None

    def _open_ways(self, one: Port, magic: bytes) -> None:
        """Let peers and this port find ways past the relay."""
        assert one.channel is not None and one.proxy is not None and self._brokers is not None
        if one.family == V6:
            return  # the page and its tags are of IPv4
        try:
            one.page = one.page or SharedPage()
        except OSError as error:
            log.warning("datagrams go by the relay only: %s", error)
            return
        one.ways = Ways(
            one.listener,
            one.proxy,
            magic,
            self._config.network,
            one.channel.say,
            lambda peer, card: self._introduce(one, peer, card),
            one.page.page,
        )
        one.channel.on_card = one.ways.meet
        self._place(one)

    async def _introduce(self, one: Port, peer: Address, card: Card) -> None:
        """Give a port's card to a peer: by the broker of his proxy address, else by ours."""
        assert self._brokers is not None
        if one.broker is None or one.channel is None:
            raise RefusedError(Status.UNKNOWN, "the port has no broker")
        if one.how == OWN:
            await one.channel.introduce(peer, card, self._config.patience)
        elif peer[0] in self._brokers.hosts:
            await self._brokers.introduce(peer, card)
        else:
            await one.broker.introduce(peer, card)

    def _place(self, one: Port) -> None:
        """The port's own address and the one under which the relay sees it."""
        if one.ways is None or one.channel is None or one.broker is None:
            return
        hello = one.channel.hello
        host = one.broker.control.local_host if is_wildcard(one.bound[0]) else one.bound[0]
        seen = [hello.observed.address] if hello is not None else []
        one.ways.places = places_of([(host, one.bound[1]), *seen])

    def _heard(self, one: Port, data: bytes, source: Address) -> None:
        if not data and one.knocks is not None:
            one.knocks.heard(source)
        elif one.ways is None:
            return
        elif source == one.nudge_target:
            one.ways.note(data)
        else:
            one.ways.receive(data, source)

    def _met(self, listener: bytes, card: Card) -> Status:
        one = self._by_id.get(listener)
        return Status.UNKNOWN if one is None or one.ways is None else one.ways.meet(card)

    async def _flow(self, one: Port) -> None:
        """Tell the relay where the port is; raises as Control.ask does."""
        assert one.channel is not None and one.heart is not None
        reply = await one.channel.ask(
            Command.FLOW,
            lambda cookie: Flow(self._client, cookie, one.listener),
            self._config.patience,
        )
        assert isinstance(reply, FlowReply)
        one.channel.hello = HelloReply(reply.epoch, reply.cookie, reply.observed, 0)
        one.heart.granted(reply.lifetime)
        self._place(one)

    async def _beat(self, one: Port) -> bool:
        """Keep the way open; a relay that has forgotten the port gets it registered again."""
        if self._by_id.get(one.listener) is not one:
            return False
        try:
            await self._flow(one)
        except RefusedError as error:
            log.info("relay for %s: %s", format_address(one.bound), error)
            if one.broker is not None and await one.broker.register(one):
                await self._flow(one)
        except FAILURES as error:
            log.info("relay for %s: %s", format_address(one.bound), error)
        return True

    # --- the ends of sockets

    def _watch(self, one: Port) -> None:
        self._by_id[one.listener] = one
        if self._events is None:
            self._events = sockdiag.open_datagram_events()
            self._loop.add_reader(self._events, self._read_events)
        self._narrow()

    def _narrow(self) -> None:
        assert self._events is not None
        sockdiag.only_ports(self._events, (one.bound[1] for one in self))

    def _read_events(self) -> None:
        assert self._events is not None
        cookies, lost = sockdiag.read_ended(self._events)
        for one in self:
            if one.cookie in cookies:
                self._end(one)
        if lost:
            self.check()

    def check(self) -> None:
        """End every port whose socket the kernel does not list any more."""
        living = sockdiag.datagram_sockets() if self._by_id else set()
        for one in self:
            if one.cookie not in living:
                self._end(one)

    def vacate(self) -> Bound:
        """A port is wanted: close the siblings of sockets that are gone, whatever events say."""
        self.check()
        return Bound(None)

    def _drop(self, one: Port) -> None:
        self._by_id.pop(one.listener, None)
        self._narrow()
        self._release(one)

    def _release(self, one: Port) -> None:
        """Speak from the port no more."""
        if one.heart is not None:
            one.heart.stop()
        if one.ways is not None:
            one.ways.close()
        if one.page is not None:
            one.page.page.retire()
            one.page.close()
        if one.channel is not None:
            one.channel.close()
        one.heart = one.ways = one.page = one.channel = None

    def _end(self, one: Port) -> None:
        if self._by_id.get(one.listener) is not one:
            return
        log.info("UDP port %s ended", format_address(one.bound))
        self._drop(one)
        if one.how == "dpf" and self._gateway is not None:
            self._tasks.run(self._gateway.unforward(one))
        elif one.broker is not None and one.how != OWN:
            self._tasks.run(one.broker.unregister(one))
        if not self._by_id:
            self.on_idle()

    async def close(self) -> None:
        """Finish what is under way for ports that ended, and let go of the others."""
        await self._tasks.finish(1.0)
        for one in self:
            self._drop(one)
