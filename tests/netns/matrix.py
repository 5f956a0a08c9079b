"""Who reaches whom, by TCP and UDP, and by which path: what is expected.

`python -m tests.netns.matrix` writes it to docs/matrix.md; `test_matrix.py` tries every cell over
real NAT.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "matrix.md"

NOTHING, SENSELESS = "-", "."
"""No connection comes about; the two make no sense."""
CHANCE = "chance"
"""Punched or relayed: which of them is a matter of milliseconds."""

KINDS = {
    "public": "public host",
    "firewalled": "public host, firewalled",
    "filtering": "behind a NAT that filters and keeps ports",
    "randomising": "behind a NAT that takes a random port for every destination",
    "shifting": "behind a NAT that shows each port as another one, the same to everybody",
    "resetting": "behind a NAT that answers the unexpected with RST",
    "nested": "behind two NATs, one behind the other",
    "blocked": "behind a NAT that lets no UDP out",
}
NEIGHBOUR = "neighbour"
CONNECTORS = {**KINDS, NEIGHBOUR: "in the listener's own private network"}
GRIDS = {
    ("GCB", "GCB", "TCP"): """
              public   firewalled  filtering  randomising  shifting  resetting  nested   blocked
 public       kernel   reverse     reverse    reverse      reverse   reverse    reverse  reverse
 firewalled   kernel   punched     punched    relayed      punched   chance     punched  punched
 filtering    kernel   punched     punched    relayed      punched   chance     punched  punched
 randomising  kernel   relayed     relayed    relayed      relayed   relayed    relayed  relayed
 shifting     kernel   punched     punched    relayed      punched   chance     punched  punched
 resetting    kernel   chance      chance     relayed      chance    chance     chance   chance
 nested       kernel   punched     punched    relayed      punched   chance     punched  punched
 blocked      kernel   punched     punched    relayed      punched   chance     punched  punched
 neighbour    .        .           local      local        local     local      local    local
""",
    ("GCB", "GCB", "UDP"): """
              public   firewalled  filtering  randomising  shifting  resetting  nested   blocked
 public       kernel   direct      punched    punched      punched   punched    punched  -
 firewalled   kernel   direct      punched    relayed      punched   punched    punched  -
 filtering    kernel   direct      punched    relayed      punched   punched    punched  -
 randomising  kernel   relayed     relayed    relayed      relayed   relayed    relayed  -
 shifting     kernel   direct      punched    relayed      punched   punched    punched  -
 resetting    kernel   direct      punched    relayed      punched   punched    punched  -
 nested       kernel   direct      punched    relayed      punched   punched    punched  -
 blocked      -        -           -          -            -         -          -        -
 neighbour    .        .           local      local        local     local      local    kernel
""",
    ("ordinary", "GCB", "TCP"): """
              public   firewalled  filtering  randomising  shifting  resetting  nested   blocked
 public       kernel   relayed     relayed    relayed      relayed   relayed    relayed  relayed
 firewalled   kernel   relayed     relayed    relayed      relayed   relayed    relayed  relayed
 filtering    kernel   relayed     relayed    relayed      relayed   relayed    relayed  relayed
 randomising  kernel   relayed     relayed    relayed      relayed   relayed    relayed  relayed
 shifting     kernel   relayed     relayed    relayed      relayed   relayed    relayed  relayed
 resetting    kernel   relayed     relayed    relayed      relayed   relayed    relayed  relayed
 nested       kernel   relayed     relayed    relayed      relayed   relayed    relayed  relayed
 blocked      kernel   relayed     relayed    relayed      relayed   relayed    relayed  relayed
 neighbour    .        .           relayed    relayed      relayed   relayed    relayed  relayed
""",
    ("ordinary", "GCB", "UDP"): """
              public   firewalled  filtering  randomising  shifting  resetting  nested   blocked
 public       kernel   relayed     relayed    relayed      relayed   relayed    relayed  -
 firewalled   kernel   relayed     relayed    relayed      relayed   relayed    relayed  -
 filtering    kernel   relayed     relayed    relayed      relayed   relayed    relayed  -
 randomising  kernel   relayed     relayed    relayed      relayed   relayed    relayed  -
 shifting     kernel   relayed     relayed    relayed      relayed   relayed    relayed  -
 resetting    kernel   relayed     relayed    relayed      relayed   relayed    relayed  -
 nested       kernel   relayed     relayed    relayed      relayed   relayed    relayed  -
 blocked      -        -           -          -            -         -          -        -
 neighbour    .        .           relayed    relayed      relayed   relayed    relayed  kernel
