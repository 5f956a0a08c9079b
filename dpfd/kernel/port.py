"""What dpfd wants of a kernel back end: a few methods.

A back end must never change or remove what dpfd did not make.
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from gcbpatch.addresses import Address
from gcbpatch.errors import GcbError

from ..reconcile import Rule


class KernelError(GcbError):
    """The kernel refused; nothing was changed. The text says what and why."""


class Claim(NamedTuple):
    """Public ports that somebody else's rule forwards.

    ``protocol`` 0 means any. ``network`` and ``mask`` are of the destination, as numbers.
    """

    protocol: int
    network: int
    mask: int
    low: int
    high: int

    def covers(self, protocol: int, host: int, port: int) -> bool:
        """Return whether a public address (``host`` as a number) is claimed by this rule."""
        return (
            self.protocol in (0, protocol)
            and host & self.mask == self.network & self.mask
            and self.low <= port <= self.high
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """What the kernel holds: dpfd's rules (a rule set twice is there twice), others' claims."""

    rules: tuple[Rule, ...]
    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """What a back end needs to know of the gateway, besides the rules.

    ``hosts`` and the ports from ``low`` to ``high`` are what this dpfd gives away; what lies
    outside is another dpfd's. ``inside`` are the private interfaces, each with its network as
    ``10.1.0.0/24``. ``lease`` (seconds) is how long a back end that can limit it keeps a rule
    unless hold() is called again.
    """

    hosts: tuple[str, ...]
    low: int
    high: int
    inside: tuple[tuple[str, str], ...]
    lease: int = 90

    def __contains__(self, public: Address) -> bool:
        return public[0] in self.hosts and self.low <= public[1] <= self.high

    def overlaps(self, low: int, high: int) -> bool:
        """Return whether a range of ports has ports of this dpfd's."""
        return low <= self.high and self.low <= high


def check(rules: Collection[Rule]) -> None:
    """Raise KernelError for a rule that no kernel can hold."""
    for rule in rules:
        for host, port in (rule.public, rule.inside):
            try:
                socket.inet_pton(socket.AF_INET, host)
            except OSError as error:
                raise KernelError(f"{rule} is no mapping: {error}") from error
            if not 0 < port < 65536:
                raise KernelError(f"{rule} is no mapping: port {port}")


class KernelPort(Protocol):
    """A firewall back end."""

    def read(self) -> Reading:
        """Return what is set now. Raises KernelError."""

    def apply(self, adds: Collection[Rule], removes: Collection[Rule]) -> None:
        """Set and remove rules, all or none, and put dpfd's own chains where they belong.

        A rule to remove that is not there is passed over. Raises KernelError.
        """

    def hold(self, rules: Collection[Rule]) -> None:
        """Keep these rules, which are set, for one more lease. Raises KernelError."""

    def disturbed(self) -> bool:
        """Return whether others have damaged dpfd's chains, as far as that is cheap to know."""
