"""Virtual time, chance, and a network that loses, repeats and reorders datagrams."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from gcbpatch.addresses import Address


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass
class World:
    """Everything that happens, in order; the same seed gives the same history."""

    seed: int
    now: float = 1000.0
    steps: int = 0
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self._order = itertools.count()
        self.loss = self.chance.choice([0.0, 0.1, 0.3])
        self.repeats = self.chance.choice([0.0, 0.2])

    def at(self, delay: float, action: Callable[[], None]) -> None:
        """Have something happen later."""
        heapq.heappush(self._events, (self.now + delay, next(self._order), action))

    def run(self, until: float) -> None:
        """Let time go on."""
        while self._events and self._events[0][0] <= until:
            self.now, _, action = heapq.heappop(self._events)
            self.steps += 1
            action()
        self.now = until

    def delay(self) -> float:
        """One way through the network: mostly short, at times so long that it overtakes."""
        return self.chance.choice([0.02, 0.03, 0.05, 0.4]) * self.chance.uniform(0.5, 1.5)

    def datagram(self, arrive: Callable[[], None]) -> None:
        """Send a datagram: it may be lost, or come twice, and out of order."""
        copies = 2 if self.chance.random() < self.repeats else 1
        for _ in range(copies):
            if self.chance.random() >= self.loss:
                self.at(self.delay(), arrive)


class Nat:
    """One NAT by its mapping and filtering behaviour (RFC 4787), each I, A or AP dependent."""

    def __init__(self, world: World, host: str) -> None:
        self._world = world
        self.host = host
        self._mapping = world.chance.choice(["I", "A", "AP"])
        self._filtering = world.chance.choice(["I", "A", "AP"])
        self._seconds = world.chance.choice([15.0, 60.0, 300.0])
        self._ports: dict[object, int] = {}
        self._back: dict[int, tuple[float, set[object]]] = {}

    def _kind(self, how: str, peer: Address) -> object:
        return {"I": None, "A": peer[0], "AP": peer}[how]

    def out(self, peer: Address) -> Address:
        """Return where a datagram to ``peer`` comes from, as others see it."""
        now, kind = self._world.now, self._kind(self._mapping, peer)
        port = self._ports.get(kind)
        if port is None or self._back[port][0] <= now:
            port = self._ports[kind] = self._world.chance.randrange(1024, 60000)
            self._back[port] = now, set()
        allowed = self._back[port][1]
        allowed.add(self._kind(self._filtering, peer))
        self._back[port] = now + self._seconds, allowed
        return self.host, port

    def lets_in(self, port: int, peer: Address) -> bool:
        """Return whether a datagram from ``peer`` to a port of ours gets through."""
        until, allowed = self._back.get(port, (0.0, set()))
        return until > self._world.now and self._kind(self._filtering, peer) in allowed
