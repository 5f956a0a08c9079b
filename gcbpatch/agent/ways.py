"""The ways of one UDP port past the relay: cards, questions, and the page that the program reads.

The program says, in a datagram to its own port, to which peers it sends by the relay; their
agents get our card by their brokers and we get theirs. What is asked goes from the program's
own port, through the same holes that its datagrams take. This room must never answer who has
no proof, and never keep more ways than the page has slots.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import mmap
import os
import time
from collections.abc import Awaitable, Callable, Iterable

from ..addresses import Address, format_address
from ..errors import GcbError, RemoteProtocolError, Status
from ..wire import waypage
from ..wire.codec import Frame, Kind, build, message_of, parse, status_of
from ..wire.datagrams import HEADER_4, WHOLE_4, direct, tag, whole
from ..wire.datagrams import parse as parse_header
from ..wire.messages import Card, Command, Endpoint, WayReply
from ..wire.messages import Way as Asked
from .tasks import Tasks
from .way import Way, is_translated

log = logging.getLogger("gcbpatch.agent")

SECRET_SIZE = 16
NO_WAYS = b"-"
"""What a program says that can hear nobody but the relay."""

# Linux's numbers, which the fcntl module of Python 3.11 does not name in full.
_F_ADD_SEALS, _SEALS = 1033, 0x0001 | 0x0002 | 0x0004
"""No more seals, neither shorter nor longer: no process can take the memory from another."""

Introduce = Callable[[Address, Card], Awaitable[None]]
"""Gives a card to a proxy address's holder; raises OSError or GcbError."""
Say = Callable[[bytes, Address], None]
"""Sends a datagram from the port."""


