"""Which ways may join this connector with this listener, best first.

Pure: two sides as the broker sees them in, a list of paths out. It must never promise that
a path works (only dialling can tell), and never leave out the relay, which always does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from gcbpatch.addresses import Address, family_of, is_loopback, is_private, is_wildcard
from gcbpatch.wire.messages import Endpoint, Path, PathKind

MOST_ADDRESSES = 4
"""Per path, so that a CALL with all its paths stays below one datagram (codec.MAX_DATAGRAM)."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a connection to be.

    ``observed`` is where its control datagrams come from, ``local`` where its agent takes
    OPEN, ``network`` the name that its site gave to its private network, empty if none.
    """

    observed: Address
    local: tuple[Endpoint, ...] = ()
    network: str = ""


def arrange(connector: Side, listener: Side) -> list[Path]:
    """Return the paths between two sides, best first; both sides are told the same.

    PUNCHED names no address: each side learns the other's when both halves of the relayed
    connection are there. RELAYED names none either: each side dials the broker at the address
    at which it talks to it already, since a broker on a gateway has another one inside than
    outside.
    """
    if family_of(connector.observed[0]) != family_of(listener.observed[0]):
        return [Path(PathKind.RELAYED, [])]  # neither is known to have a way to the other's family
    candidates = (
        (PathKind.LOCAL, _inside(connector, listener)),
        (PathKind.DIRECT, _untranslated(listener)),
        (PathKind.REVERSE, _untranslated(connector) or _inside(listener, connector)),
    )
    paths = [Path(kind, found[:MOST_ADDRESSES]) for kind, found in candidates if found]
    if _may_punch(connector, listener):
        paths.append(Path(PathKind.PUNCHED, []))
    return [*paths, Path(PathKind.RELAYED, [])]


def network_of(side: Side, secret: bytes) -> bytes:
    """Return what tells a side's network from others, and nobody without ``secret`` which it is."""
    name = f"{side.observed[0]} {side.network}".encode()
    return hashlib.blake2b(name, digest_size=8, key=secret).digest()


def places(told: list[Endpoint], asker: Side, other: Side) -> list[Endpoint]:
    """Return those of the asker's places for datagrams that the other may be told to try.

    A private one only where both may be in one network; a public one only if it is at the
    host that the asker is seen under, since nobody is to be sent to third parties.
    """
    kept = []
    for place in told:
        if not place.port or ":" in place.host or is_wildcard(place.host):
            continue
        inside = is_private(place.host)
        if _inside(other, Side(asker.observed, (place,), asker.network)) if inside else (
            place.host == asker.observed[0]
        ):
            kept.append(place)
    return kept[:MOST_ADDRESSES]


def _may_punch(connector: Side, listener: Side) -> bool:
    """Whether each is seen by a public address of its own.

    Whether their NATs keep ports, without which it cannot work, shows at the halves.
    """
    here, there = connector.observed[0], listener.observed[0]
    if here == there:
        return False
    return not any(is_private(host) or is_wildcard(host) for host in (here, there))


def _inside(dialler: Side, dialled: Side) -> list[Endpoint]:
    """Return the private endpoints of who is dialled, if both may be in one private network.

    Seen under one address they are behind the same NAT or are the same host; a broker on
    the gateway itself sees private addresses of both. Names alone prove nothing, but two
    different names tell that the networks are not the same.
    """
    here, there = dialler.observed[0], dialled.observed[0]
    if here != there and not (is_private(here) and is_private(there)):
        return []
    if dialler.network and dialled.network and dialler.network != dialled.network:
        return []
    same_host = is_loopback(here) and is_loopback(there)
    return [e for e in dialled.local if _is_inside(e) and (same_host or not is_loopback(e.host))]


def _is_inside(endpoint: Endpoint) -> bool:
    return is_private(endpoint.host) and endpoint.port != 0


def _untranslated(side: Side) -> list[Endpoint]:
    """Return where a side can be dialled from anywhere: it has the address it is seen under."""
    host = side.observed[0]
    if is_private(host) or is_wildcard(host):
        return []
    return [e for e in side.local if e.host == host and e.port != 0]
