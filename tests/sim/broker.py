"""A broker of real rooms in a made-up kernel, and the oracle that watches what it grants."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

from brokerd import dispatch, relay, server
from brokerd.dispatch import Dispatcher, Identity, Question
from brokerd.hosts import Hosts
from brokerd.limits import Bounds, Held, Limits
from brokerd.registry import Ports, Refusal, Registry
from brokerd.relay import Relays
from gcbpatch.addresses import Address
from gcbpatch.errors import RemoteProtocolError, Status
from gcbpatch.wire.auth import Keyring
from gcbpatch.wire.codec import Kind, message_of, parse
from gcbpatch.wire.messages import Command

from .world import Violation, World

HOST, PORT = "198.51.100.1", 65432
RANGE = (20000, 20039)
LIFETIME = 30
TICK = 0.25


class Sock:
    """A connection as the broker holds it; ``heard`` is what its other end was told."""

    def __init__(self, numbers: Any, owner: Any) -> None:
        self._number = next(numbers)
        self.owner = owner
        self.status: Status | None = None
        self.closed = False
        self.gone = False

    def fileno(self) -> int:
        return self._number

    def send(self, data: bytes) -> int:
        if self.gone or self.closed:
            raise BrokenPipeError
        if self.status is None:
            self.status = Status(parse(data).status)
        return len(data)

    def recv(self, size: int) -> bytes:
        raise BlockingIOError

    def setsockopt(self, *args: Any) -> None:
        """Nothing to set."""

    def shutdown(self, how: int) -> None:
        """Its other end reads what was sent."""

    def close(self) -> None:
        self.closed = True


class Vanishing:
    """In the place of an epoll: who has gone is told at each look."""

    def __init__(self, loop: Any, vanished: Callable[[bytes], None]) -> None:
        self._vanished = vanished
        self._watched: dict[int, tuple[Any, bytes]] = {}

    def watch(self, half: Any, name: bytes) -> None:
        self._watched[half.sock.fileno()] = half, name

    def forget(self, half: Any) -> None:
        self._watched.pop(half.sock.fileno(), None)

    def look(self) -> None:
        for half, name in list(self._watched.values()):
            if half.sock.gone:
                self._vanished(name)

    def close(self) -> None:
        self._watched.clear()


class Kernel:
    """The listening ports of the broker's host: what Proxies is."""

    def __init__(self) -> None:
        self.open_ports: set[int] = set()
        self.strangers: set[int] = set()

    def open(self, proxy: Address) -> bool:
        port = proxy[1]
        if port in self.open_ports:
            raise Violation(f"port {port} is opened twice")
        if port in self.strangers:
            return False
        self.open_ports.add(port)
        return True

    def shut(self, proxy: Address) -> None:
        self.open_ports.remove(proxy[1])


