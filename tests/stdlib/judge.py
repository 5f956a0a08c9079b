"""Compares the verdicts of two modes: what is worse under the patch than under gevent.

Pure: no process, no file but the excuses it is given. It must never call something good
that has no verdict.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

END = ".(end)"
"""Ends the id under which the end of a class, with its fixtures and its process, stands."""

GOOD, PASSED_OVER, BAD = range(3)
RANK = {"ok": GOOD, "skip": PASSED_OVER}
RANK |= dict.fromkeys(("fail", "error", "died", "hang", "absent"), BAD)


@dataclass(frozen=True)
class Excuse:
    """Ids that may be worse in a mode, and why. ``test`` is a pattern for the whole id.

    With ``sometimes`` the excuse may also find nothing to excuse: what it is for depends on
    the machine, as the reason has to say. ``since`` is the Python, as [3, 13] or [3, 11, 7], that
    has the id first.
    """

    test: str
    mode: str
    reason: str
    sometimes: bool = False
    since: Sequence[int] = ()

    def covers(self, test: str, mode: str) -> bool:
        """Whether this excuse is for an id in a mode."""
        return mode == self.mode and re.fullmatch(self.test, test) is not None


@dataclass(frozen=True)
class Complaint:
    """An id that is worse than it should be, or an excuse that excuses nothing."""

    test: str
    mode: str
    text: str

    def __str__(self) -> str:
        return f"{self.test} [{self.mode}]: {self.text}"


def read_excuses(
    tables: Mapping[str, object], python: tuple[int, ...] = sys.version_info[:3]
) -> list[Excuse]:
    """Return a TOML file's excuses for ``python``; raises ValueError for one without a reason."""
    found = [Excuse(**table) for table in _list_of(tables, "excuse")]
    for excuse in found:
        re.compile(excuse.test)
        if len(excuse.reason.split()) < 3:
            raise ValueError(f"{excuse.test}: an excuse needs a reason")
    return [excuse for excuse in found if tuple(excuse.since) <= python]


def _list_of(tables: Mapping[str, object], name: str) -> list[dict[str, object]]:
    unknown = set(tables) - {name}
    value = tables.get(name, [])
    if unknown or not isinstance(value, list):
        raise ValueError(f"only [[{name}]] tables are right, not {sorted(unknown)}")
    return value


def worse(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return the ids that are worse after than before; an id that is missing is bad.

    What ``before`` lacks is nothing to compare with, nor is the end of a class that was not
    reached since its last id is bad.
    """
    return [
        test
        for test in before
        if (test in after or not test.endswith(END))
        and RANK[after.get(test, "died")] > RANK[before[test]]
    ]


def judge(
    before: Mapping[str, str], after: Mapping[str, str], mode: str, excuses: Iterable[Excuse]
) -> list[Complaint]:
    """Complain about every id that is worse without an excuse, and every excuse without use.

    An excuse is only asked of the ids that were run: part of a suite says nothing of others.
    """
    bad = worse(before, after)
    mine = [excuse for excuse in excuses if excuse.mode == mode]
    complaints = [
        Complaint(test, mode, f"{before[test]} under gevent, {after.get(test, 'no verdict')} here")
        for test in bad
        if not any(excuse.covers(test, mode) for excuse in mine)
    ]
    for excuse in mine:
        covered = [test for test in before if excuse.covers(test, mode)]
        if covered and not excuse.sometimes and not set(covered) & set(bad):
            complaints.append(Complaint(excuse.test, mode, "this excuse excuses nothing any more"))
    return complaints


def broken_promises(after: Mapping[str, str], mode: str, ids: Iterable[str]) -> list[Complaint]:
    """Complain about each of ``ids`` that is not ok: those that are better than under gevent."""
    return [
        Complaint(test, mode, f"{after.get(test, 'no verdict')} here, and our mends are for it")
        for test in ids
        if after.get(test) != "ok"
    ]


def unused(ids: Iterable[str], excuses: Iterable[Excuse]) -> list[Excuse]:
    """Return the excuses that are for no id at all: a name that CPython has changed."""
    known = list(ids)
    return [e for e in excuses if not any(re.fullmatch(e.test, test) for test in known)]
