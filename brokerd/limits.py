"""How much one token, and all together, may take of this broker.

Counts what is held and how fast commands come, and who was complained about. `now` comes in. It
must never let one token starve the others of what is configured for all. Without tokens
there is nobody to tell apart, and only the bounds for all hold.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import LRUCache

from gcbpatch.errors import Status
from gcbpatch.wire.auth import Key

from .registry import Refusal


class Held(enum.Enum):
    """What is counted while it is held; the value is the name of its bound."""

    PROXIES = "proxies"
    RELAYS = "relays"
    HALF_OPEN = "half_open"
    PARKED = "parked"


@dataclass(frozen=True)
class Bounds:
    """The most of everything, for all and for one token.

    Commands are a second, and so are datagrams and kilobytes, which are what is relayed of UDP.
    """

    proxies: int = 16384
    relays: int = 8192
    half_open: int = 4096
    parked: int = 8192
    commands: int = 50000
    datagrams: int = 200000
    kilobytes: int = 1000000
    token_proxies: int = 8192
    token_relays: int = 8192
    token_half_open: int = 2048
    token_parked: int = 4096
    token_commands: int = 20000
    token_datagrams: int = 100000
    token_kilobytes: int = 500000

    def of(self, what: str, one_token: bool) -> int:
        """Return a bound by its name."""
        bound: int = getattr(self, f"token_{what}" if one_token else what)
        return bound


class Bucket:
    """A token bucket that holds one second's worth."""

    def __init__(self, now: float, rate: int) -> None:
        self._level = float(rate)
        self._filled = now

    def draw(self, now: float, rate: int) -> bool:
        """Take one; False if there is none."""
        self._level = min(float(rate), self._level + (now - self._filled) * rate)
        self._filled = now
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True


class Meter:
    """How fast datagrams may be relayed, for one token or, without one ``above``, for all.

    It holds one second's worth. Asked first and told of the size afterwards: what was one too
    many is paid back before the next.
    """

    __slots__ = ("_above", "_datagrams", "_filled", "_octets", "_rates")

    def __init__(self, rates: Callable[[], tuple[int, int]], above: Meter | None = None) -> None:
        """``rates`` are datagrams and octets a second, and may change at any time."""
        self._rates = rates
        self._above = above
        self._datagrams = self._octets = 0.0
        self._filled = -math.inf

    def has_room(self, now: float) -> bool:
        """Return whether one more may be relayed."""
        if self._datagrams <= 0 or self._octets <= 0:
            self._fill(now)
            if self._datagrams <= 0 or self._octets <= 0:
                return False
        return self._above is None or self._above.has_room(now)

    def spend(self, octets: int) -> None:
        """Count one datagram that is relayed."""
        self._datagrams -= 1
        self._octets -= octets
        if self._above is not None:
            self._above.spend(octets)

    def _fill(self, now: float) -> None:
        datagrams, octets = self._rates()
        seconds = now - self._filled
        self._datagrams = min(float(datagrams), self._datagrams + seconds * datagrams)
        self._octets = min(float(octets), self._octets + seconds * octets)
        self._filled = now


class Limits:
    """What is held, by whom, against the bounds; the bounds may change at any time."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._all: Counter[Held] = Counter()
        self._tokens: Counter[tuple[Held, int]] = Counter()
        self._buckets: dict[int, Bucket] = {}
        self._meters: dict[int, Meter] = {}

    def check(self, what: Held, key: Key | None) -> None:
        """Raise Refusal if one more cannot be had: QUOTA_EXCEEDED or NO_RESOURCES."""
        if key and self._tokens[what, key.key_id] >= self.bounds.of(what.value, True):
            raise Refusal(Status.QUOTA_EXCEEDED, f"token {key.name} has all {what.value} it may")
        if self._all[what] >= self.bounds.of(what.value, False):
            raise Refusal(Status.NO_RESOURCES, f"all {what.value} are taken")

    def take(self, what: Held, key: Key | None) -> None:
        """Count one more, or raise Refusal."""
        self.check(what, key)
        self._all[what] += 1
        if key:
            self._tokens[what, key.key_id] += 1

    def give(self, what: Held, key: Key | None) -> None:
        """Count one less."""
        self._all[what] -= 1
        if key:
            self._tokens[what, key.key_id] -= 1
            if not self._tokens[what, key.key_id]:
                del self._tokens[what, key.key_id]

    def held(self, what: Held) -> int:
        """Return how many are held by all together."""
        return self._all[what]

    def free(self, what: Held) -> int:
        """Return how many more can be had by all together."""
        return max(0, self.bounds.of(what.value, False) - self._all[what])

    def command(self, key: Key | None, now: float) -> None:
        """Count a command, or raise Refusal if they come too fast."""
        if key and not self._draw(key.key_id, now, self.bounds.token_commands):
            raise Refusal(Status.QUOTA_EXCEEDED, f"token {key.name} sends commands too fast")
        if not self._draw(0, now, self.bounds.commands):
            raise Refusal(Status.NO_RESOURCES, "commands come too fast")

    def meter(self, key: Key | None) -> Meter:
        """Return what counts the datagrams that are relayed for a token, and for all."""
        if 0 not in self._meters:
            self._meters[0] = Meter(lambda: self._rates(False))
        if key and key.key_id not in self._meters:
            self._meters[key.key_id] = Meter(lambda: self._rates(True), self._meters[0])
        return self._meters[key.key_id if key else 0]

    def _rates(self, one_token: bool) -> tuple[int, int]:
        of = self.bounds.of
        return of("datagrams", one_token), 1000 * of("kilobytes", one_token)

    def _draw(self, who: int, now: float, rate: int) -> bool:
        bucket = self._buckets.get(who)
        if bucket is None:
            bucket = self._buckets[who] = Bucket(now, rate)
        return bucket.draw(now, rate)


class Complaints:
    """Who has been complained about already: a peer and a problem are logged once.

    Bounded in memory, and in lines a second, so that strangers cannot fill a disk.
    """

    def __init__(self, most: int = 1024, lines_a_second: int = 20) -> None:
        self._known: LRUCache[tuple[str, int, str], None] = LRUCache(most)
        self._rate = lines_a_second
        self._bucket: Bucket | None = None

    def is_new(self, peer: tuple[str, int], problem: str, now: float) -> bool:
        """Return whether this is to be logged."""
        complaint = (peer[0], peer[1], problem)
        if complaint in self._known:
            self._known[complaint] = None
            return False
        self._bucket = self._bucket or Bucket(now, self._rate)
        if not self._bucket.draw(now, self._rate):
            return False
        self._known[complaint] = None
        return True
