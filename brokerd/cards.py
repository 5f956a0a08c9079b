"""Gives a UDP port's card to another port's agent, so that both find a way past the relay.

Whoever has a card knows a secret that only the holder of that proxy address was given: two
ports that have each other's know who is at the other end, even if they are registered at
different brokers. This room must never tell anybody an address of somebody else than the
asker, and never send more at once than one card for each pair.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from gcbpatch.addresses import Address
from gcbpatch.errors import Status
from gcbpatch.wire.messages import UDP, Card, Introduce, Meet, Nothing

from .arrange import Side, places
from .hosts import Hosts
from .registry import Listener, Refusal, Registry, Sender

Ask = Callable[[Listener, Meet, Callable[[Status], None], float, bytes], Callable[[], None]]
"""Asks a listener's agent until it answers or is given up; returns how to stop that."""

MOST_WAITING = 65536
"""Cards that are not acknowledged yet."""
MOST_VISITORS = 4096
VISITOR_SECONDS = 120.0
"""How long a port that needs no proxy address can be answered."""


class Cards:
    """Passes cards on."""

    def __init__(self, hosts: Hosts, registry: Registry, ask: Ask) -> None:
        """``hosts`` are those of this broker's proxy addresses."""
        self._hosts = hosts
        self._registry = registry
        self._ask = ask
        self._waiting: dict[tuple[bytes, Address], Callable[[], None]] = {}
        self._visitors: dict[Address, tuple[Listener, bytes, float]] = {}

    def introduce(self, asked: Introduce, sender: Sender, now: float) -> Nothing:
        """Carry out INTRODUCE; raises Refusal."""
        listener, before = self._find(asked.target.address, now)
        self._prove_owner(asked, sender)
        if asked.card.peer.address == sender.address:
            self._remember(asked, sender, now)
        here = Side(sender.address, (), asked.card.network)
        there = Side(listener.sender.address, (), listener.network)
        told = places(asked.card.places, here, there)
        self._pass_on(listener, msgspec.structs.replace(asked.card, places=told), now, before)
        return Nothing()

    def _find(self, target: Address, now: float) -> tuple[Listener, bytes]:
        """Return who is at an address, and what stands before frames to him; raises Refusal."""
        listener = self._registry.at(UDP, target)
        if listener is not None:
            return listener, b""
        visitor, magic, until = self._visitors.get(target, (None, b"", 0.0))
        if visitor is None or until <= now:
            raise Refusal(Status.UNKNOWN, "no such proxy address here")
        return visitor, magic

    def _remember(self, asked: Introduce, sender: Sender, now: float) -> None:
        """This comes from the very port that the card is of, as the cookie proves.

        A port that is reached without a proxy address is registered nowhere; its peer's agent
        can answer it for a while, at the port itself.
        """
        peer = asked.card.peer.address
        visitor = Listener(asked.client, asked.client, UDP, peer, sender, nonce=asked.cookie)
        self._visitors.pop(peer, None)
        self._visitors[peer] = visitor, asked.card.magic, now + VISITOR_SECONDS
        if len(self._visitors) > MOST_VISITORS:
            del self._visitors[next(iter(self._visitors))]

    def _prove_owner(self, asked: Introduce, sender: Sender) -> None:
        """Raise Refusal unless the card's proxy address, if it is one of ours, is the asker's.

        Another broker's is proved by its holder alone being told the answer.
        """
        peer = asked.card.peer.address
        if peer[0] not in self._hosts.all:
            return
        owner = self._registry.at(UDP, peer)
        if owner is None or owner.client != asked.client:
            raise Refusal(Status.NOT_AUTHORIZED, "this proxy address is somebody else's")
        self._registry.find(asked.client, owner.id, sender)

    def _pass_on(self, listener: Listener, card: Card, now: float, before: bytes) -> None:
        """Tell the listener's agent; a later card takes the place of an earlier one."""
        between = listener.id, card.peer.address
        former = self._waiting.pop(between, None)
        if former is not None:
            former()
        if len(self._waiting) >= MOST_WAITING:
            raise Refusal(Status.NO_RESOURCES, "too many cards are on their way")
        self._waiting[between] = self._ask(
            listener,
            Meet(listener.id, listener.nonce, card),
            lambda _: self._told(between),
            now,
            before,
        )

    def _told(self, between: tuple[bytes, Address]) -> None:
        """The agent has answered, or is given up."""
        self._waiting.pop(between, None)
