"""A client: the real reliable exchange and frames, and as little else as an agent needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gcbpatch.addresses import Address
from gcbpatch.errors import Status
from gcbpatch.wire import auth
from gcbpatch.wire.codec import Kind, message_of, parse
from gcbpatch.wire.messages import (
    TCP,
    Command,
    Connect,
    Endpoint,
    Hello,
    Join,
    Message,
    Refresh,
    Register,
    Unregister,
)
from gcbpatch.wire.replay import Answers
from gcbpatch.wire.transaction import Requester

from .broker import HOST, LIFETIME, PORT, Broker, Sock
from .world import Nat, World

BROKER: Address = (HOST, PORT)
STEP = 0.5
PATIENCE = 6.0


@dataclass(eq=False)
class Attempt:
    """One connect(): its target, and what became of it at either end."""

    port: int
    ordinary: bool
    joined: int = 0
    over: bool = False
    sock: Sock | None = None


@dataclass(eq=False)
class Half:
    """What a socket at the broker is an end of."""

    rendezvous: bytes
    client: Client
    attempt: Attempt | None = None
    listener: bytes = b""
    peer: Address = ("", 0)


class Client:
    """One agent behind a NAT or not, with its listeners."""

    def __init__(self, world: World, broker: Broker, host: str) -> None:
        self.world, self.broker, self.host = world, broker, host
        self.id = world.chance.randbytes(16)
        self.nonce = world.chance.randbytes(8)
        self.skew = 0.0
        self.silent = False
        self.listeners: dict[bytes, tuple[Endpoint, bytes] | None] = {}
        self.registered: set[bytes] = set()
        self.nat = Nat(world, host) if world.chance.random() < 0.8 else None
        self._cookie = b""
        self._requester = Requester()
        self._done: dict[int, Callable[[Any | None, Status], None]] = {}
        self._answers = Answers()
        self._asking: set[object] = set()
        self._refreshed = 0.0
        world.at(world.chance.uniform(0, 2), self._step)

    @property
    def now(self) -> float:
        """The client's own clock."""
        return self.world.now + self.skew

    # --- datagrams

    def _send(self, data: bytes) -> None:
        source = self.nat.out(BROKER) if self.nat else (self.host, 4000)
        self.world.datagram(lambda: self.broker.receive(data, source))

    def arrives(self, port: int, data: bytes) -> None:
        """A datagram of the broker's is at our NAT."""
        if self.nat.lets_in(port, BROKER) if self.nat else port == 4000:
            self._take(data)

    def _take(self, data: bytes) -> None:
        frame = parse(data)
        if frame.kind is Kind.REQUEST:
            self._called(frame)
            return
        done = self._done.pop(frame.transaction, None)
        if self._requester.settle(frame.transaction) and done:
            good = frame.status == Status.SUCCESS
            done(message_of(frame) if good else None, Status(frame.status))

    def ask(
        self,
        key: object,
        command: Command,
        message: Message,
        done: Callable[[Any | None, Status], None],
    ) -> None:
        """Ask once at a time for ``key``; ``done`` gets the answer, or None and why."""
        if key in self._asking:
            return
        self._asking.add(key)

        def settled(answer: Any | None, status: Status) -> None:
            self._asking.discard(key)
            if status is Status.STALE_EPOCH:
                self._cookie = b""
            done(answer, status)

        transaction = self.world.chance.getrandbits(64)
        data = auth.sealed(None, Kind.REQUEST, command, transaction, message)
        self._done[transaction] = settled
        self._requester.request(transaction, data, BROKER, self.now, PATIENCE)
        if self.world.chance.random() < 0.05:  # somebody records it and plays it back
            self.world.at(self.world.chance.uniform(0, 60), lambda: self._send(data))

    def _step(self) -> None:
        self.world.at(STEP * self.world.chance.uniform(0.5, 1.0), self._step)
        if self.silent:
            return
        for data, _ in self._requester.datagrams_to_send(self.now):
            self._send(data)
        for transaction in self._requester.expired(self.now):
            self._cookie = b""  # the broker may be another
            self._done.pop(transaction)(None, Status.UNKNOWN)
        self._go_on()

    def _go_on(self) -> None:
        if not self._cookie:
            self.ask("hello", Command.HELLO, Hello(self.id), self._greeted)
            return
        for name in self.listeners:
            if name not in self.registered:
                self._register(name)
        if self.registered and self.now - self._refreshed > LIFETIME / 3:
            self._refresh()

    def _greeted(self, answer: Any | None, status: Status) -> None:
        if answer is not None:
            self._cookie = answer.cookie

    # --- listeners

    def _register(self, name: bytes, theft: tuple[Endpoint, bytes] | None = None) -> None:
        proxy, claim = theft or self.listeners.get(name) or (None, b"")
        wished = self.world.chance.choice([0, 0, 20003, 20038])
        asked = Register(
            self.id, self._cookie, name, TCP, wished, self.nonce, [], "", LIFETIME, proxy, claim
        )

        def done(answer: Any | None, status: Status) -> None:
            if answer is not None and name in self.listeners:
                self.listeners[name] = answer.proxy, answer.claim
                self.registered.add(name)

        self.ask(name, Command.REGISTER, asked, done)

    def steal(self, victim: Client) -> None:
        """Ask for somebody else's proxy address with a claim that does not hold."""
        held = next((one for one in victim.listeners.values() if one), None)
        if held and self._cookie:
            name = self.world.chance.randbytes(16)
            self.listeners[name] = None
            claim = self.world.chance.choice([bytes(16), held[1]])
            self._register(name, (held[0], claim))

    def listen(self) -> None:
        """A program begins to listen."""
        self.listeners[self.world.chance.randbytes(16)] = None

    def unlisten(self) -> None:
        """A program closes its listener."""
        name = next(iter(self.listeners), None)
        if name is not None and self._cookie:
            del self.listeners[name]
            self.registered.discard(name)
            self.ask(
                ("gone", name), Command.UNREGISTER, Unregister(self.id, self._cookie, name),
                lambda answer, status: None,
            )

    def restart(self) -> None:
        """The agent is killed; the program keeps ids and claims and registers with the next."""
        self._cookie = b""
        self._requester, self._done, self._asking = Requester(), {}, set()
        self._answers = Answers()
        self.listeners = {self.world.chance.randbytes(16): v for v in self.listeners.values()}
        self.registered.clear()

    def _refresh(self) -> None:
        asked = list(self.registered)[:32]

        def done(answer: Any | None, status: Status) -> None:
            if answer is not None:
                self._cookie = answer.cookie
                self._refreshed = self.now
                self.registered.difference_update(answer.lost)

        asked.sort()
        self.ask("refresh", Command.REFRESH, Refresh(self.id, self._cookie, asked), done)

    # --- connections

    def connect(self, port: int) -> Attempt:
        """A program connects to a proxy address, by the broker."""
        attempt = Attempt(port, ordinary=False)
        target = Endpoint(HOST, port)

        def done(answer: Any | None, status: Status) -> None:
            if answer is None:
                attempt.over = True
                return
            half = Half(answer.rendezvous, self, attempt)
            attempt.sock = self._join(half, answer.secret, listening=False)

        if not self._cookie:
            attempt.over = True
            return attempt
        asked = Connect(self.id, self._cookie, target, TCP, [], "")
        self.ask(attempt, Command.CONNECT, asked, done)
        return attempt

    def _called(self, frame: Any) -> None:
        kept = self._answers.again(BROKER, frame.transaction)
        if kept is None and self._answers.begin(BROKER, frame.transaction, self.now):
            call: Any = message_of(frame)
            mine = call.nonce == self.nonce and call.listener in self.listeners
            status = Status.SUCCESS if mine else Status.UNKNOWN
            kept = auth.reply_to(frame, None, status)
            self._answers.keep(BROKER, frame.transaction, kept)
            if mine and self.world.chance.random() < 0.9:
                peer = call.peer.address
                self._join(Half(call.rendezvous, self, None, call.listener, peer), call.secret)
        if kept is not None and not self.silent:
            self._send(kept)

    def _join(self, half: Half, secret: bytes, listening: bool = True) -> Sock:
        label = "join listener" if listening else "join connector"
        sock = Sock(self.broker.numbers, half)
        proof = auth.proof(secret, label, half.rendezvous)
        if self.world.chance.random() < 0.1:  # somebody who has seen the name tries first
            forged = Join(half.rendezvous, listening, bytes(16))
            self._dial(Sock(self.broker.numbers, None), forged)
        if self.world.chance.random() < 0.1:
            self.world.at(1.0, lambda: setattr(sock, "gone", True))
        self._dial(sock, Join(half.rendezvous, listening, proof))
        if self.world.chance.random() < 0.1:  # and somebody plays it back
            self._dial(
                Sock(self.broker.numbers, None), Join(half.rendezvous, listening, proof), 2.0
            )
        return sock

    def _dial(self, sock: Sock, message: Join, later: float = 0.0) -> None:
        data = auth.sealed(None, Kind.REQUEST, Command.JOIN, 0, message)
        delay = later + 3 * self.world.delay()
        self.world.at(delay, lambda: self.broker.door(sock, data))
