"""Ends conntrack's entries of UDP mappings, so that the next owner's packets do not go astray.

An entry decides about its packets for as long as they keep coming, whatever the rules have become:
a removed mapping would go on, and a new one not begin. TCP connections are left alone; they end by
themselves and outlive their mapping by intention. The kernel hands out only the entries that
match, where it can (5.8 and later); they are looked at here in any case. It goes through its whole
table for that, which takes milliseconds: so this is done beside, and for several mappings at once.
"""

from __future__ import annotations

import errno
import logging
import socket
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import gevent

from gcbpatch.addresses import Address
from gcbpatch.wire.messages import UDP

from ..reconcile import Rule
from .netlink import ACK, Netlink, NetlinkError, Request, attribute, attributes, nest
from .port import KernelError

log = logging.getLogger("dpfd.conntrack")

_GET, _DELETE = 0x0101, 0x0102
_IPV4 = 2
_ORIGINAL, _FILTER, _ID, _ZONE = 1, 25, 12, 18
_IP, _PROTOCOL = 1, 2
_SOURCE, _DESTINATION = 1, 2
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_FROM = 1 << 0 | 1 << 3 | 1 << 4
_TO = 1 << 1 | 1 << 3 | 1 << 5
"""CTA_FILTER_FLAG: address, protocol and port, of the source or of the destination."""
_UDP_ALONE = 1 << 3
_ONE_BY_ONE = 4
"""With more mappings than these all of UDP is handed out once."""


@dataclass(frozen=True, slots=True)
class _Flow:
    """One entry: where its first packet came from and went to, and how to name it."""

    source: Address
    destination: Address
    name: bytes


class Conntrack:
    """Conntrack's entries, by netlink."""

    def __init__(self) -> None:
        """Raises KernelError if there is no netlink."""
        self._netlink = Netlink()
        self._at_once = Netlink()
        """Another, since the thread may be using the first."""
        self._due: list[Rule] = []
        self._ending: dict[Address, Rule] = {}
        """Removed mappings whose flows may be there still, by their public addresses."""
        self._sweeper: gevent.Greenlet | None = None
        self._begun = False

    def begin(self) -> None:
        """From now on there may be a thread, which does what is due."""
        self._begun = True
        self.note([], [])

    def close(self) -> None:
        """Do what is still due, and close the socket."""
        if self._sweeper is not None:
            self._sweeper.join()
        self._netlink.close()
        self._at_once.close()

    def note(self, adds: Collection[Rule], removes: Collection[Rule]) -> None:
        """Have flows of these mappings ended as soon as may be, beside everything else.

        Who gets an address that was another's a moment ago has it without that one's flows
        when this returns, as its answer must not come before.
        """
        given = {rule.public for rule in adds if rule.protocol == UDP}
        again = [rule for rule in (*self._ending.values(), *removes) if rule.public in given]
        if again:
            self.forget(again, self._at_once)
        self._due += [rule for rule in (*adds, *removes) if rule.protocol == UDP]
        self._ending |= {rule.public: rule for rule in removes if rule.protocol == UDP}
        if self._begun and self._due and not self._sweeper:
            self._sweeper = gevent.spawn(self._sweep)

    def _sweep(self) -> None:
        while self._due:
            due, self._due = self._due, []
            ending = dict(self._ending)
            gevent.get_hub().threadpool.apply(self.forget, (due, self._netlink))
            self._ending = {k: v for k, v in self._ending.items() if ending.get(k) is not v}

    def forget(self, rules: Collection[Rule], netlink: Netlink) -> None:
        """End all flows to the public and from the inside addresses of these UDP mappings.

        A gateway without conntrack's netlink is told so in the log; nothing else fails by it.
        """
        udp = [rule for rule in rules if rule.protocol == UDP]
        if not udp:
            return
        publics, insides = {rule.public for rule in udp}, {rule.inside for rule in udp}
        try:
            found = _flows(netlink, udp)
            _end(netlink, (f for f in found if f.destination in publics or f.source in insides))
        except KernelError as error:
            log.warning("old flows of UDP mappings may go astray for a while: %s", error)


def _flows(netlink: Netlink, rules: list[Rule]) -> list[_Flow]:
    if len(rules) > _ONE_BY_ONE:
        return _dump(netlink, _filter(b"", b"", _UDP_ALONE))
    found = []
    for rule in rules:
        found += _dump(netlink, _wanted(_DESTINATION, _DESTINATION_PORT, rule.public, _TO))
        found += _dump(netlink, _wanted(_SOURCE, _SOURCE_PORT, rule.inside, _FROM))
    return found


def _dump(netlink: Netlink, wanted: bytes) -> list[_Flow]:
    bodies = netlink.dump(Request(_GET, 0, _IPV4, wanted, "reading conntrack"))
    return [flow for flow in map(_flow, bodies) if flow is not None]


def _end(netlink: Netlink, flows: Iterable[_Flow]) -> None:
    for name in {flow.name for flow in flows}:
        try:
            netlink.ask(Request(_DELETE, ACK, _IPV4, name, "ending a flow"))
        except NetlinkError as error:
            if not error.is_only(errno.ENOENT):  # it has ended meanwhile
                raise


def _wanted(which: int, which_port: int, address: Address, flags: int) -> bytes:
    """Return a filter: UDP, and one end of the original direction."""
    host = nest(_IP, attribute(which, socket.inet_aton(address[0])))
    return _filter(host, attribute(which_port, address[1].to_bytes(2, "big")), flags)


def _filter(host: bytes, port: bytes, flags: int) -> bytes:
    number = attribute(_NUMBER, bytes([UDP]))
    chosen = attribute(1, flags.to_bytes(4, sys.byteorder)) + attribute(2, bytes(4))
    pair = nest(_ORIGINAL, host, nest(_PROTOCOL, number, port))
    return pair + nest(_FILTER, chosen)


def _flow(body: bytes) -> _Flow | None:
    """Read one entry; None if it is not of UDP."""
    fields = dict(attributes(body))
    ends = dict(attributes(fields[_ORIGINAL]))
    hosts, ports = dict(attributes(ends[_IP])), dict(attributes(ends[_PROTOCOL]))
    if ports.get(_NUMBER, b"")[:1] != bytes([UDP]):
        return None
    name = attribute(_ORIGINAL | 0x8000, fields[_ORIGINAL]) + attribute(_ID, fields[_ID])
    if _ZONE in fields:
        name += attribute(_ZONE, fields[_ZONE])
    return _Flow(
        (socket.inet_ntoa(hosts[_SOURCE]), _port(ports[_SOURCE_PORT])),
        (socket.inet_ntoa(hosts[_DESTINATION]), _port(ports[_DESTINATION_PORT])),
        name,
    )


def _port(value: bytes) -> int:
    return int.from_bytes(value, "big")