""",
    ("GCB", "ordinary", "TCP"): """
              public   firewalled  filtering  randomising  shifting  resetting  nested   blocked
 public       kernel   -           -          -            -         -          -        -
 firewalled   kernel   -           -          -            -         -          -        -
 filtering    kernel   -           -          -            -         -          -        -
 randomising  kernel   -           -          -            -         -          -        -
 shifting     kernel   -           -          -            -         -          -        -
 resetting    kernel   -           -          -            -         -          -        -
 nested       kernel   -           -          -            -         -          -        -
 blocked      kernel   -           -          -            -         -          -        -
 neighbour    .        .           kernel     kernel       kernel    kernel     kernel   kernel
""",
    ("GCB", "ordinary", "UDP"): """
              public   firewalled  filtering  randomising  shifting  resetting  nested   blocked
 public       kernel   -           -          -            -         -          -        -
 firewalled   kernel   -           -          -            -         -          -        -
 filtering    kernel   -           -          -            -         -          -        -
 randomising  kernel   -           -          -            -         -          -        -
 shifting     kernel   -           -          -            -         -          -        -
 resetting    kernel   -           -          -            -         -          -        -
 nested       kernel   -           -          -            -         -          -        -
 blocked      -        -           -          -            -         -          -        -
 neighbour    .        .           kernel     kernel       kernel    kernel     kernel   kernel
""",
}
"""(connector, listener, protocol) -> a line for each kind of connector, a column for each of
listener. A cell is a path, or one of the words above."""
GRIDS["ordinary", "ordinary", "TCP"] = GRIDS["GCB", "ordinary", "TCP"]
GRIDS["ordinary", "ordinary", "UDP"] = GRIDS["GCB", "ordinary", "UDP"]

HEAD = """\
# Who reaches whom, and by which path

Written by `python -m tests.netns.matrix` from what `tests/netns/test_matrix.py` expects of every
cell, over real NAT, with the broker in public. Which paths there are stands in
[paths.md](paths.md); *kernel* is an ordinary connection that no broker has to do with, – means that
none comes about. Where two are named it is a matter of milliseconds which is taken: a punch through
a NAT that answers with RST needs first packets that meet on their way.
"""

Cell = tuple[str, str, str, str]
"""Connector's sort, listener's sort, protocol, listener's kind."""


def grid(text: str) -> dict[str, dict[str, str]]:
    """Read one grid: connector's kind -> listener's kind -> cell."""
    head, *lines = (line.split() for line in text.strip().splitlines())
    return {kind: dict(zip(head, cells, strict=True)) for kind, *cells in lines}


def expected(connector: str) -> dict[Cell, frozenset[str]]:
    """The paths that are right for a kind of connector, for each cell that makes sense."""
    return {
        (*sorts, listener): frozenset({"punched", "relayed"} if cell == CHANCE else {cell})
        for sorts, text in GRIDS.items()
        for listener, cell in grid(text)[connector].items()
        if cell != SENSELESS
    }


def page() -> str:
    """The page."""
    return "\n".join([*_head(), *(line for sorts in GRIDS for line in _section(*sorts))]) + "\n"


def _head() -> list[str]:
    kinds = [f"| {kind} | {meaning} |" for kind, meaning in CONNECTORS.items()]
    return [HEAD, "| | |", "|---|---|", *kinds]


def _section(connector: str, listener: str, protocol: str) -> Iterator[str]:
    yield from ["", f"## {connector} connector, {listener} listener, {protocol}", ""]
    rows = grid(GRIDS[connector, listener, protocol])
    yield f"| connector ↓ listener → | {' | '.join(KINDS)} |"
    yield "|---" * (len(KINDS) + 1) + "|"
    for kind, cells in rows.items():
        yield f"| {kind} | {' | '.join(map(_shown, cells.values()))} |"


def _shown(cell: str) -> str:
    return {NOTHING: "–", SENSELESS: "", CHANCE: "punched or relayed"}.get(cell, cell)


if __name__ == "__main__":
    PAGE.write_text(page())
