"""What is said to a gateway's dpfd, and what it says: one struct for every request and reply.

It must never do anything: no I/O, no state, no clock.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from .fields import Endpoint, Id, Lifetime, Message, Proof, Protocol, Secret, Short, Wished


class Session(Message, frozen=True):
    """First frame of a command session with dpfd."""

    client: Id


class SessionReply(Message, frozen=True):
    """``epoch`` changes when dpfd lost its state; ``public`` are the gateway's public hosts."""

    epoch: Short
    public: Annotated[list[Annotated[str, Meta(max_length=45)]], Meta(max_length=64)]


class Forward(Message, frozen=True):
    """Ask for the mapping [A:B > X:Y]; ``inside`` is X:Y, ``wished`` is A:B.

    ``wished`` may be None, or have the host 0.0.0.0 and/or port 0 for any. ``management``
    is where the client's management socket for this mapping listens, ``nonce`` its key.
    ``lifetime`` in seconds.
    """

    client: Id
    listener: Id
    protocol: Protocol
    inside: Endpoint
    wished: Endpoint | None
    management: Endpoint
    nonce: Secret
    lifetime: Wished


class ForwardReply(Message, frozen=True):
    """The public address A:B and how many seconds it lives without RENEW."""

    public: Endpoint
    lifetime: Lifetime


class Unforward(Message, frozen=True):
    """Remove the mapping of a listener."""

    client: Id
    listener: Id


class Renew(Message, frozen=True):
    """Keep these mappings: DPF's REFRESH."""

    client: Id
    listeners: Annotated[list[Id], Meta(max_length=64)]


class RenewReply(Message, frozen=True):
    """``lost`` are listeners that dpfd knows nothing of."""

    epoch: Short
    lifetime: Lifetime
    lost: Annotated[list[Id], Meta(max_length=64)]


class Query(Message, frozen=True):
    """Which inside address does the public address ``public`` stand for?"""

    public: Endpoint
    protocol: Protocol


class QueryReply(Message, frozen=True):
    """The neighbour's X:Y."""

    inside: Endpoint


class Prove(Message, frozen=True):
    """dpfd to a management socket: are you still the client that I think you are?"""

    challenge: Secret


class ProveReply(Message, frozen=True):
    """HMAC of the challenge under the nonce that the client gave in FORWARD."""

    proof: Proof
