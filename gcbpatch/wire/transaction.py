"""The requester's half of the reliable exchange: send again, back off, give up.

Datagrams get lost; a request is sent again until its reply comes or its time is out
(RFC 8489, section 6.2.1). The replier's half is replay.Answers. It must never send or read
anything itself: ask datagrams_to_send(now) and get_timer().
"""

from __future__ import annotations

from dataclasses import dataclass

from ..addresses import Address

FIRST_INTERVAL = 0.25
BACKOFF = 2.0
MAX_INTERVAL = 2.0


def transaction_of(data: bytes) -> int:
    """Return the transaction id of a frame of ours."""
    return int.from_bytes(data[8:16], "big")


@dataclass(slots=True)
class _Pending:
    data: bytes
    destination: Address
    due: float
    interval: float
    deadline: float


class Requester:
    """Outstanding requests, by transaction id."""

    def __init__(self) -> None:
        self._pending: dict[int, _Pending] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def request(
        self, transaction: int, data: bytes, destination: Address, now: float, patience: float
    ) -> None:
        """Enter a request; it is due at once and given up ``patience`` seconds from now."""
        self._pending[transaction] = _Pending(
            data, destination, now, FIRST_INTERVAL, now + patience
        )

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        """Return what is due, and schedule its next sending."""
        out = []
        for pending in self._pending.values():
            if pending.due <= now < pending.deadline:
                out.append((pending.data, pending.destination))
                pending.due = now + pending.interval
                pending.interval = min(pending.interval * BACKOFF, MAX_INTERVAL)
        return out

    def destination_of(self, transaction: int) -> Address | None:
        """Return where the request went; None if nothing waits for this transaction."""
        pending = self._pending.get(transaction)
        return pending.destination if pending else None

    def settle(self, transaction: int) -> bool:
        """A reply came, or nobody wants one any more; return whether one was waited for."""
        return self._pending.pop(transaction, None) is not None

    def expired(self, now: float) -> list[int]:
        """Remove and return the transactions whose time is out."""
        gone = [t for t, p in self._pending.items() if p.deadline <= now]
        for transaction in gone:
            del self._pending[transaction]
        return gone

    def get_timer(self) -> float | None:
        """Return when datagrams_to_send or expired has something next; None if never."""
        return min((min(p.due, p.deadline) for p in self._pending.values()), default=None)
