"""What must change so that the kernel's table is the desired one. Pure.

It must never see, let alone remove, a rule that dpfd did not make: what the kernel back ends
read for it are dpfd's own rules, in chains of dpfd's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from gcbpatch.addresses import Address


class Rule(NamedTuple):
    """[A:B > X:Y] as the kernel has it. ``protocol`` is IANA's number: 6 is TCP."""

    protocol: int
    public: Address
    inside: Address


@dataclass(frozen=True, slots=True)
class Changes:
    """Rules to set and rules to remove; each in a fixed order, so that runs can be compared."""

    adds: tuple[Rule, ...]
    removes: tuple[Rule, ...]

    def __bool__(self) -> bool:
        return bool(self.adds or self.removes)


def diff(desired: Iterable[Rule], kernel: Iterable[Rule]) -> Changes:
    """Return what turns ``kernel`` into ``desired``.

    A rule that the kernel holds twice is named once more among the removes for each copy.
    """
    wanted = set(desired)
    missing, surplus = set(wanted), []
    for rule in kernel:
        if rule in missing:
            missing.discard(rule)
        else:
            surplus.append(rule)
    return Changes(tuple(sorted(missing)), tuple(sorted(surplus)))
