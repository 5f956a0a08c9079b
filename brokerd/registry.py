"""Who is registered: clients, their listeners, the proxy addresses they hold, for how long.

Model: a listener is named by its client and its own id, belongs to the token that made it,
and holds one proxy address until its lifetime ends. A proxy address belongs to one listener
at a time. Nothing is on disk: what a client holds in its hand is a *claim*, with which it
gets the same proxy address from the next incarnation of this broker (TURN knows no such
thing; PCP's nonce comes near: RFC 6887, section 11.1).

For one lifetime after a start, ports outside a reserved tenth of the range go to claims
only, so that those who held them find them free.

Pure: proxy sockets are opened by a function that is handed in, as are `now` and chance. It
must never give an address to somebody while somebody else holds it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Protocol

from gcbpatch.addresses import ANY, V4, Address, family_of
from gcbpatch.errors import GcbError, Status
from gcbpatch.wire import auth
from gcbpatch.wire.auth import Key
from gcbpatch.wire.messages import Endpoint, Refresh, Register

from .hosts import Hosts

LOWEST_WISH = 1024
MOST_ATTEMPTS = 256
"""How many ports are tried at the kernel for one REGISTER."""

MOST_IDLE = 1024
"""Entries of the queue that may be of listeners long gone, beside one for each that is there."""

OpenProxy = Callable[[Address], bool]
"""Opens the socket of a proxy address; False if its port is in use or not allowed."""

Name = tuple[bytes, bytes]
"""Client id and listener id."""


class Refusal(GcbError):
    """A request that is understood and not granted; ``status`` is what it is answered with."""

    def __init__(self, status: Status, problem: str) -> None:
        super().__init__(problem)
        self.status = status


class Speaker(Protocol):
    """A connection on which frames can be said."""

    def send(self, data: bytes) -> None:
        """Say one, if it is open."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Whom a command came from.

    ``via`` is this broker's own host that the command came to: answers and CALLs have to
    leave from there, or the sender's NAT does not know them. ``line`` is the connection that
    it came by, None if it was a datagram.
    """

    address: Address
    via: str
    key: Key | None
    line: Speaker | None = None


@dataclass(slots=True, eq=False)
class Listener:
    """A registered listener. ``expires`` is in the time of ``now``, ``lifetime`` in seconds."""

    client: bytes
    id: bytes
    protocol: int
    proxy: Address
    sender: Sender
    family: int = V4
    nonce: bytes = b""
    local: tuple[Endpoint, ...] = ()
    network: str = ""
    lifetime: int = 0
    expires: float = 0.0
    # The only entry of the queue that counts for this listener.
    queued: float = field(default=0.0, repr=False)

    @property
    def name(self) -> Name:
        """What the client calls it by."""
        return self.client, self.id


class Ports:
    """The range that automatic proxy ports come from; its last tenth is for newcomers."""

    def __init__(self, low: int, high: int) -> None:
        reserved = max(1, (high - low + 1) // 10)
        self.settled = range(low, high + 1 - reserved)
        self.reserved = range(high + 1 - reserved, high + 1)

    @property
    def size(self) -> int:
        """How many ports there are."""
        return len(self.settled) + len(self.reserved)

    def any(self, dice: int, newcomers_only: bool) -> Iterator[int]:
        """Return ports to try, starting anywhere, those of the tenth last."""
        if not newcomers_only:
            yield from _rotated(self.settled, dice)
        yield from _rotated(self.reserved, dice)


def _rotated(ports: range, dice: int) -> Iterator[int]:
    start = dice % len(ports) if ports else 0
    yield from ports[start:]
    yield from ports[:start]


class Registry:
    """All listeners of this broker."""

    def __init__(
        self, hosts: Hosts, ports: Ports, longest: int, claim_secret: bytes, quiet_until: float
    ) -> None:
        """``longest`` is the greatest lifetime; until ``quiet_until`` claims come first."""
        self.longest = longest
        self._hosts = hosts
        self._ports = ports
        self._claim_secret = claim_secret
        self._quiet_until = quiet_until
        self._listeners: dict[Name, Listener] = {}
        self._by_proxy: dict[tuple[int, Address], Listener] = {}
        self._queue: list[tuple[float, Name]] = []
        self.draining = False
        """Whether nothing new is entered any more; what is there is kept as ever."""

    def __len__(self) -> int:
        return len(self._listeners)

    @property
    def free(self) -> int:
        """How many ports of the range can be had, as far as is known here."""
        size = self._ports.size * len(self._hosts.all)
        return 0 if self.draining else max(0, size - len(self._listeners))

    def register(
        self, asked: Register, sender: Sender, now: float, dice: int, open_proxy: OpenProxy
    ) -> Listener:
        """Enter a listener, or refresh it if it is there; return it.

        Raises Refusal: NOT_AUTHORIZED if it is another token's, NO_RESOURCES if there is
        no port, or nothing new is taken, CANNOT_PROVIDE_EXTERNAL if there is no host of the
        family that it takes; and whatever ``open_proxy`` raises.
        """
        listener = self._own((asked.client, asked.listener), sender)
        if listener is None:
            listener = self._enter(asked, sender, now, dice, open_proxy)
        listener.nonce = asked.nonce
        listener.local = tuple(asked.local)
        listener.network = asked.network
        listener.lifetime = max(1, min(asked.lifetime, self.longest))
        self._renew(listener, sender, now)
        return listener

    def refresh(self, asked: Refresh, sender: Sender, now: float) -> tuple[int, list[bytes]]:
        """Keep listeners; return the shortest lifetime of those kept, and who is not known.

        Raises Refusal with NOT_AUTHORIZED if one of them is another token's.
        """
        found = {id_: self._own((asked.client, id_), sender) for id_ in asked.listeners}
        kept = [listener for listener in found.values() if listener]
        for listener in kept:
            self._renew(listener, sender, now)
        lost = [id_ for id_, listener in found.items() if listener is None]
        return min((listener.lifetime for listener in kept), default=self.longest), lost

    def unregister(self, client: bytes, id_: bytes, sender: Sender) -> Listener:
        """Remove a listener and return it, for its proxy socket to be closed.

        Raises Refusal: UNKNOWN, or NOT_AUTHORIZED if it is another token's.
        """
        listener = self.find(client, id_, sender)
        self._remove(listener)
        return listener

    def find(self, client: bytes, id_: bytes, sender: Sender) -> Listener:
        """Return a listener of the sender's.

        Raises Refusal: UNKNOWN, or NOT_AUTHORIZED if it is another token's.
        """
        listener = self._own((client, id_), sender)
        if listener is None:
            raise Refusal(Status.UNKNOWN, "no such listener is registered here")
        return listener

    def at(self, protocol: int, proxy: Address) -> Listener | None:
        """Return who holds a proxy address."""
        return self._by_proxy.get((protocol, proxy))

    def claim_of(self, listener: Listener) -> bytes:
        """Return the claim with which the listener's client gets its proxy address back."""
        return auth.claim(
            self._claim_secret, listener.client, listener.protocol, listener.proxy
        )

    def moved(self, asked: Refresh, sender: Sender) -> list[Address]:
        """Return the proxy addresses of those whose client is somewhere else than before."""
        found = (self._listeners.get((asked.client, one)) for one in asked.listeners)
        where = sender.address, sender.line
        return [one.proxy for one in found
                if one and (one.sender.address, one.sender.line) != where]

    def expire(self, now: float) -> list[Listener]:
        """Remove and return the listeners whose lifetime is over."""
        gone = []
        while self._queue and self._queue[0][0] <= now:
            due, name = heappop(self._queue)
            listener = self._listeners.get(name)
            if listener is None or listener.queued != due:
                continue
            if listener.expires > now:
                self._enqueue(listener)
            else:
                self._remove(listener)
                gone.append(listener)
        return gone

    def _own(self, name: Name, sender: Sender) -> Listener | None:
        listener = self._listeners.get(name)
        if listener and not _same_token(listener.sender, sender):
            raise Refusal(Status.NOT_AUTHORIZED, "this listener belongs to another token")
        return listener

    def _renew(self, listener: Listener, sender: Sender, now: float) -> None:
        """Start the lifetime anew, and send CALLs to where the client speaks from now."""
        listener.sender = sender
        listener.expires = now + listener.lifetime
        if listener.queued == 0.0 or listener.expires < listener.queued:
            self._enqueue(listener)

    def _enqueue(self, listener: Listener) -> None:
        listener.queued = listener.expires
        heappush(self._queue, (listener.queued, listener.name))

    def _enter(
        self, asked: Register, sender: Sender, now: float, dice: int, open_proxy: OpenProxy
    ) -> Listener:
        claimed = self._claimed(asked)
        proxy = claimed if self._take_over(asked, sender, claimed) else None
        if proxy is None:
            if self.draining:
                raise Refusal(Status.NO_RESOURCES, "this broker is draining")
            proxy = self._find_proxy(asked, claimed, now, dice, open_proxy)
        listener = Listener(
            asked.client, asked.listener, asked.protocol, proxy, sender, asked.family
        )
        self._listeners[listener.name] = listener
        self._by_proxy[asked.protocol, proxy] = listener
        return listener

    def _claimed(self, asked: Register) -> Address | None:
        """Return what the request has a right to; a claim that does not hold is none."""
        if asked.proxy is None or asked.proxy.host not in self._hosts.all:
            return None
        if asked.family not in (ANY, family_of(asked.proxy.host)):
            return None
        right = auth.claim(
            self._claim_secret, asked.client, asked.protocol, asked.proxy.address
        )
        return asked.proxy.address if hmac.compare_digest(right, asked.claim) else None

    def _take_over(self, asked: Register, sender: Sender, claimed: Address | None) -> bool:
        """Give a claimed address, socket and all, from one listener of a client to its next.

        A client whose agent died registers again under new names before the old are gone.
        """
        holder = self.at(asked.protocol, claimed) if claimed else None
        if holder is None or holder.client != asked.client:
            return False
        if not _same_token(holder.sender, sender):
            return False
        self._remove(holder)
        return True

    def _find_proxy(
        self,
        asked: Register,
        claimed: Address | None,
        now: float,
        dice: int,
        open_proxy: OpenProxy,
    ) -> Address:
        host = claimed[0] if claimed else self._hosts.of(asked.family)
        if host is None:
            raise Refusal(
                Status.CANNOT_PROVIDE_EXTERNAL, f"no proxy addresses of IPv{asked.family} here"
            )
        attempts = 0
        for port in self._candidates(asked.wished, claimed and claimed[1], now, dice):
            proxy = host, port
            if (asked.protocol, proxy) in self._by_proxy:
                continue
            if open_proxy(proxy):
                return proxy
            attempts += 1
            if attempts == MOST_ATTEMPTS:
                break
        raise Refusal(Status.NO_RESOURCES, "no proxy port is free")

    def _candidates(
        self, wished: int, claimed: int | None, now: float, dice: int
    ) -> Iterator[int]:
        quiet = now < self._quiet_until
        if claimed is not None:
            yield claimed
        if wished >= LOWEST_WISH and (not quiet or wished in self._ports.reserved):
            yield wished
        yield from self._ports.any(dice, newcomers_only=quiet)

    def _remove(self, listener: Listener) -> None:
        del self._listeners[listener.name]
        del self._by_proxy[listener.protocol, listener.proxy]
        if len(self._queue) > MOST_IDLE + 2 * len(self._listeners):
            self._queue = [(one.queued, one.name) for one in self._listeners.values()]
            heapify(self._queue)


def _same_token(one: Sender, other: Sender) -> bool:
    return (one.key and one.key.key_id) == (other.key and other.key.key_id)
