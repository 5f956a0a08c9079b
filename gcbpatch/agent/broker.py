"""Our life at one broker: registrations, heartbeats, and getting everything back after a restart.

One Broker object is one entry of GCB_BROKER. It must never dial: calls are handed on.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable

import msgspec

from ..addresses import (
    ANY,
    Address,
    family_of,
    format_address,
    is_ip,
    is_loopback,
    is_private,
    is_wildcard,
)
from ..config import ClientConfig
from ..errors import EXHAUSTED, RefusedError, RemoteProtocolError, Status, errno_of
from ..outlets import has_way
from ..wire.auth import Key
from ..wire.messages import (
    TCP,
    UDP,
    Call,
    Card,
    Command,
    Connect,
    ConnectReply,
    Endpoint,
    Introduce,
    Meet,
    Message,
    Refresh,
    RefreshReply,
    Register,
    RegisterReply,
    Unregister,
)
from .control import Control, Unreachable
from .halves import Halves
from .heart import Heart
from .listeners import Listener
from .reachability import Reachability
from .registrants import Collection, Registrant
from .standing import Standing
from .tasks import Tasks

log = logging.getLogger("gcbpatch.agent")

REFRESH_CHUNK = 32


def may_stand_for(broker: str, public: str) -> bool:
    """Return whether a broker at ``broker`` may say that its proxies are at ``public``.

    It is believed for public hosts, which is the trust that a broker needs: one that is
    reached by a public address stands for that address alone, and nobody for loopback,
    unless it is there itself.
    """
    if not is_ip(public) or is_wildcard(public) or public == broker:
        return False
    return is_private(broker) and (not is_loopback(public) or is_loopback(broker))


OnCall = Callable[["Broker", Listener, Call], Status]
OnMeet = Callable[[bytes, Card], Status]
"""Told of the card of somebody whom the listener of that id speaks with."""
OnLeft = Callable[["Broker", list[Registrant]], Awaitable[None]]
"""Told of registrants whose registration here is over, or not wanted any more."""


class Broker:
    """Registers the listeners handed to it and keeps them registered."""

    def __init__(
        self,
        address: Address,
        client: bytes,
        config: ClientConfig,
        listeners: Collection,
        reception_port: int,
        on_call: OnCall,
        on_left: OnLeft,
    ) -> None:
        self.address = address
        self.key: Key | None = config.key()
        self._client = client
        self._config = config
        self._listeners = listeners
        self._on_call = on_call
        self._on_left = on_left
        self.is_configured = True
        """Whether the user has chosen it; one that was met by chance is believed less."""
        self.on_news: Callable[[], None] = lambda: None
        """Called when a listener that needed no broker has another address."""
        self.on_meet: OnMeet = _meets_nobody
        self.control = Control(address, client, self.key, self._answer_call)
        self.unsupported: set[int] = set()
        """Protocols that it would not register when it was last asked."""
        self._mine: set[bytes] = set()
        self._tasks = Tasks()
        self._reachability = Reachability(self.control, client, config)
        self.standing = Standing(
            self.control, self._reachability, client, self.key, reception_port
        )
        self.halves = Halves(lambda: self.relay, client, self.key, self.standing.mapping)
        """Connections that wait at its relay."""
        self._unreachable = False
        self._answered = asyncio.get_running_loop().time()
        self._heart = Heart(config.lifetime, self._beat)
        self.control.on_lost = self.halves.on_lost = self._heart.soon

    @property
    def answers(self) -> bool:
        """Whether it has been greeted, and has answered since whatever it was asked."""
        return self.control.hello is not None and not self._unreachable

    @property
    def is_silent(self) -> bool:
        """Whether it did not answer when it was last asked."""
        return self._unreachable

    @property
    def free(self) -> int:
        """How many more listeners it would take, when it was last greeted."""
        return self.control.hello.free if self.control.hello else 0

    @property
    def in_use(self) -> bool:
        """Whether anything is registered here, or should be, or is looked after."""
        return bool(self._mine or self._reachability)

    def has(self, one: Registrant) -> bool:
        """Whether ``one`` is registered here, or should be."""
        return one.listener in self._mine

    @property
    def relay(self) -> Address:
        """Where relayed halves are dialled."""
        hello = self.control.hello
        return self.address[0], hello.relay_port if hello else self.address[1]

    @property
    def observed(self) -> str:
        """The host under which it sees us; empty before it was greeted."""
        hello = self.control.hello
        return hello.observed.host if hello else ""

    @property
    def hosts(self) -> set[str]:
        """Hosts whose ports may be proxy addresses of this broker."""
        hello = self.control.hello
        found = {self.address[0]}
        if hello is not None and may_stand_for(self.address[0], hello.public):
            found.add(hello.public)
        if hello is not None and self.is_configured and _is_beyond_us(hello.other):
            found.add(hello.other)
        return found

    def gives(self, family: int) -> bool:
        """Return whether it has proxy addresses that a listener of that family can show."""
        hello = self.control.hello
        publics = (hello.public or self.address[0], hello.other) if hello else self.address[:1]
        return family == ANY or any(host and family_of(host) == family for host in publics)

    def is_spoken_in(self, family: int) -> bool:
        """Return whether we speak with it in that family: it can then look at a listener of it."""
        return family in (ANY, family_of(self.address[0]))

    @property
    def patience(self) -> float:
        """Seconds to wait: a broker that has been silent gets one try, not a program's time."""
        return 0.3 if self._unreachable else self._config.patience

    async def reach(self) -> bool:
        """Return whether the broker answers; greets it if it has not been greeted."""
        if self.answers:
            return True
        try:
            await self.control.greet(self.patience)
        except (Unreachable, RefusedError, RemoteProtocolError) as error:
            self._note_failure(error)
            return False
        self._heard()
        return True

    def _heard(self) -> None:
        self._unreachable = False
        self._answered = asyncio.get_running_loop().time()

    def _note_failure(self, error: Exception) -> None:
        # Said at every heartbeat while it lasts, but only once for the log's readers.
        level = logging.DEBUG if self._unreachable else logging.WARNING
        if isinstance(error, RefusedError) and error.status is Status.UNSUPPORTED:
            level = logging.INFO  # brokers that relay no datagrams are nothing to warn of
        log.log(level, "broker %s: %s", format_address(self.address), error)
        self._unreachable = self._unreachable or isinstance(error, Unreachable)

    def disown(self, one: Registrant) -> None:
        """Register it no more."""
        self._mine.discard(one.listener)
        self._reachability.drop(one.listener)
        self._keep_halves()

    def adopt(self, one: Registrant) -> None:
        """Keep at it: at every heartbeat, whatever is not registered here gets registered."""
        self._mine.add(one.listener)
        self._heart.start()

    async def register(self, one: Registrant) -> bool:
        """Get ``one`` its proxy address, unless it is reached without. Adopts it.

        What happened stands in it. Behind a NAT, where few are reached, both are asked for at
        once: listen() takes no longer than it must.
        """
        self.adopt(one)
        if one.protocol == TCP:
            self.standing.look(self.patience)
        if not self._reachability.is_asked(one):
            return await self._register(one)
        looking = asyncio.ensure_future(self._look(one))
        try:
            if self._reachability.is_untranslated and (found := await looking):
                return self._leave(one, found)
            await self.standing.settled()
            registered = await self._register(one)
            if (found := await looking) is None:
                return registered
        finally:
            looking.cancel()
        if registered:
            self._tasks.run(self.unregister(one))
        return self._leave(one, found)

    async def _look(self, one: Registrant) -> Address | None:
        return await self._reachability.look(one, _listens(one), self.patience)

    def _leave(self, one: Registrant, found: Address) -> bool:
        """It needs no broker; from now on it is only looked after."""
        self._mine.discard(one.listener)
        self._reachability.settle(one, found)
        self._keep_halves()
        return True

    async def _register(self, one: Registrant) -> bool:
        try:
            reply = await self.control.ask(
                Command.REGISTER, lambda cookie: self._register_message(one, cookie), self.patience
            )
        except (Unreachable, RefusedError, RemoteProtocolError) as error:
            self._note_failure(error)
            one.reason = str(error)
            if isinstance(error, RefusedError) and error.status in EXHAUSTED:
                one.error = errno_of(error.status)
            if isinstance(error, RefusedError) and error.status is Status.UNSUPPORTED:
                self.unsupported.add(one.protocol)
            return False
        assert isinstance(reply, RegisterReply)
        self.unsupported.discard(one.protocol)
        one.proxy, one.claim, one.how = reply.proxy.address, reply.claim, "gcb"
        one.error, one.reason = 0, ""
        if one.protocol == UDP:
            one.relay = (self.address[0], reply.relay) if reply.relay else None
        self._heart.granted(reply.lifetime)
        self._heard()
        if one.protocol == TCP:
            self.halves.begin_for(one.listener)
        return True

    def _keep_halves(self) -> None:
        """Have connections wait at the relay while anything that accepts them is registered."""
        ones = map(self._listeners.get, sorted(self._mine))
        accepting = (one.listener for one in ones if one and one.protocol == TCP and one.proxy)
        self.halves.keep_for(next(accepting, None))

    def _register_message(self, one: Registrant, cookie: bytes) -> Message:
        return Register(
            client=self._client,
            cookie=cookie,
            listener=one.listener,
            protocol=one.protocol,
            wished=self._wish(one),
            nonce=one.nonce,
            local=self.standing.tell(),
            network=self._config.network,
            lifetime=self._config.lifetime,
            proxy=Endpoint.of(one.proxy) if one.proxy else None,
            claim=one.claim,
            family=one.family,
        )

    def _wish(self, one: Registrant) -> int:
        """The port that the proxy address should have, too; 0 for any.

        A broker on this very host would take it from the host's other addresses, and the
        program may want it there next.
        """
        return 0 if is_loopback(self.address[0]) else one.wished

    async def unregister(self, one: Registrant) -> None:
        """Give the proxy address back; a broker that does not answer forgets it by itself."""
        self._mine.discard(one.listener)
        self._keep_halves()
        try:
            await self.control.ask(
                Command.UNREGISTER,
                lambda cookie: Unregister(self._client, cookie, one.listener),
                self.patience,
            )
        except (Unreachable, RefusedError, RemoteProtocolError) as error:
            log.info("unregister at %s: %s", format_address(self.address), error)

    async def connect(
        self, target: Address, port: int, nonce: bytes = b"", half: int = 0
    ) -> ConnectReply:
        """Ask for a connection to ``target`` as ``port``; raises as Control.ask does.

        ``nonce`` is ours for this connection; our half leaves from the port ``half``.
        """
        self.standing.look(self.patience)
        reply = await self.control.ask(
            Command.CONNECT,
            lambda cookie: Connect(
                self._client,
                cookie,
                Endpoint.of(target),
                TCP,
                self.standing.endpoints,
                self._config.network,
                port,
                nonce,
                half if self.control.keeps_ports else 0,
                self.control.round_trip,
            ),
            self.patience,
        )
        assert isinstance(reply, ConnectReply)
        return await self.standing.of_use(reply)

    async def introduce(self, target: Address, card: Card) -> None:
        """Give a card to the holder of ``target``; raises as Control.ask does."""
        await self.control.ask(
            Command.INTRODUCE,
            lambda cookie: Introduce(self._client, cookie, Endpoint.of(target), card),
            self.patience,
        )

    def _answer_call(self, call: Call | Meet) -> Status:
        one = self._listeners.get(call.listener)
        if one is None or not hmac.compare_digest(one.nonce, call.nonce):
            return Status.UNKNOWN
        if isinstance(call, Meet):
            return self.on_meet(one.listener, call.card)
        if not isinstance(one, Listener) or not one.listens:
            return Status.UNKNOWN
        return self._on_call(self, one, call)

    async def _beat(self) -> bool:
        """Refresh all listeners; goes on as long as there is one."""
        self._listeners.check()
        self._mine = {i for i in self._mine if self._listeners.get(i)}
        mine = sorted(self._mine)
        leaving = []
        if self.control.moved():
            log.info("speaking with %s from %s", self.address[0], self.control.local_host)
            self.halves.renew()
            leaving = await self._register_again(mine)
        elif mine and not self.standing.is_told:
            leaving = await self._register_again(mine)
        else:
            for start in range(0, len(mine), REFRESH_CHUNK):
                leaving += await self._refresh(mine[start : start + REFRESH_CHUNK])
        await self._look_again()
        self.standing.look_again(self.patience)
        if self._unreachable:
            self._heart.soon()
        if self._is_over():
            leaving = [one for one in map(self._listeners.get, mine) if one]
        if leaving:
            await self._on_left(self, leaving)
        return self.in_use

    async def _look_again(self) -> None:
        """Look after those that need no broker: firewalls and addresses change."""
        due = self._reachability.due()
        for gone in [id_ for id_ in due if self._listeners.get(id_) is None]:
            self._reachability.drop(gone)
        ones = filter(None, map(self._listeners.get, due))
        await asyncio.gather(*map(self._look_at, ones))

    async def _look_at(self, one: Registrant) -> None:
        before = one.proxy
        if not await self._reachability.is_still(one, _listens(one), self._config.patience):
            log.warning("%s is not reached any more without us", format_address(one.bound))
            self._reachability.drop(one.listener)
            one.proxy, one.how = None, ""
            await self.register(one)
        if one.proxy != before:
            self.on_news()

    def _is_over(self) -> bool:
        """Whether it has been silent for as long as it keeps what nobody refreshes."""
        silence = asyncio.get_running_loop().time() - self._answered
        return self._unreachable and silence > self._heart.lifetime

    async def _refresh(self, ids: list[bytes]) -> list[Registrant]:
        """Refresh some; return those that are registered here no more, and are refused.

        All of them, if the broker wants to be left.
        """
        try:
            reply = await self.control.ask(
                Command.REFRESH,
                lambda cookie: Refresh(self._client, cookie, ids),
                self._config.patience,
            )
        except (Unreachable, RefusedError, RemoteProtocolError) as error:
            self._note_failure(error)
            return []
        assert isinstance(reply, RefreshReply)
        self._heard()
        self._keep_cookie(reply)
        refused = await self._register_again(reply.lost)
        if not reply.leave:
            return refused
        return [one for one in map(self._listeners.get, ids) if one and self.has(one)]

    async def _register_again(self, ids: list[bytes]) -> list[Registrant]:
        """Register some, with their claims; return those that are refused."""
        ones = [one for one in map(self._listeners.get, ids) if one]
        return [one for one in ones if not await self.register(one) and self.answers]

    def _keep_cookie(self, reply: RefreshReply) -> None:
        hello = self.control.hello
        if hello is not None:
            self.control.hello = msgspec.structs.replace(
                hello, epoch=reply.epoch, cookie=reply.cookie, observed=reply.observed
            )

    def close(self) -> None:
        """Stop; registrations are left to their lifetime."""
        self._heart.stop()
        self.halves.close()
        self.control.close()


def _meets_nobody(_: bytes, __: Card) -> Status:
    return Status.UNKNOWN


def _is_beyond_us(host: str) -> bool:
    """Whether a host of the other family can only be meant for the broker: we have no way to it."""
    return is_ip(host) and not (is_wildcard(host) or is_loopback(host) or has_way(host))


def _listens(one: Registrant) -> bool:
    return not isinstance(one, Listener) or one.listens
