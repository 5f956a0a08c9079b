"""What dpfd wants of a kernel back end: two methods.

A back end must never change or remove what dpfd did not make.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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


class KernelPort(Protocol):
    """A firewall back end."""

    def read(self) -> Reading:
        """Return what is set now. Raises KernelError."""

    def apply(self, adds: Collection[Rule], removes: Collection[Rule]) -> None:
        """Set and remove rules, all or none, and put dpfd's own chains where they belong.

        A rule to remove that is not there is passed over. Raises KernelError.
        """
