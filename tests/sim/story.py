"""One run: what befalls a broker and its clients under one seed, and what must hold after it."""

from __future__ import annotations

import contextlib

from gcbpatch.addresses import Address
from gcbpatch.wire import auth
from gcbpatch.wire.codec import Kind, build
from gcbpatch.wire.messages import Command, Hello

from .broker import RANGE, Broker, Sock, patched
from .client import Attempt, Client, Half
from .world import Violation, World

SECONDS = 150.0
"""Of virtual time in which things happen."""
AFTERWARDS = 120.0
"""Of silence, after which nothing may be left: more than any lifetime and limit."""


class Story:
    """A world with everybody in it."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.attempts: list[Attempt] = []
        self._spoofed: dict[Address, int] = {}
        self._used: set[Half] = set()
        self._stack = contextlib.ExitStack()

    def tell(self) -> World:
        """Let it happen. Raises Violation, or whatever a room raises."""
        with self._stack:
            for patch in patched(self.world, lambda: self.broker):
                self._stack.enter_context(patch)
            self._people()
            self.world.at(1.0, self._something)
            self.world.run(self.world.now + SECONDS)
            self._end()
        return self.world

    def _people(self) -> None:
        self.broker = Broker(self.world)
        self.broker.reach, self.broker.joined = self._reach, self._joined
        many = self.world.chance.randint(2, 4)
        self.clients = [Client(self.world, self.broker, f"203.0.113.{n}") for n in range(1, many)]
        self.clients.append(Client(self.world, self.broker, "203.0.113.200"))
        for client in self.clients:
            client.listen()

    def _reach(self, to: Address, data: bytes) -> None:
        if to in self._spoofed:
            self._spoofed[to] -= len(data)
            if self._spoofed[to] < 0:
                raise Violation("an unproved address got more than came from it")
        for client in self.clients:
            if client.host == to[0]:
                self.world.datagram(lambda c=client: c.arrives(to[1], data))  # type: ignore[misc]

    # --- what happens

    def _something(self) -> None:
        chance = self.world.chance
        client = chance.choice(self.clients)
        port = chance.choice([*self.broker.held, chance.randint(*RANGE)])
        happening = chance.choices(
            ["connect", "ordinary", "listen", "unlisten", "restart", "broker", "jump", "steal",
             "spoof", "silence", "rebind", "stranger"],
            [12, 12, 2, 2, 2, 1, 1, 3, 4, 1, 2, 1],
        )[0]
        if happening == "connect":
            self.attempts.append(client.connect(port))
        elif happening == "ordinary":
            self._connect_plainly(port)
        elif happening == "broker":
            self._restart()
        elif happening == "jump":
            chance.choice([self.broker, client]).skew += chance.uniform(0.1, 100.0)
        elif happening == "steal":
            client.steal(chance.choice(self.clients))
        elif happening == "spoof":
            self._spoof()
        elif happening == "silence":
            client.silent = not client.silent
        elif happening == "rebind" and client.nat:
            client.nat._ports.clear()
        elif happening == "stranger" and port not in self.broker.kernel.open_ports:
            self.broker.kernel.strangers ^= {port}
        elif happening in ("listen", "unlisten", "restart"):
            getattr(client, happening)()
        self.world.at(chance.expovariate(0.7), self._something_more)

    def _something_more(self) -> None:
        if self.world.now < 1000.0 + SECONDS:
            self._something()

    def _restart(self) -> None:
        if self.broker.alive:
            self.broker.die()
            self.world.at(self.world.chance.uniform(0.1, 20.0), self.broker.start)

    def _connect_plainly(self, port: int) -> None:
        attempt = Attempt(port, ordinary=True)
        peer = ("192.0.2.1", 1024 + len(self.attempts))
        attempt.sock = Sock(self.broker.numbers, Half(b"", self.clients[0], attempt, b"", peer))
        self.attempts.append(attempt)
        sock = attempt.sock
        self.world.at(self.world.delay(), lambda: self.broker.ordinary(port, sock, peer))

    def _spoof(self) -> None:
        chance = self.world.chance
        peer = "192.0.2.66", chance.randrange(1024, 60000)
        data = chance.choice([
            auth.sealed(None, Kind.REQUEST, Command.HELLO, 1, Hello(bytes(16))),
            auth.sealed(None, Kind.REQUEST, Command.HELLO, 1, Hello(bytes(16), b"")),
            build(Kind.REQUEST, chance.randrange(256), 1, chance.randbytes(chance.randrange(99))),
            chance.randbytes(chance.randrange(1200)),
        ])
        self._spoofed[peer] = self._spoofed.get(peer, 0) + len(data)
        self.broker.receive(data, peer)

    # --- what must hold

    def _joined(self, one: Sock, other: Sock) -> None:
        connector, listener = one.owner, other.owner
        if connector is None or listener is None or connector.attempt is None:
            raise Violation("somebody without the secret was joined")
        if connector in self._used or listener in self._used:
            raise Violation("a half is joined twice")
        self._used.update((connector, listener))
        attempt = connector.attempt
        attempt.joined += 1
        if attempt.joined > 1:
            raise Violation("a connection is delivered twice")
        same = listener.peer == connector.peer if attempt.ordinary else (
            listener.rendezvous == connector.rendezvous
        )
        if not same or not listener.listener:
            raise Violation("two halves of different connections are joined")
        if (attempt.port, listener.listener) not in self.broker.granted:
            raise Violation("a connection is delivered to the wrong listener")

    def _end(self) -> None:
        for client in self.clients:
            client.silent = True
        if not self.broker.alive:
            self.broker.start()
        self.world.run(self.world.now + AFTERWARDS)
        if not self.broker.is_empty() or self.broker.kernel.open_ports:
            raise Violation("something outlives its lifetime")
        for attempt in self.attempts:
            sock = attempt.sock
            if sock and not (attempt.joined or sock.closed or sock.gone):
                raise Violation("a connection neither came about nor failed")
