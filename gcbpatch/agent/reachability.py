"""Whether a listener is reached from outside as it is: then no broker need stand for it.

The broker dials back to the listener's port, at the address under which it sees this host. It
sends a first packet only; if that arrives, this host's kernel holds a half-open connection
from where the broker says that it dialled, and the kernel is asked for it. The program sees
nothing of it, whatever it does just then. That something answered is no proof: it may have
been the gateway, or another host.

This room must never take silence of the broker for a finding.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

from ..addresses import ANY, V6, Address, family_of, format_address, is_private, is_wildcard
from ..config import ClientConfig
from ..errors import RefusedError, RemoteProtocolError, Status
from ..routes import Way
from ..wire.messages import TCP, Command, Probe, ProbeReply
from . import sockdiag
from .control import Control
from .registrants import Registrant

log = logging.getLogger("gcbpatch.agent")

LOOK_SECONDS = 0.01
"""How much later than the broker's answer its first packet may come, and a quarter of the
time that the answer took."""
LOOKS = 4
MOST_RENEWED = 8
"""Findings looked at again in one heartbeat."""
MISSES = 2
"""So many probes in a row have to be lost until a listener counts as closed off."""
_IP_MINTTL, _IPV6_MINHOPCOUNT = 21, 73
_LEAST_TTL = 192
"""What dials back comes with a TTL of 255 less a few routers; others begin with 64 or 128."""
_DEFAULT_TTL = Path("/proc/sys/net/ipv4/ip_default_ttl")
_HOP_LIMITS = Path("/proc/sys/net/ipv6/conf")
OWN, FORWARDED = "own", "forwarded"
"""How a listener is reached without a broker: under this host's address, or by a mapping that
somebody has set for it by hand."""


class Reachability:
    """What one broker has found out about our listeners."""

    def __init__(self, control: Control, client: bytes, config: ClientConfig) -> None:
        self._control = control
        self._client = client
        self._config = config
        self._family = family_of(control.broker[0])
        self._unsupported = _answers_go_far(self._family)
        self._found: dict[bytes, int] = {}
        """Listeners that are reached without a broker, and probes lost since."""

    def __len__(self) -> int:
        return len(self._found)

    @property
    def is_untranslated(self) -> bool:
        """Whether the broker sees this host under an address of its own: no NAT between."""
        hello = self._control.hello
        return hello is not None and hello.observed.host == self._control.local_host

    @property
    def own_host(self) -> str:
        """This host's address as the broker sees it, too; empty if that is not known to be so."""
        known = self.is_untranslated and not self._unsupported
        return self._control.local_host if known else ""

    def is_asked(self, one: Registrant) -> bool:
        """Whether it is to be found out for this listener.

        Not for one that has a proxy address by its claim: others know it by that.
        """
        hello = self._control.hello
        if self._config.register != "auto" or self._unsupported or hello is None:
            return False
        if one.protocol != TCP or one.claim or is_private(hello.observed.host):
            return False
        if one.family not in (ANY, self._family):
            return False  # the broker would dial an address at which it does not listen
        return self._config.routes.way_at(one.bound[0]) is not Way.GCB

    async def look(self, one: Registrant, listens: bool, patience: float) -> Address | None:
        """Return the address under which a listener is reached; None if under none."""
        try:
            return await self._probe(one, listens, patience)
        except (RefusedError, RemoteProtocolError, OSError) as error:
            log.info("dial-back to %s: %s", format_address(one.bound), error)
            return None

    def settle(self, one: Registrant, found: Address) -> None:
        """Let a listener be known by the address under which it was found to be reached."""
        one.proxy, one.claim, one.error, one.reason = found, b"", 0, ""
        one.how = OWN if found[0] == self._local_host(one) else FORWARDED
        self._found[one.listener] = 0

    def drop(self, listener: bytes) -> None:
        """Look after it no more."""
        self._found.pop(listener, None)

    def due(self) -> list[bytes]:
        """Return the listeners to look at in this heartbeat, others in the next."""
        due = list(self._found)[:MOST_RENEWED]
        for one in due:
            self._found[one] = self._found.pop(one)
        return due

    async def is_still(self, one: Registrant, listens: bool, patience: float) -> bool:
        """Look again; False if it is not reached any more. Its address may be another one."""
        try:
            found = await self._probe(one, listens, patience)
        except (RefusedError, RemoteProtocolError, OSError) as error:
            log.info("dial-back to %s: %s", format_address(one.bound), error)
            return True
        if found is not None and one.listener in self._found:
            self.settle(one, found)
        elif one.listener in self._found:
            self._found[one.listener] += 1
        return self._found.get(one.listener, 0) < MISSES

    async def _probe(self, one: Registrant, listens: bool, patience: float) -> Address | None:
        """Have the broker dial back; return where it reached the listener, None if nowhere.

        Raises RefusedError, RemoteProtocolError or OSError, of which Unreachable is one.
        """
        with contextlib.nullcontext() if listens else _stand_in(one):
            return await self.dial_back((self._local_host(one), one.bound[1]), patience)

    async def dial_back(self, local: Address, patience: float) -> Address | None:
        """The same for what listens at an address of this host."""
        began = asyncio.get_running_loop().time()
        reply = await self._ask(local[1], patience)
        took = asyncio.get_running_loop().time() - began
        for pause in [(LOOK_SECONDS + took / 4) / LOOKS] * LOOKS:
            if sockdiag.is_half_open(local, reply.source.address):
                return reply.target.address
            await asyncio.sleep(pause)
        reached = sockdiag.is_half_open(local, reply.source.address)
        return reply.target.address if reached else None

    async def _ask(self, port: int, patience: float) -> ProbeReply:
        try:
            reply = await self._control.ask(
                Command.PROBE, lambda cookie: Probe(self._client, cookie, TCP, port), patience
            )
        except RefusedError as error:
            self._unsupported = error.status is Status.UNSUPPORTED
            raise
        assert isinstance(reply, ProbeReply)
        return reply

    def _local_host(self, one: Registrant) -> str:
        """Where packets for the listener arrive, also those that a gateway forwards."""
        return self._control.local_host if is_wildcard(one.bound[0]) else one.bound[0]


@contextlib.contextmanager
def _stand_in(one: Registrant) -> Iterator[None]:
    """Listen for a socket that is only bound yet, to be dialled back by the broker and no other.

    The program's socket has SO_REUSEADDR meanwhile. A broker dials back with the greatest TTL,
    others with a smaller one: their connects are not refused as they would be, but not taken
    either; their first packet is lost, and they try again in a second. Raises OSError if the
    port is not to be had.
    """
    v6 = ":" in one.bound[0]
    with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET) as stand_in:
        stand_in.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stand_in.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, _LEAST_TTL)
        if v6:
            stand_in.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, _LEAST_TTL)
            stand_in.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, one.family == V6)
        stand_in.bind(one.bound)
        stand_in.listen(1)
        yield


def _answers_go_far(family: int) -> bool:
    """Whether this host's packets come to a neighbour with the greatest TTL there is.

    A probe would become a whole connection then, which the program would see. By IPv6 each
    interface has a hop limit of its own, which a router may have told it.
    """
    try:
        found = _HOP_LIMITS.glob("*/hop_limit") if family == V6 else [_DEFAULT_TTL]
        return any(int(path.read_text()) == 255 for path in found)
    except (OSError, ValueError):
        return True
