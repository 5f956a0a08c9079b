"""Commands of clients, a function each.

It must never touch a socket: liveness asks clients, kernel rooms ask the gateway; nor change a
mapping but by mappings, which keeps the three representations together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from gcbpatch.addresses import format_address
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

from .grants import Grants, Senses
from .kernel.port import KernelError
from .mappings import Mappings
from .mirror import MirrorError
from .policy import Asker, Policy, Refused

log = logging.getLogger("dpfd")


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
        self.senses = senses
        self.keyring = keyring
        self.grants = Grants(mappings, policy, senses)

    @property
    def policy(self) -> Policy:
        """Who may map what, as of now."""
        return self.grants.policy

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
    """FORWARD: set a mapping, or refresh it."""
    allowance = dispatcher.policy.check(request, peer.asker)
    mapping = dispatcher.grants.grant(request, allowance)
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
