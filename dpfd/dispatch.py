"""Commands of clients, a function each.

It must never touch a socket: liveness asks clients, kernel rooms ask the gateway; nor change a
mapping but by mappings, which keeps the three representations together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from gcbpatch.addresses import Address, format_address, is_wildcard
from gcbpatch.errors import RemoteProtocolError, Status
from gcbpatch.wire.auth import Key, Keyring, reply_to
from gcbpatch.wire.codec import Frame, Kind, message_of
from gcbpatch.wire.messages import (
    Command,
    Endpoint,
    Forward,
    ForwardReply,
    Message,
    Nothing,
    Query,
    QueryReply,
    Renew,
    RenewReply,
    Session,
    SessionReply,
    Unforward,
)

from .kernel.port import KernelError
from .liveness import Answer
from .mappings import Mappings
from .mirror import MirrorError
from .policy import Allowance, Asker, Policy, Refused
from .table import Mapping

log = logging.getLogger("dpfd")


@dataclass(frozen=True, slots=True)
class Senses:
    """What the mappings need of the world, handed in.

    ``chance`` gives random numbers; ``port_in_use`` says whether the gateway itself uses a
    public address; ``probe`` asks a client's management socket; ``watch`` is told of every
    mapping that is new.
    """

    chance: Callable[[], int]
    port_in_use: Callable[[int, Address], bool]
    probe: Callable[[Mapping], Answer]
    watch: Callable[[Mapping], None]
    clock: Callable[[], float] = time.monotonic


@dataclass(slots=True)
class Peer:
    """One command session: who is at the other end. ``client`` is known after SESSION."""

    host: str
    client: bytes | None = None
    token: str = ""

    @property
    def asker(self) -> Asker:
        """As the policy sees it."""
        return Asker(self.host, self.token)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What to send, and whether the session goes on. ``problem`` is for the log."""

    reply: bytes
    status: Status = Status.SUCCESS
    goes_on: bool = True
    problem: str = ""


class Dispatcher:
    """Answers frames."""

    def __init__(
        self, mappings: Mappings, policy: Policy, senses: Senses, keyring: Keyring
    ) -> None:
        self.mappings = mappings
        self.policy = policy
        self.senses = senses
        self.keyring = keyring

    def answer(self, frame: Frame, peer: Peer) -> Outcome:
        """Carry out a request and return its reply; raises nothing for what a client sends."""
        key = None
        try:
            key = self.keyring.authenticate(frame)
            peer.token = key.name if key else ""
            reply = self._carry_out(frame, peer)
        except RemoteProtocolError as error:
            return _refusal(frame, key, error.status, error)
        except Refused as error:
            return _refusal(frame, key, error.status, error)
        except (MirrorError, KernelError) as error:
            log.error("a request of %s failed: %s", peer.host, error)
            return _refusal(frame, key, _OURS[type(error)], error)
        return Outcome(reply_to(frame, key, Status.SUCCESS, reply))

    def _carry_out(self, frame: Frame, peer: Peer) -> Message:
        if frame.kind is not Kind.REQUEST:
            raise RemoteProtocolError(Status.MALFORMED, "a reply where a request should be")
        handler = _HANDLERS.get(frame.command)
        if handler is None:
            problem = f"command {frame.command} is none of dpfd's"
            raise RemoteProtocolError(Status.UNSUPPORTED, problem)
        request = message_of(frame)
        if peer.client is None and not isinstance(request, Session):
            raise RemoteProtocolError(Status.MALFORMED, "a session begins with SESSION")
        if getattr(request, "client", peer.client) != peer.client and peer.client is not None:
            raise Refused(Status.NOT_AUTHORIZED, "another client's id than the session's")
        return handler(self, peer, request)


_OURS: dict[type[Exception], Status] = {
    MirrorError: Status.NO_RESOURCES,
    KernelError: Status.CANNOT_PROVIDE_EXTERNAL,
}


def _refusal(frame: Frame, key: Key | None, status: Status, error: Exception) -> Outcome:
    """A client that does not speak the protocol is cut off; one that asks too much is not."""
    speaks = not isinstance(error, RemoteProtocolError) or status is Status.UNSUPPORTED
    return Outcome(reply_to(frame, key, status), status, speaks, str(error))


def open_session(dispatcher: Dispatcher, peer: Peer, request: Session) -> SessionReply:
    """SESSION: who asks, and what this gateway is."""
    peer.client = request.client
    mappings = dispatcher.mappings
    return SessionReply(mappings.epoch, list(mappings.pool.hosts))


def forward(dispatcher: Dispatcher, peer: Peer, request: Forward) -> ForwardReply:
    """FORWARD: set a mapping, or refresh it.

    A dead listener that held the same inside address is succeeded: its public address goes to
    the new one unless that wishes for another. A living one keeps its mapping, and the new one
    gets a public address of its own: they share the port by SO_REUSEPORT, or the old one has
    only just been closed.
    """
    allowance = dispatcher.policy.check(request, peer.asker)
    predecessor = _dead_holder(dispatcher, request)
    with dispatcher.mappings.one_at_a_time():
        mapping = _refreshed(dispatcher, request)
        mapping = mapping or _new(dispatcher, request, allowance, predecessor)
    dispatcher.senses.watch(mapping)
    return ForwardReply(Endpoint.of(mapping.public), mapping.lifetime)


def unforward(dispatcher: Dispatcher, peer: Peer, request: Unforward) -> Nothing:
    """UNFORWARD: remove a mapping."""
    mapping = dispatcher.mappings.table.get((request.client, request.listener))
    if mapping is None or mapping.management[0] != peer.host:
        raise Refused(Status.UNKNOWN, "UNFORWARD of a listener that has no mapping")
    dispatcher.mappings.remove([mapping])
    return Nothing()


