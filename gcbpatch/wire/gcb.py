"""What is said to and by a broker, and between agents: a struct for every request and reply.

It must never do anything: no I/O, no state, no clock.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ..addresses import V4
from .fields import (
    Claim,
    Endpoint,
    Endpoints,
    Family,
    Free,
    Id,
    Lifetime,
    Message,
    Milliseconds,
    Network,
    Nonce,
    Paths,
    Port,
    Proof,
    Protocol,
    Secret,
    Short,
)


class Hello(Message, frozen=True):
    """Ask a broker who it is and which address it sees; proves the sender's address.

    ``padding`` makes the question at least as large as its answer, since the sender's
    address is not proved yet (RFC 9000, section 8).
    """

    client: Id
    padding: Annotated[bytes, Meta(max_length=256)] = bytes(128)


class HelloReply(Message, frozen=True):
    """``cookie`` must stand in every later request from the same address.

    JOIN goes to ``relay_port`` at the host where HELLO went; ``public`` is the host of the
    broker's proxy addresses (a broker on a gateway is known inside by another one).
    ``free`` is how many more listeners it would take. HELLO is answered at the UDP port
    ``second``, too, if that is not 0. ``other`` is the broker's host of the other family, if
    it has proxy addresses of both.
    """

    epoch: Short
    cookie: Short
    observed: Endpoint
    relay_port: Port
    public: Annotated[str, Meta(max_length=45)] = ""
    free: Free = 1
    second: Port = 0
    other: Annotated[str, Meta(max_length=45)] = ""


class Register(Message, frozen=True):
    """Ask for a proxy socket (TURN's Allocate).

    ``wished`` is the port asked for, 0 for any. ``proxy`` and ``claim`` ask for a proxy
    address that this client held before. ``local`` are addresses at which the agent takes
    OPEN; ``nonce`` comes back in every CALL, which proves that the caller is the broker.
    ``lifetime`` in seconds. ``family`` is that of the addresses which the listener can have
    and show; with ANY it is left to the broker.
    """

    client: Id
    cookie: Short
    listener: Id
    protocol: Protocol
    wished: Port
    nonce: Short
    local: Endpoints
    network: Network
    lifetime: Lifetime
    proxy: Endpoint | None = None
    claim: Claim = b""
    family: Family = V4


class RegisterReply(Message, frozen=True):
    """The proxy address, the claim to it, and how many seconds it lives without REFRESH.

    ``relay`` is the broker's port that relays datagrams, for UDP; 0 if there is none.
    """

    proxy: Endpoint
    claim: Claim
    lifetime: Lifetime
    relay: Port = 0


class Refresh(Message, frozen=True):
    """Heartbeat: keep these listeners (TURN's Refresh). At most 32 in one datagram."""

    client: Id
    cookie: Short
    listeners: Annotated[list[Id], Meta(max_length=32)]


class RefreshReply(Message, frozen=True):
    """``lost`` are listeners that the broker knows nothing of (they must REGISTER again).

    With ``leave`` the broker is about to end: listeners had better go to another.
    """

    epoch: Short
    cookie: Short
    observed: Endpoint
    lifetime: Lifetime
    lost: Annotated[list[Id], Meta(max_length=32)]
    leave: bool = False


class Unregister(Message, frozen=True):
    """Close the proxy socket of a listener."""

    client: Id
    cookie: Short
    listener: Id


class Connect(Message, frozen=True):
    """Ask the broker to arrange a connection to the proxy address ``target``.

    ``port`` is the port by which the connector wants to be known to the listener, since it
    is not known yet which connection will be taken; 0 leaves it to the broker.

    ``nonce`` is the connector's for this connection; it asks the listener to prove itself over
    it, and to punch with it towards the port ``half``, which the connector's half leaves from.
    ``round_trip`` is the milliseconds to the broker and back, 0 if that is not known.
    """

    client: Id
    cookie: Short
    target: Endpoint
    protocol: Protocol
    local: Endpoints
    network: Network
    port: Port = 0
    nonce: Nonce = b""
    half: Port = 0
    round_trip: Milliseconds = 0


class JoinReply(Message, frozen=True):
    """Both halves are there; ``peer`` is where the other one is seen, if they are to punch.

    ``nonce`` is the other side's, ``wait`` how many milliseconds to wait before connecting,
    ``round_trip`` how many a way there and back takes at most.
    """

    peer: Endpoint | None = None
    nonce: Nonce = b""
    wait: Milliseconds = 0
    round_trip: Milliseconds = 0


class ConnectReply(Message, frozen=True):
    """A rendezvous: its name, the secret both sides prove, and the paths, best first.

    ``there`` is the same for all listeners of one network, and tells nothing else about it.
    ``early`` is what the reply to JOIN is expected to say, to be believed until that comes.
    """

    rendezvous: Short
    secret: Secret
    paths: Paths
    there: Annotated[bytes, Meta(max_length=8)] = b""
    early: JoinReply | None = None


class Call(Message, frozen=True):
    """Broker to the listener's agent: somebody wants to connect to ``listener``.

    ``peer`` is the connector's address as the broker saw it, with the port that it wished
    to be known by. With ``commit`` the listener
    hands over the one connection on which the connector says GO; without it (an ordinary
    connector) the joined half is handed over at once.

    ``challenge`` is the connector's nonce. ``early`` is what the reply to JOIN is expected to
    say, if that is said on the waiting connection whose nonce is ``half``.
    """

    listener: Id
    nonce: Short
    rendezvous: Short
    secret: Secret
    peer: Endpoint
    commit: bool
    paths: Paths
    challenge: Nonce = b""
    early: JoinReply | None = None
    half: Nonce = b""


class Join(Message, frozen=True):
    """First frame on a TCP connection to the broker: this is a relayed half.

    With a ``nonce`` the side wants to punch from ``port``, from which this half left.
    ``independent`` says that it is known to be seen under one address by everybody.
    """

    rendezvous: Short
    listening: bool
    proof: Proof
    nonce: Nonce = b""
    port: Port = 0
    independent: bool = False


class Park(Message, frozen=True):
    """First frame on a TCP connection to the broker: this is to wait until it becomes a half.

    JOIN follows on it when there is something to join; until then PARK is said again in time.
    ``listener`` is any that the client has registered there; ``nonce`` names this connection,
    and from ``port``, which it left from, its client can punch. ``independent`` is as in Join.
    """

    client: Id
    listener: Id
    nonce: Nonce = b""
    port: Port = 0
    independent: bool = False


class ParkReply(Message, frozen=True):
    """``patience`` is how many seconds the connection is kept without another PARK."""

    patience: Lifetime


class Punch(Message, frozen=True):
    """First frame of both sides on a punched connection: proof over the nonces of both."""

    proof: Proof


class Open(Message, frozen=True):
    """First frame on a TCP connection between two agents.

    ``nonce`` is the dialler's own for this connection; ``proof`` is of the rendezvous' secret
    over it.
    """

    rendezvous: Short
    listening: bool
    proof: Proof
    nonce: Secret


class OpenReply(Message, frozen=True):
    """The acceptor's proof over the dialler's nonce and its own."""

    proof: Proof
    nonce: Secret


class Confirm(Message, frozen=True):
    """The dialler's proof over both nonces: its OPEN is not a recorded one."""

    proof: Proof


class Go(Message, frozen=True):
    """The connector chose this connection; the program's bytes follow directly."""

    rendezvous: Short


class Flow(Message, frozen=True):
    """From a program's own UDP port to the relay port: relay that listener's datagrams here.

    Said again in time, it keeps the way through NATs open (TURN's Refresh and ChannelBind).
    """

    client: Id
    cookie: Short
    listener: Id


class FlowReply(Message, frozen=True):
    """``observed`` is where datagrams are relayed to now, for ``lifetime`` seconds."""

    epoch: Short
    cookie: Short
    observed: Endpoint
    lifetime: Lifetime


class Probe(Message, frozen=True):
    """Agent to broker: dial back to ``port`` of the host that this comes from.

    A first packet only, no connection: what the listener's own kernel makes of it tells
    the agent whether the port is reached from outside. For UDP it is a datagram that holds
    ``magic`` and nothing else.
    """

    client: Id
    cookie: Short
    protocol: Protocol
    port: Annotated[int, Meta(ge=1, le=65535)]
    magic: Nonce = b""


class ProbeReply(Message, frozen=True):
    """``source`` is where the packet comes from, ``target`` where it was sent to."""

    source: Endpoint
    target: Endpoint


class Ask(Message, frozen=True):
    """Program to a host that it is about to connect to: are you a broker with a proxy there?"""

    protocol: Protocol
    port: Annotated[int, Meta(ge=1, le=65535)]


class Card(Message, frozen=True):
    """How a UDP port is met by another one without the relay.

    ``peer`` is the port's proxy address, by which the other knows it. ``secret`` is what the
    other proves to have been given, ``magic`` what control datagrams to the port begin with,
    ``tag`` what stands before data that the other sends. ``places`` are where the port may be
    reached, ``knows`` says which card of the other's is known here already. ``translated``
    tells whether the port is seen elsewhere than where it is bound.
    """

    peer: Endpoint
    secret: Secret
    magic: Short
    tag: Short
    places: Endpoints
    network: Network = ""
    knows: Nonce = b""
    translated: bool = True


class Introduce(Message, frozen=True):
    """Agent to broker: give my ``card`` to who has the UDP proxy address ``target``."""

    client: Id
    cookie: Short
    target: Endpoint
    card: Card


class Meet(Message, frozen=True):
    """Broker to the agent of ``listener``: somebody whom it speaks with gives his card.

    ``nonce`` is the one of REGISTER, which proves that the caller is the broker.
    """

    listener: Id
    nonce: Short
    card: Card


class Way(Message, frozen=True):
    """From one UDP port to another: is this a way to you, and are you who I think you are?

    ``peer`` is the sender's proxy address, ``proof`` that both cards are known to it. With
    ``over`` the sender uses no way to the other any more.
    """

    peer: Endpoint
    challenge: Secret
    proof: Proof
    over: bool = False


class WayReply(Message, frozen=True):
    """The other's proof, over the challenge."""

    proof: Proof
