"""Are the clients still there? Asks their management sockets, each with a fresh challenge.

A mapping is removed when its management socket has refused, or somebody else has answered
there, for longer than an agent's restart takes. A client that cannot be reached (a host
firewall, a host that is down) lives by its lease alone, and so does one whose management
socket has refused ever since dpfd knows it: a firewall may refuse, too. It must never decide
on one answer, and must never remove a mapping by itself: it is handed the function that does.
"""

from __future__ import annotations

import enum
import heapq
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import gevent
from gevent import socket
from gevent.event import Event
from gevent.pool import Pool

from gcbpatch.addresses import format_address
from gcbpatch.errors import GcbError, RemoteProtocolError
from gcbpatch.wire.auth import check_proof
from gcbpatch.wire.codec import Frame, Kind, build, message_of
from gcbpatch.wire.messages import Command, Prove, ProveReply
from gcbpatch.wire.session import FrameReader

from .table import Mapping, Owner, Table

log = logging.getLogger("dpfd.liveness")

CHALLENGE_SIZE = 16
PATIENCE = 2.0
"""Seconds for connecting to a management socket and for its answer, together."""
AT_ONCE = 256
"""How many management sockets are asked at the same time; those that do not answer take long."""
BURST = 0.05
"""Seconds that a rate may be made up for: no timer is exact."""


class Answer(enum.Enum):
    """What came of asking a management socket."""

    PROVED = "proved"
    WRONG = "answered, but not with the client's proof"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"


def probe(mapping: Mapping, patience: float = PATIENCE) -> Answer:
    """Ask a mapping's management socket for its proof. Raises nothing of the network's."""
    try:
        with gevent.Timeout(patience, TimeoutError), socket.socket() as link:
            link.connect(mapping.management)
            return _ask(link, mapping.nonce)
    except ConnectionRefusedError:
        return Answer.REFUSED
    except ConnectionResetError:
        return Answer.WRONG
    except OSError:  # TimeoutError is one
        return Answer.UNREACHABLE


def _ask(link: socket.socket, nonce: bytes) -> Answer:
    challenge = os.urandom(CHALLENGE_SIZE)
    transaction = int.from_bytes(os.urandom(8), "big")
    link.sendall(build(Kind.REQUEST, Command.PROVE, transaction, Prove(challenge)))
    try:
        frame = _read_frame(link)
        reply = message_of(frame) if frame else None
    except RemoteProtocolError:
        return Answer.WRONG
    proved = (
        frame is not None
        and (frame.kind, frame.command) == (Kind.REPLY, Command.PROVE)
        and isinstance(reply, ProveReply)
        and check_proof(nonce, "management", challenge, reply.proof)
    )
    return Answer.PROVED if proved else Answer.WRONG


def _read_frame(link: socket.socket) -> Frame | None:
    reader = FrameReader()
    while True:
        data = link.recv(reader.wants)
        if not data:
            return None
        if frame := reader.feed(data):
            return frame


class Pace:
    """So many a second and no more, evenly."""

    def __init__(self, rate: float) -> None:
        self._gap = 1 / rate
        self._next = 0.0

    def wait(self, now: float) -> float:
        """Take the next turn; return how many seconds it is away, 0 or less for none."""
        self._next = max(self._next, now - BURST) + self._gap
        return self._next - self._gap - now


@dataclass(slots=True)
class Tally:
    """What was asked since ``began``, and what CPU time the process had used by then."""

    began: float
    cpu: float
    answers: Counter[Answer] = field(default_factory=Counter)

    def line(self, clients: int, now: float, cpu: float) -> str:
        """Say it, in one line for the log."""
        seconds = max(now - self.began, 1e-9)
        asked = sum(self.answers.values()) / seconds
        kinds = (f"{count} {kind.name.lower()}" for kind, count in self.answers.items())
        share = 100 * (cpu - self.cpu) / seconds
        return (
            f"{clients} clients, {asked:.1f} asked a second ({', '.join(kinds) or 'none'}); "
            f"dpfd used {share:.1f} % of a CPU in all"
        )