class Broker:
    """One address at which incarnations of a broker follow each other."""

    family = socket.AF_INET

    def __init__(self, world: World) -> None:
        self.world = world
        self.numbers = itertools.count(100)
        self.reach: Callable[[Address, bytes], None] = lambda to, data: None
        self.joined: Callable[[Sock, Sock], None] = lambda one, other: None
        self.skew = 0.0
        self._secret = world.chance.randbytes(32)
        self._outbox: list[tuple[Address, bytes]] = []
        self._inbox: list[Any] = []
        self.held: dict[int, tuple[bytes, bytes, float]] = {}
        self.had: dict[int, set[bytes]] = {}
        self.granted: set[tuple[int, bytes]] = set()
        self._seen: set[tuple[Address, int]] = set()
        self.alive = False
        self.start(first=True)
        world.at(TICK, self._tick)

    @property
    def now(self) -> float:
        """The broker's own clock, which may be ahead."""
        return self.world.now + self.skew

    # --- life

    def start(self, first: bool = False) -> None:
        """A new incarnation: it knows nothing but its key file."""
        chance = self.world.chance
        self.kernel, self.limits = Kernel(), Limits(Bounds(proxies=30, half_open=8, relays=6))
        self.pairs: list[tuple[Sock, Sock, Callable[[], None]]] = []
        self.socks: list[Sock] = []
        self.held.clear()
        self.quiet_until = 0.0 if first else self.now + LIFETIME
        self.registry = Registry(
            Hosts((HOST,)), Ports(*RANGE), LIFETIME, self._secret, self.quiet_until
        )
        self.relays = Relays(None, self, self.limits)
        loop: Any = SimpleNamespace(io=lambda *_: SimpleNamespace(start=self._take_callback))
        self._datagrams = server.Datagrams(loop, [self], server.Complainer())  # type: ignore[list-item]
        identity = Identity(Hosts((HOST,)), PORT, chance.randbytes(8), chance.randbytes(32))
        self._dispatcher = Dispatcher(
            identity, Keyring([]), self.limits, self.registry, self.relays, self._ask
        )
        self._dispatcher.proxies = self.kernel
        self._datagrams.dispatcher = self._dispatcher
        self._datagrams.start(self._dispatcher)
        self.alive = True

    def die(self) -> None:
        """SIGKILL: every connection that it held is closed."""
        self.alive = False
        for sock in self.socks:
            sock.closed = True

    def _tick(self) -> None:
        self.world.at(TICK, self._tick)
        if self.alive:
            now = self.now
            self._datagrams.tick(now)
            self.relays._vanishing.look()
            self.relays.expire(now)
            self._dispatcher.expire(now)
            self._flush()
            self.check()

    # --- as a loop's watcher, a socket and a pump

    def _take_callback(self, callback: Callable[[Any], None], sock: Any) -> None:
        self._readable = lambda: callback(sock)

    def fileno(self) -> int:
        return 3

    def recvmsg(self, *args: Any) -> Any:
        if not self._inbox:
            raise BlockingIOError
        data, peer = self._inbox.pop()
        return data, [], 0, peer

    def sendmsg(self, buffers: list[bytes], ancillary: Any, flags: int, to: Address) -> None:
        self._outbox.append((to, b"".join(buffers)))

    def join(self, one: Any, other: Any, on_end: Callable[[], None]) -> None:
        """As a pump: the bytes are not simulated, the end of the connection is."""
        self.joined(one, other)
        entry = one, other, on_end
        self.pairs.append(entry)
        self.world.at(self.world.chance.uniform(0.1, 40.0), lambda: self._finish(entry))

    def _finish(self, entry: Any) -> None:
        if self.alive and entry in self.pairs:
            self.pairs.remove(entry)
            entry[2]()

    def _ask(self, question: Question, done: Callable[[Status], None], now: float) -> Any:
        return self._datagrams.ask(question, done, now)

    def _flush(self) -> list[tuple[Address, bytes]]:
        sent, self._outbox = self._outbox, []
        for to, data in sent:
            self.reach(to, data)
        return sent

    # --- what comes in

    def receive(self, data: bytes, peer: Address) -> list[tuple[Address, bytes]]:
        """A datagram arrives; returns what was sent at once."""
        if not self.alive:
            return []
        self._inbox.append((data, peer))
        self._readable()
        sent = self._flush()
        for to, reply in sent:
            if to == peer and reply[3] == Kind.REPLY:
                self._watch(data, peer, reply)
        return sent

    def door(self, sock: Sock, data: bytes) -> None:
        """A connection to the command port brings its first frame."""
        if not self.alive:
            sock.closed = True
            return
        self.socks.append(sock)
        frame: Any = parse(data)
        try:
            self.relays.join(sock, frame, None, message_of(frame))  # type: ignore[arg-type]
        except (Refusal, RemoteProtocolError) as error:
            sock.status = error.status
            sock.close()
        self._flush()

    def ordinary(self, port: int, sock: Sock, peer: Address) -> None:
        """Somebody who knows nothing of brokers connects to a proxy address."""
        if not self.alive or port not in self.kernel.open_ports:
            sock.closed = True
            return
        self.socks.append(sock)
        self._dispatcher.accepted((HOST, port), sock, peer, self.now)  # type: ignore[arg-type]
        self._flush()

    # --- the oracle

    def _watch(self, data: bytes, peer: Address, reply: bytes) -> None:
        asked, answer = parse(data), parse(reply)
        if answer.status != Status.SUCCESS or (peer, asked.transaction) in self._seen:
            return
        self._seen.add((peer, asked.transaction))
        message: Any = message_of(asked)
        if asked.command == Command.REGISTER:
            told: Any = message_of(answer)
            self._grant(message, told.proxy.port, told.lifetime)
        elif asked.command == Command.REFRESH:
            lost = set(getattr(message_of(answer), "lost", ()))
            for port, (client, name, _) in list(self.held.items()):
                if client == message.client and name in message.listeners and name not in lost:
                    self.held[port] = client, name, self.now + LIFETIME
        elif asked.command == Command.UNREGISTER:
            for port, (client, name, _) in list(self.held.items()):
                if (client, name) == (message.client, message.listener):
                    del self.held[port]

    def _grant(self, message: Any, port: int, lifetime: int) -> None:
        holder = self.held.get(port)
        if holder and holder[0] != message.client and holder[2] > self.now:
            raise Violation(f"port {port} is given away while somebody holds it")
        had = self.had.setdefault(port, set())  # their claims hold for ever
        returning = self.now < self.quiet_until and port in Ports(*RANGE).settled
        if returning and message.client not in had:
            raise Violation(f"port {port} goes to a stranger before its holder could return")
        name = message.client, message.listener
        # A listener has one address: what it had before is over.
        self.held = {p: h for p, h in self.held.items() if h[:2] != name}
        self.held[port] = message.client, message.listener, self.now + lifetime
        had.add(message.client)
        self.granted.add((port, message.listener))

    def check(self) -> None:
        """What must hold after every tick."""
        listeners = list(self.registry._listeners.values())
        ports = [one.proxy[1] for one in listeners]
        if len(set(ports)) != len(ports) or set(ports) != self.kernel.open_ports:
            raise Violation("proxy sockets and listeners are not the same")
        if any(one.expires <= self.now for one in listeners):
            raise Violation("a listener outlives its lifetime")
        waiting = self.relays._waiting.values()
        if any(one.deadline <= self.now for one in waiting):
            raise Violation("a rendezvous outlives its limit")
        counted = [self.limits._all[what] for what in (Held.PROXIES, Held.HALF_OPEN, Held.RELAYS)]
        if counted != [len(listeners), len(waiting), len(self.pairs)]:
            raise Violation(f"counted {counted} of {[len(listeners), len(waiting)]}")

    def is_empty(self) -> bool:
        """Whether nothing at all is left."""
        asked = len(self._datagrams._requester) + len(self._datagrams._asked)
        return not (len(self.registry) or len(self.relays) or self.pairs or asked)


def patched(world: World, broker: Callable[[], Broker]) -> Any:
    """Put virtual time, chance and the made-up epoll in the place of the real ones."""
    clock = SimpleNamespace(monotonic=lambda: broker().now)
    chance = SimpleNamespace(urandom=world.chance.randbytes)
    return (
        mock.patch.object(server, "time", clock),
        mock.patch.object(dispatch, "os", chance),
        mock.patch.object(relay, "Vanishing", Vanishing),
    )

