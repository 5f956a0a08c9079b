"""A kernel table in memory, for tests of everything above it. It must never be chosen by a flag."""

from __future__ import annotations

from collections.abc import Collection

from ..reconcile import Rule
from .port import Claim, KernelError, Reading


class FakeKernel:
    """Keeps rules in a list; ``broken`` makes it refuse, ``claims`` are others' rules."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.claims: list[Claim] = []
        self.broken = ""

    def read(self) -> Reading:
        """Return what is set."""
        self._check()
        return Reading(tuple(self.rules), tuple(self.claims))

    def apply(self, adds: Collection[Rule], removes: Collection[Rule]) -> None:
        """Set and remove rules, all or none."""
        self._check()
        for rule in removes:
            if rule in self.rules:
                self.rules.remove(rule)
        self.rules.extend(adds)

    def hold(self, rules: Collection[Rule]) -> None:
        """Nothing ends by itself here."""

    def disturbed(self) -> bool:
        """Nobody else is here."""
        return False

    def _check(self) -> None:
        if self.broken:
            raise KernelError(self.broken)