@dataclass(slots=True)
class Watch:
    """What is known of one client. Times as in the clock, seconds."""

    due: float
    answered: bool = False
    silent_since: float | None = None

    def note(self, answer: Answer, now: float, grace: float) -> bool:
        """Take an answer in; return whether the client is to be taken for dead."""
        if answer is Answer.UNREACHABLE:
            return False
        if answer is Answer.PROVED:
            self.answered, self.silent_since = True, None
            return False
        if answer is Answer.WRONG:
            self.answered = True
        if self.silent_since is None:
            self.silent_since = now
        return self.answered and now - self.silent_since >= grace

    def schedule(self, now: float, interval: float, grace: float) -> None:
        """Look again after an interval, or when a grace that has begun will be over."""
        over = (self.silent_since or 0.0) + grace
        self.due = min(now + interval, over) if over > now else now + interval


class Liveness:
    """Asks all watched mappings' management sockets in turn."""

    def __init__(
        self,
        table: Table,
        remove: Callable[[list[Mapping]], None],
        interval: float,
        grace: float,
        rate: float = 1000.0,
    ) -> None:
        """``interval`` and ``grace`` in seconds; a mapping with a short lifetime gets shorter.

        ``rate`` is how many are asked in a second at most: with more clients than can be asked
        in an interval, each is asked less often.
        """
        self._table = table
        self._remove = remove
        self._interval = interval
        self._grace = grace
        self._watches: dict[Owner, Watch] = {}
        self._queue: list[tuple[float, Owner]] = []
        self._news = Event()
        self._probes = Pool(AT_ONCE)
        self._pace = Pace(rate)
        self._tally = Tally(time.monotonic(), time.process_time())

    def watch(self, mapping: Mapping) -> None:
        """Ask this mapping's client now, and then at intervals as long as the mapping lives."""
        watch = self._watches[mapping.owner] = Watch(time.monotonic())
        heapq.heappush(self._queue, (watch.due, mapping.owner))
        self._news.set()

    def run(self) -> None:
        """Ask, forever; to be run as a greenlet."""
        while True:
            self._news.clear()
            self._ask_who_is_due(time.monotonic())
            wait = self._queue[0][0] - time.monotonic() if self._queue else None
            if wait is None or wait > 0:
                self._news.wait(wait)

    def report(self) -> str:
        """Say what was asked since the last report, and what the process cost meanwhile."""
        now, cpu = time.monotonic(), time.process_time()
        clients = sum(self._table.get(owner) is not None for owner in self._watches)
        line = self._tally.line(clients, now, cpu)
        self._tally = Tally(now, cpu)
        return line

    def _ask_who_is_due(self, now: float) -> None:
        while self._queue and self._queue[0][0] <= now:
            due, owner = heapq.heappop(self._queue)
            watch = self._watches.get(owner)
            if watch is None or watch.due != due:
                continue
            mapping = self._table.get(owner)
            if mapping is None:
                del self._watches[owner]
                continue
            wait = self._pace.wait(time.monotonic())
            if wait > 0:
                gevent.sleep(wait)
            self._probes.spawn(self._look_after, mapping, watch)

    def _look_after(self, mapping: Mapping, watch: Watch) -> None:
        answer = probe(mapping)
        self._tally.answers[answer] += 1
        now = time.monotonic()
        if self._watches.get(mapping.owner) is not watch:
            return
        grace = min(self._grace, mapping.lifetime / 2)
        dead = watch.note(answer, now, grace)
        if dead and self._table.get(mapping.owner) == mapping:
            self._bury(mapping, answer)
        watch.schedule(now, self._interval_of(mapping), grace)
        heapq.heappush(self._queue, (watch.due, mapping.owner))
        self._news.set()

    def _bury(self, mapping: Mapping, answer: Answer) -> None:
        where = format_address(mapping.management)
        log.info("management socket %s: %s; its mapping is removed", where, answer.value)
        try:
            self._remove([mapping])
        except GcbError as error:
            log.error("%s could not be removed, tried again later: %s", mapping, error)

    def _interval_of(self, mapping: Mapping) -> float:
        return min(self._interval, mapping.lifetime / 3)