def renew(dispatcher: Dispatcher, peer: Peer, request: Renew) -> RenewReply:
    """RENEW: whole lifetimes again; tells which listeners have no mapping."""
    table, now = dispatcher.mappings.table, dispatcher.senses.clock()
    lifetime, lost = dispatcher.policy.max_lifetime, []
    for listener in request.listeners:
        mapping = table.get((request.client, listener))
        if mapping is None or mapping.management[0] != peer.host:
            lost.append(listener)
        else:
            table.renew(mapping.owner, now)
            lifetime = min(lifetime, mapping.lifetime)
    return RenewReply(dispatcher.mappings.epoch, lifetime, lost)


def query(dispatcher: Dispatcher, peer: Peer, request: Query) -> QueryReply:
    """QUERY: the inside address of a public one, for any neighbour."""
    mapping = dispatcher.mappings.table.at_public(request.protocol, request.public.address)
    if mapping is None:
        where = format_address(request.public.address)
        raise Refused(Status.UNKNOWN, f"QUERY of {where}, which is not mapped")
    return QueryReply(Endpoint.of(mapping.inside))


_HANDLERS: dict[int, Callable[..., Message]] = {
    Command.SESSION: open_session,
    Command.FORWARD: forward,
    Command.UNFORWARD: unforward,
    Command.RENEW: renew,
    Command.QUERY: query,
}


def _dead_holder(dispatcher: Dispatcher, request: Forward) -> Mapping | None:
    """Return another client's mapping to the same inside address, if that one is dead.

    The oldest is asked, since each costs a round trip; what a client itself has left behind,
    it removes itself.
    """
    table = dispatcher.mappings.table
    if table.get((request.client, request.listener)) is not None:
        return None
    holders = table.at_inside(request.protocol, request.inside.address)
    others = [mapping for mapping in holders if mapping.client != request.client]
    for mapping in others[:1]:
        if dispatcher.senses.probe(mapping) in (Answer.REFUSED, Answer.WRONG):
            return mapping
    return None


def _refreshed(dispatcher: Dispatcher, request: Forward) -> Mapping | None:
    """Return the owner's mapping with what the request says anew; None if it must move."""
    mappings = dispatcher.mappings
    old = mappings.table.get((request.client, request.listener))
    if old is None or (old.protocol, old.inside) != (request.protocol, request.inside.address):
        return None
    fresh = replace(
        old,
        management=request.management.address,
        nonce=request.nonce,
        lifetime=dispatcher.policy.lifetime(request.lifetime),
    )
    if fresh == old:
        mappings.table.renew(old.owner, dispatcher.senses.clock())
    else:
        mappings.put(fresh, old, dispatcher.senses.clock())
    return fresh


def _new(
    dispatcher: Dispatcher, request: Forward, allowance: Allowance, predecessor: Mapping | None
) -> Mapping:
    """Set a mapping in the place of the owner's own one elsewhere, or of a dead predecessor."""
    mappings = dispatcher.mappings
    owner = request.client, request.listener
    if predecessor is not None and mappings.table.get(predecessor.owner) != predecessor:
        predecessor = None
    old = mappings.table.get(owner) or predecessor
    if old is None:
        table = mappings.table
        counts = table.count_of(request.client), table.count_at(request.inside.host), len(table)
        dispatcher.policy.check_room(allowance, *counts)
    mapping = Mapping(
        client=request.client,
        listener=request.listener,
        protocol=request.protocol,
        public=_public_address(dispatcher, request, allowance, old),
        inside=request.inside.address,
        management=request.management.address,
        nonce=request.nonce,
        lifetime=dispatcher.policy.lifetime(request.lifetime),
    )
    mappings.put(mapping, old, dispatcher.senses.clock())
    log.info("%s set, for %d s", mapping, mapping.lifetime)
    return mapping


def _public_address(
    dispatcher: Dispatcher, request: Forward, allowance: Allowance, old: Mapping | None
) -> Address:
    """Choose a public address: the wish, the old one, any. Raises Refused.

    Who wishes for a port, where wishes are fulfilled or refused, gets that port or nothing.
    """
    wish = request.wished.address if request.wished else ("0.0.0.0", 0)
    strict = dispatcher.policy.refuses and wish[1] != 0
    wishes = [wish, old.public] if old is not None else [wish]
    pool, chance = dispatcher.mappings.pool, dispatcher.senses.chance()
    if old is None and dispatcher.mappings.table.count_in(request.protocol) >= pool.size:
        raise Refused(Status.NO_RESOURCES, f"all {pool.size} public addresses are mapped")
    for candidate in pool.candidates(wishes, chance):
        if strict and not _fulfils(candidate, wish):
            break
        free = allowance.gives(candidate)
        if free and _is_free(dispatcher, request.protocol, candidate, old):
            return candidate
    if strict:
        problem = f"{format_address(wish)}, which was wished for, cannot be had"
        raise Refused(Status.CANNOT_PROVIDE_EXTERNAL, problem)
    raise Refused(Status.NO_RESOURCES, f"none of {pool.size} public addresses is free")


def _fulfils(public: Address, wish: Address) -> bool:
    return public[1] == wish[1] and (is_wildcard(wish[0]) or public[0] == wish[0])


def _is_free(dispatcher: Dispatcher, protocol: int, public: Address, old: Mapping | None) -> bool:
    mappings = dispatcher.mappings
    holder = mappings.table.at_public(protocol, public)
    if holder is not None:
        return old is not None and holder.owner == old.owner
    return not mappings.claimed(protocol, public) and not dispatcher.senses.port_in_use(
        protocol, public
    )
