"""The firewall of the gateway as dpfd sees it: a back end, and what is the same for both.

What others' rules claim, in either firewall world; accepts in forward chains that could drop; and
flows of UDP mappings that have changed. It must never set a mapping itself: back ends do.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from typing import Protocol

from ..reconcile import Rule
from . import foreign, legacy
from .changes import Changes
from .conntrack import Conntrack
from .forwarding import ForwardAccept
from .port import Claim, KernelPort, Layout, Reading, check

log = logging.getLogger("dpfd")


class BackEnd(KernelPort, Protocol):
    """What nftables and iptables have in common besides the port."""

    def relocate(self, layout: Layout) -> None:
        """Take over changed settings with the next apply()."""

    def plan(self, adds: Collection[Rule], removes: Collection[Rule]) -> Iterator[str]:
        """Yield what apply() would do, in the words of the back end's own tool."""

    def flush(self) -> None:
        """Remove everything of dpfd's. Raises KernelError."""

    def close(self) -> None:
        """Let go of what is held; the rules stay."""


class Firewall:
    """Everything of the kernel's that dpfd changes."""

    def __init__(self, back_end: BackEnd, layout: Layout) -> None:
        """Raises KernelError if there is no netlink."""
        self.back_end = back_end
        self._accept = ForwardAccept(layout)
        self._conntrack = Conntrack()
        self._changes = Changes()

    def begin(self) -> None:
        """From now on there may be threads."""
        self._conntrack.begin()

    def close(self) -> None:
        """Let go of sockets; the rules stay."""
        self._conntrack.close()
        self._changes.close()
        self.back_end.close()

    def read(self) -> Reading:
        """Return dpfd's rules, and which public ports others' rules forward."""
        return Reading(self.back_end.read().rules, self.claims())

    def claims(self) -> tuple[Claim, ...]:
        """Return which public ports others' rules forward, in either world. Raises KernelError."""
        return (*legacy.claims(), *foreign.claims())

    def changed(self) -> bool:
        """Return whether anybody has changed the firewall since this was asked last."""
        return self._changes.any()

    def apply(self, adds: Collection[Rule], removes: Collection[Rule]) -> None:
        """Set and remove rules, all or none. Raises KernelError."""
        check(adds)
        self.back_end.apply(adds, removes)
        self._conntrack.note(adds, removes)

    def hold(self, rules: Collection[Rule]) -> None:
        """Keep rules for one more lease. Raises KernelError."""
        self.back_end.hold(rules)

    def disturbed(self) -> bool:
        """Return whether others have damaged dpfd's chains, as far as that is cheap to know."""
        return self.back_end.disturbed()

    def ensure_accepted(self) -> None:
        """Have forwarded connections accepted wherever they could be dropped."""
        for chain in self._accept.ensure():
            log.info("forwarded connections are accepted in the chain %s", chain)

    def relocate(self, layout: Layout) -> None:
        """Take over other public addresses. Raises KernelError; rules follow with apply()."""
        self._accept.remove()
        self._accept = ForwardAccept(layout)
        self._accept.ensure()
        self.back_end.relocate(layout)

    def plan(self, adds: Collection[Rule], removes: Collection[Rule]) -> Iterator[str]:
        """Yield what would be done, as commands."""
        yield from self._accept.plan()
        yield from self.back_end.plan(adds, removes)
