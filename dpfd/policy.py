"""Who may map what, and for how long. Pure.

It must never look at the table's content, only at the counts it is given, and must never
grant what it does not name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from gcbpatch.addresses import Address, format_address, is_wildcard
from gcbpatch.errors import Status
from gcbpatch.wire.messages import TCP, UDP, Forward

Network = ipaddress.IPv4Network
Range = tuple[int, int]
ALL_PORTS: tuple[Range, ...] = ((1, 65535),)
AUTOMATIC: tuple[Range, ...] = ((32768, 60999),)
"""What Linux chooses from where a program binds port 0, and so has no wish at all."""


class Refused(Exception):
    """The policy says no; ``status`` is the answer, the text is for the log."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: the host that the session comes from, and the name of its token, if any."""

    host: str
    token: str = ""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What some clients may have; empty means any, or for ``inside`` the asker's own address.

    ``networks`` and ``tokens`` are whom it is for. ``inside`` are networks whose hosts these may
    map as well, ``inside_ports`` which of their ports; ``ports`` which public ones they get.
    ``mappings`` is how many each client may have.
    """

    networks: tuple[Network, ...] = ()
    tokens: tuple[str, ...] = ()
    inside: tuple[Network, ...] = ()
    inside_ports: tuple[Range, ...] = ALL_PORTS
    ports: tuple[Range, ...] = ALL_PORTS
    mappings: int | None = None

    def is_for(self, asker: Asker) -> bool:
        """Return whether this is about ``asker``."""
        named = not self.tokens or asker.token in self.tokens
        return named and (not self.networks or _holds(self.networks, asker.host))

    def covers(self, inside: Address) -> bool:
        """Return whether this host, not the asker's own, may be mapped."""
        return _holds(self.inside, inside[0])

    def gives(self, public: Address) -> bool:
        """Return whether this public address may be given."""
        return _among(self.ports, public[1])


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits that an administrator sets.

    ``max_lifetime`` in seconds: longer wishes are granted as this. ``per_client``, ``per_host``
    (a host may call itself many clients) and ``in_all`` are numbers of mappings. ``allow`` are
    looked through in turn, and the first that is for an asker counts. With ``refuses`` who
    cannot have the public port wished for gets none, unless it is one of those in ``spared``.
    """

    max_lifetime: int = 30
    per_client: int = 1024
    in_all: int = 50_000
    per_host: int = 4096
    allow: tuple[Allowance, ...] = (Allowance(),)
    refuses: bool = False
    spared: tuple[Range, ...] = AUTOMATIC

    def check(self, request: Forward, asker: Asker) -> Allowance:
        """Return what is allowed to the asker; raise Refused unless the request is within."""
        self.check_protocol(request.protocol)
        for what, endpoint in (("inside", request.inside), ("management", request.management)):
            if not endpoint.port:
                raise Refused(Status.MALFORMED, f"{what} port 0 is no listener's")
        if not request.lifetime:
            raise Refused(Status.MALFORMED, "lifetime 0; UNFORWARD removes a mapping")
        if request.management.host != asker.host:
            raise _not_own("management", request.management.host, asker)
        return self.check_inside(request.inside.address, asker)

    def check_protocol(self, protocol: int) -> None:
        """Raise Refused for what is not mapped here."""
        if protocol not in (TCP, UDP):
            raise Refused(Status.UNSUPPORTED, f"protocol {protocol} is not mapped here")

    def check_inside(self, inside: Address, asker: Asker) -> Allowance:
        """Return what is allowed to the asker; raise Refused if this may not be mapped."""
        allowance = next((one for one in self.allow if one.is_for(asker)), None)
        if allowance is None or is_wildcard(asker.host):
            whom = f" with token {asker.token}" if asker.token else ""
            raise Refused(Status.NOT_AUTHORIZED, f"{asker.host}{whom} may map nothing")
        if inside[0] != asker.host and not allowance.covers(inside):
            raise _not_own("inside", inside[0], asker)
        if not _among(allowance.inside_ports, inside[1]):
            problem = f"{format_address(inside)} is no port that {asker.host} may map"
            raise Refused(Status.NOT_AUTHORIZED, problem)
        return allowance

    def check_room(self, allowance: Allowance, client: int, host: int, in_all: int) -> None:
        """Raise Refused if there is no room for one more than so many mappings."""
        per_client = self.per_client
        if allowance.mappings is not None:
            per_client = min(per_client, allowance.mappings)
        for whose, count, limit in (("client", client, per_client), ("host", host, self.per_host)):
            if count >= limit:
                problem = f"the {whose} has {count} mappings; {limit} are allowed"
                raise Refused(Status.QUOTA_EXCEEDED, problem)
        if in_all >= self.in_all:
            raise Refused(Status.NO_RESOURCES, f"all {self.in_all} mappings are taken")

    def tolerates(self, host: str, inside: Address, public: Address) -> bool:
        """Return whether a mapping that ``host`` got earlier may stay, whatever its token."""
        for one in self.allow:
            own = inside[0] == host or one.covers(inside)
            ports = _among(one.inside_ports, inside[1]) and one.gives(public)
            if own and ports and (not one.networks or _holds(one.networks, host)):
                return True
        return False

    def insists(self, port: int) -> bool:
        """Return whether a wish for this public port (0: any) is fulfilled or refused."""
        return self.refuses and port != 0 and not _among(self.spared, port)

    def lifetime(self, wished: int) -> int:
        """Return the seconds that are granted."""
        return max(1, min(wished, self.max_lifetime))


def _not_own(what: str, host: str, asker: Asker) -> Refused:
    problem = f"{what} address {host} is not the client's own, {asker.host}"
    return Refused(Status.NOT_AUTHORIZED, problem)


def _holds(networks: Iterable[Network], host: str) -> bool:
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return any(address in network for network in networks)


def _among(ranges: Iterable[Range], port: int) -> bool:
    return any(low <= port <= high for low, high in ranges)
