"""The pool's head: a collector, which remembers what startds advertise, and a negotiator,
which names a startd to whoever has a job to run.

It never talks to a startd by itself: an advertisement lives as long as it says it does, and is
forgotten if it is not renewed in time.

    python master.py [--host HOST] [--port PORT]

Messages:  update {name, address, cpus, lifetime}  ->  ok
           match {exclude, avoid}                  ->  match {ad or null}
           query                                   ->  ads {ads}
"""

import argparse
import itertools
import math
import socket
import threading
import time
from dataclasses import dataclass
from typing import NoReturn

import service
import wire

MAX_ADS = 10_000
MAX_LIFETIME_S = 3600.0


@dataclass(frozen=True)
class Ad:
    """One startd's advertisement; `expires` is in seconds of the collector's clock."""

    name: str
    address: str
    cpus: int
    expires: float

    def public(self) -> wire.Message:
        return {"name": self.name, "address": self.address, "cpus": self.cpus}


class Collector:
    """The advertisements that are alive; `now` is always given, in seconds."""

    def __init__(self) -> None:
        self._ads: dict[str, Ad] = {}

    def update(self, ad: Ad, now: float) -> bool:
        """Takes or renews an advertisement; says whether the name was unknown until now."""
        new = ad.name not in {known.name for known in self.alive(now)}
        if new and len(self._ads) >= MAX_ADS:
            raise wire.BadMessage(f"the pool is full: {MAX_ADS} startds")
        self._ads[ad.name] = ad
        return new

    def alive(self, now: float) -> list[Ad]:
        """The advertisements that were renewed in time; the others are forgotten."""
        self._ads = {name: ad for name, ad in self._ads.items() if ad.expires > now}
        return list(self._ads.values())


class Negotiator:
    """Chooses among advertisements, the one chosen longest ago first."""

    def __init__(self) -> None:
        self._turns: dict[str, int] = {}
        self._count = itertools.count(1)

    def choose(self, ads: list[Ad], exclude: list[str], avoid: list[str]) -> Ad | None:
        """Never names a startd of `exclude`, and one of `avoid` only if there are no others."""
        willing = [ad for ad in ads if ad.name not in avoid] or ads
        free = [ad for ad in willing if ad.name not in exclude]
        if not free:
            return None
        chosen = min(free, key=lambda ad: self._turns.get(ad.name, 0))
        alive = {ad.name for ad in ads}
        self._turns = {name: turn for name, turn in self._turns.items() if name in alive}
        self._turns[chosen.name] = next(self._count)
        return chosen


class Master:
    """Answers the pool's questions, one connection after another or side by side."""

    def __init__(self) -> None:
        self._collector = Collector()
        self._negotiator = Negotiator()
        self._lock = threading.Lock()

    def attend(self, sock: socket.socket, peer: service.Address) -> None:
        """Answers every message of a connection until the other side ends it."""
        while (message := wire.receive(sock)) is not None:
            with self._lock:
                answer = self._answer(message, peer)
            wire.send(sock, answer)

    def _answer(self, message: wire.Message, peer: service.Address) -> wire.Message:
        match message.get("type"):
            case "update":
                return self._update(message, peer)
            case "match":
                return self._match(message)
            case "query":
                ads = self._collector.alive(time.monotonic())
                return {"type": "ads", "ads": [ad.public() for ad in ads]}
            case other:
                raise wire.BadMessage(f"no such command: {other!r}")

    def _update(self, message: wire.Message, peer: service.Address) -> wire.Message:
        now = time.monotonic()
        ad = parse_ad(message, now)
        if self._collector.update(ad, now):
            service.log.info("%s advertises %s, from %s", ad.name, ad.address, peer[0])
        return {"type": "ok"}

    def _match(self, message: wire.Message) -> wire.Message:
        exclude, avoid = wire.strings(message, "exclude"), wire.strings(message, "avoid")
        ads = self._collector.alive(time.monotonic())
        chosen = self._negotiator.choose(ads, exclude, avoid)
        return {"type": "match", "ad": chosen.public() if chosen else None}


def parse_ad(message: wire.Message, now: float) -> Ad:
    """Reads an advertisement. Raises BadMessage where a field is missing or makes no sense."""
    name, address = wire.field(message, "name", str), wire.field(message, "address", str)
    cpus, lifetime = wire.field(message, "cpus", int), wire.field(message, "lifetime", float)
    if not 0 < len(name) <= 200 or not name.isprintable():
        raise wire.BadMessage("a startd's name has 1 to 200 printable characters")
    if cpus < 1:
        raise wire.BadMessage(f"{cpus} cpus; at least one is needed")
    if not math.isfinite(lifetime) or not 0 < lifetime <= MAX_LIFETIME_S:
        raise wire.BadMessage(f"a lifetime of {lifetime} s; at most {MAX_LIFETIME_S} s")
    wire.parse_address(address)
    return Ad(name, address, cpus, now + lifetime)


def main() -> NoReturn:
    parser = argparse.ArgumentParser(description="the pool's collector and negotiator")
    parser.add_argument("--host", default="", help="interface to listen on (default: all)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: any)")
    arguments = parser.parse_args()
    service.set_up("master")
    listener = service.listen(arguments.host, arguments.port)
    service.ready("master", listener.getsockname()[:2])
    service.serve(listener, Master().attend)


if __name__ == "__main__":
    main()
