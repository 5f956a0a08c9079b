"""Where a job's tasks get their startds from: asks the master's negotiator, one task at a time."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import service
import wire

MASTER_TIMEOUT_S = 10.0
# How long to wait before the negotiator is asked again, in seconds.
POLL_S = 0.25


class NoMatch(Exception):
    """The pool has had nothing to offer for as long as it may; the words say what was lacking."""


@dataclass(frozen=True)
class Startd:
    """What the master says about a startd."""

    name: str
    address: str
    cpus: int


class Matchmaker:
    """Gives out startds and counts which of their cpus the job uses already.

    `patience` is how long, in seconds, the pool may offer nothing while the job uses nothing.
    """

    def __init__(self, master: service.Address, patience: float) -> None:
        self._master = master
        self._patience = patience
        self._deadline = time.monotonic() + patience
        self._used: Counter[Startd] = Counter()
        self._changed = threading.Condition()
        # Held by the one task that is asking, so that waiting tasks do not all ask.
        self._turn = threading.Lock()

    @contextmanager
    def match(self, avoid: set[str]) -> Iterator[Startd]:
        """Gives a startd whose cpu is counted as used until the context ends.

        One whose name is in `avoid` is given only where there are no others. Raises NoMatch.
        """
        with self._turn:
            startd = self._wait_for_startd(avoid)
        try:
            yield startd
        finally:
            self._release(startd)

    def _wait_for_startd(self, avoid: set[str]) -> Startd:
        while True:
            words = "no startd advertises itself with a free cpu"
            try:
                startd = self._ask(avoid)
            except (OSError, wire.Refused, wire.BadMessage) as error:
                startd, words = None, f"the master does not answer: {error}"
            if startd is not None:
                self._use(startd)
                return startd
            self._wait_or_give_up(words)

    def _ask(self, avoid: set[str]) -> Startd | None:
        question = {"type": "match", "exclude": self._full(), "avoid": sorted(avoid)}
        with socket.create_connection(self._master, MASTER_TIMEOUT_S) as sock:
            answer = wire.ask(sock, question)
        if answer.get("ad") is None:
            return None
        ad = wire.field(answer, "ad", dict)
        return Startd(
            name=wire.field(ad, "name", str),
            address=wire.field(ad, "address", str),
            cpus=wire.field(ad, "cpus", int),
        )

    def _full(self) -> list[str]:
        with self._changed:
            return sorted({startd.name for startd, n in self._used.items() if n >= startd.cpus})

    def _use(self, startd: Startd) -> None:
        with self._changed:
            self._used[startd] += 1

    def _release(self, startd: Startd) -> None:
        with self._changed:
            self._used[startd] -= 1
            self._used += Counter()
            self._deadline = time.monotonic() + self._patience
            self._changed.notify()

    def _wait_or_give_up(self, words: str) -> None:
        """Waits for a cpu that is given back, or a moment. Raises NoMatch when it was too long."""
        with self._changed:
            if not self._used and time.monotonic() > self._deadline:
                raise NoMatch(f"{words}, for {self._patience:g} s")
            self._changed.wait(POLL_S)
