"""A broker without sockets: what dispatch, registry, relays and limits make of commands.

All of it is real but the proxy sockets and the way out for CALLs. It must never read a clock:
`now` is the tests'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import gevent

from brokerd.dispatch import Ask, Dispatcher, Identity, Question
from brokerd.hosts import Hosts
from brokerd.limits import Bounds, Limits
from brokerd.pump import Pump
from brokerd.registry import Ports, Registry
from brokerd.relay import Relays
from gcbpatch.addresses import Address
from gcbpatch.errors import Status
from gcbpatch.wire.auth import Keyring


class Opened:
    """Proxy sockets that exist as numbers only: no port of this machine is taken."""

    def __init__(self) -> None:
        self.ports: set[int] = set()

    def open(self, proxy: Address) -> bool:
        """Take a port."""
        port = proxy[1]
        free = port not in self.ports
        self.ports.add(port)
        return free

    def shut(self, proxy: Address) -> None:
        """Give it back."""
        self.ports.remove(proxy[1])


BROKER, HERE, NOW = "198.51.100.1", ("192.0.2.7", 40000), 90.0
SECRET = bytes(range(0x40, 0x60))  # of the document's example: its cookies are good here


@dataclass(frozen=True)
class Ground:
    """One broker's parts, each the real one but for the sockets."""

    dispatcher: Dispatcher
    opened: Opened
    limits: Limits
    registry: Registry
    relays: Relays


def _unasked(question: Question, done: Callable[[Status], None], now: float) -> Callable[[], None]:
    return lambda: None


@contextmanager
def broker(keyring: Keyring, ask: Ask = _unasked) -> Iterator[Ground]:
    """A broker's dispatcher, registry and relays, without a socket."""
    loop, limits, opened = gevent.get_hub().loop, Limits(Bounds()), Opened()
    pump = Pump(loop)
    relays = Relays(loop, pump, limits)
    registry = Registry(Hosts((BROKER,)), Ports(20000, 20099), 30, bytes(range(0x60, 0x80)), 0.0)
    identity = Identity(Hosts((BROKER,)), 65432, bytes(8), SECRET)
    dispatcher = Dispatcher(
        identity, keyring, limits, registry, relays, ask
    )
    dispatcher.proxies = opened  # type: ignore[assignment]
    try:
        yield Ground(dispatcher, opened, limits, registry, relays)
    finally:
        relays.close()
        pump.close()
