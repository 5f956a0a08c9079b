"""The replier's half of the reliable exchange: a request that comes again gets the same answer.

Bounded in number and time. It must never act on a request: whoever calls does so once, and
hands the answer in.
"""

from __future__ import annotations

from collections import OrderedDict

from ..addresses import Address
from .auth import COOKIE_SECONDS

KEEP_SECONDS = 2.0 * COOKIE_SECONDS
"""As long as a cookie can be good: a replayed request always finds its old answer."""

Asker = tuple[Address, int]


class Answers:
    """Answers given lately, by who asked and a number for what was asked.

    The number is the transaction id where only one peer is asked and believed, or else one
    that stands for the whole request.
    """

    def __init__(self, most: int = 65536, keep: float = KEEP_SECONDS) -> None:
        self._most = most
        self._keep = keep
        self._answers: OrderedDict[Asker, tuple[float, bytes | None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def begin(self, address: Address, request: int, now: float) -> bool:
        """Return True if this request is new (and must be carried out, then answered)."""
        self.expire(now)
        asker = address, request
        if asker in self._answers:
            return False
        self._answers[asker] = now, None
        if len(self._answers) > self._most:
            self._answers.popitem(last=False)
        return True

    def keep(self, address: Address, request: int, answer: bytes) -> None:
        """Remember the answer to a request that began."""
        asker = address, request
        if asker in self._answers:
            self._answers[asker] = self._answers[asker][0], answer

    def again(self, address: Address, request: int) -> bytes | None:
        """Return the answer given; None if there is none yet."""
        return self._answers.get((address, request), (0.0, None))[1]

    def expire(self, now: float) -> None:
        """Forget what is older than its keep."""
        while self._answers:
            asker, (began, _) = next(iter(self._answers.items()))
            if began + self._keep > now:
                return
            del self._answers[asker]