class SharedPage:
    """The page and its descriptor."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("gcbpatch-ways", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, waypage.SIZE)
            fcntl.fcntl(self.fd, _F_ADD_SEALS, _SEALS)
            self._memory = mmap.mmap(self.fd, waypage.SIZE)
        except OSError:
            os.close(self.fd)
            raise
        self.page = waypage.Page(memoryview(self._memory))

    def close(self) -> None:
        """Give up the descriptor; the memory goes with the last who looks at it."""
        os.close(self.fd)


class Ways:
    """All ways of one port."""

    def __init__(
        self,
        listener: bytes,
        own: Address,
        magic: bytes,
        network: str,
        say: Say,
        introduce: Introduce,
        page: waypage.Page,
    ) -> None:
        """``own`` is the port's proxy address."""
        self._listener, self._own, self._magic = listener, own, magic
        self._network = network
        self._say, self._introduce, self._page = say, introduce, page
        self.places: list[Endpoint] = []
        """Where the port may be reached, the one by which it is bound first."""
        self._ways: dict[Address, Way] = {}
        self._slots: dict[Address, tuple[int, Address]] = {}
        self._tasks = Tasks()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    # --- what the program says

    def note(self, said: bytes) -> None:
        """The program has said something to its own port: to whom it sends, or that it is deaf."""
        if said == NO_WAYS:
            self.close()
        elif len(said) == HEADER_4 and said[0] == WHOLE_4 and not self._closed:
            self._want(parse_header(said).peer)

    def _want(self, peer: Address) -> None:
        now = self._loop.time()
        way = self._ways.get(peer) or self._add(peer, now)
        if way is not None:
            if way.wanted(now):
                self._give_card(way)
            self._turn()

    def _add(self, peer: Address, now: float) -> Way | None:
        """Begin with a peer, if there is room; those that nobody uses make room."""
        for idle in [one for one in self._ways.values() if one.is_idle(now)]:
            self._drop(idle)
        if len(self._ways) >= waypage.SLOTS or peer == self._own:
            return None
        way = self._ways[peer] = Way(peer, os.urandom(SECRET_SIZE), now)
        return way

    # --- cards

    def meet(self, card: Card) -> Status:
        """A peer's card has come by our broker."""
        now, peer = self._loop.time(), card.peer.address
        if self._closed:
            return Status.UNKNOWN
        way = self._ways.get(peer) or self._add(peer, now)
        if way is None:
            return Status.NO_RESOURCES
        if way.meet(card, now):
            self._give_card(way)
        self._turn()
        return Status.SUCCESS

    def _give_card(self, way: Way) -> None:
        way.told(self._loop.time())
        self._tasks.run(self._give(way))

    async def _give(self, way: Way) -> None:
        card = Card(
            Endpoint.of(self._own),
            way.secret,
            self._magic,
            tag(self._listener, whole(way.peer)),
            self.places,
            self._network,
            way.knows,
            is_translated(self.places),
        )
        try:
            await self._introduce(way.peer, card)
        except (OSError, GcbError) as error:
            log.info("no introduction to %s: %s", format_address(way.peer), error)

    # --- questions and answers

    def receive(self, data: bytes, source: Address) -> None:
        """Something with the port's magic has come, from a stranger as it may be."""
        try:
            frame = parse(data)
            if frame.command != Command.WAY:
                return
            if frame.kind is Kind.REPLY:
                self._answered(frame, source)
            else:
                self._asked(frame, source)
        except RemoteProtocolError as error:
            log.debug("from %s: %s", format_address(source), error)

    def _asked(self, frame: Frame, source: Address) -> None:
        asked = message_of(frame)
        assert isinstance(asked, Asked)
        way = self._ways.get(asked.peer.address)
        if way is None or way.card is None:
            return
        magic = way.card.magic
        proof, curious = way.answer(asked, source, self._loop.time())
        reply = build(Kind.REPLY, Command.WAY, frame.transaction, WayReply(proof))
        self._say(magic + reply, source)
        if curious:
            self._ask(way, source)
        self._show(way)

    def _answered(self, frame: Frame, source: Address) -> None:
        if status_of(frame) is not Status.SUCCESS:
            return
        reply = message_of(frame)
        assert isinstance(reply, WayReply)
        for way in self._ways.values():
            now = self._loop.time()
            until = way.answered(frame.transaction, reply.proof, source, now)
            if until is not None:
                self._show(way)
                left = int((until - now) * 1e9)
                self._page.confirm(self._slots[way.peer][0], time.monotonic_ns() + left)
                self._set_timer()
                return

    def _ask(self, way: Way, place: Address) -> None:
        assert way.card is not None
        challenge = os.urandom(SECRET_SIZE)
        transaction = int.from_bytes(os.urandom(8), "big")
        proof = way.ask(transaction, place, challenge, self._loop.time())
        message = Asked(Endpoint.of(self._own), challenge, proof)
        frame = build(Kind.REQUEST, Command.WAY, transaction, message)
        self._say(way.card.magic + frame, place)

    def _say_over(self, way: Way) -> None:
        """Tell the peer that its datagrams had better come by the relay."""
        if way.card is not None and way.place is not None:
            challenge = os.urandom(SECRET_SIZE)
            message = Asked(Endpoint.of(self._own), challenge, way.farewell(challenge), over=True)
            frame = build(Kind.REQUEST, Command.WAY, 0, message)
            self._say(way.card.magic + frame, way.place)

    # --- what is due

    def _turn(self) -> None:
        now = self._loop.time()
        for way in list(self._ways.values()):
            slot = self._slots.get(way.peer)
            due = way.due()
            if due is not None and due <= now:
                used = slot is not None and self._page.take_used(slot[0])
                for place in way.turn(now, used):
                    self._ask(way, place)
                self._show(way)
            if way.is_idle(now):
                self._drop(way)
        self._set_timer()

    def _set_timer(self) -> None:
        due = min((at for at in map(Way.due, self._ways.values()) if at is not None), default=None)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if due is None else self._loop.call_at(due, self._turn)

    # --- what the program sees

    def _show(self, way: Way) -> None:
        """Have the program see the place of a way, if that is not what it sees."""
        _, seen = self._slots.get(way.peer, (None, None))
        if way.place == seen:
            return
        self._hide(way)
        if way.place is None or way.card is None:
            log.info("datagrams for %s: RELAYED", format_address(way.peer))
            return
        before = direct(whole(self._own), way.card.tag)
        number = self._page.put(whole(way.peer), way.place, before)
        self._slots[way.peer] = number, way.place
        log.info("datagrams for %s: %s", format_address(way.peer), way.kind)

    def _hide(self, way: Way) -> None:
        slot, _ = self._slots.pop(way.peer, (None, None))
        if slot is not None:
            self._page.clear(slot)

    def _drop(self, way: Way) -> None:
        self._say_over(way)
        self._hide(way)
        del self._ways[way.peer]

    def close(self) -> None:
        """Use none any more, and say so."""
        self._closed = True
        for way in list(self._ways.values()):
            self._drop(way)
        self._set_timer()


def places_of(own: Iterable[Address]) -> list[Endpoint]:
    """Return addresses of a port as places, each once."""
    return [Endpoint.of(address) for address in dict.fromkeys(own)]
