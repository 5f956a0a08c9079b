"""python -m tests.bench [--quick] [--json] [--check] [NAME ...]: what the layer costs here.

With --check the exit status is 1 if a target is missed by more than the noise. It must never be
a part of the tests: figures belong to a machine, and to how busy it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from . import subjects
from .alternate import Comparison, Spread, Trio, alternate


@dataclass(frozen=True)
class Figure:
    """One thing that is measured. ``target`` is a ratio, or milliseconds where ``adds``."""

    title: str
    target: float
    subjects: Callable[[bool], AbstractContextManager[Trio]]
    generations: int
    turns: int
    adds: bool = False

    def judge(self, found: Comparison) -> tuple[Spread, Spread]:
        """Return the cost, and how much of it may be noise, in the target's unit."""
        if not self.adds:
            return found.ratio, found.noise_ratio
        return _milliseconds(found.difference), _milliseconds(found.noise_difference)


def _milliseconds(spread: Spread) -> Spread:
    return Spread(spread.median / 1e6, spread.low / 1e6, spread.high / 1e6)


def _established(command: str, many: int) -> Callable[[bool], AbstractContextManager[Trio]]:
    return lambda quick: subjects.established(command, 10 if quick else many)


FIGURES = {
    "send": Figure("send and recv of 64 bytes", 1.0, _established("small", 2000), 6, 40),
    "bulk": Figure("send and recv of 64 KiB", 1.0, _established("large", 400), 6, 40),
    "echo": Figure("64 bytes to another thread and back", 1.0, _established("echo", 500), 6, 40),
    "connect": Figure(
        "connect to an ordinary address, a broker configured",
        1.05,
        lambda quick: subjects.connecting(10 if quick else 50),
        6,
        150,
    ),
    "accept": Figure(
        "accept of a brokered connection",
        1.3,
        lambda quick: subjects.accepting(10 if quick else 30),
        4,
        100,
    ),
    "start": Figure(
        "import and patch_all, milliseconds more", 40.0, lambda _: subjects.starting(), 1, 40, True
    ),
}


def measure(figure: Figure, quick: bool) -> dict[str, Any]:
    """Measure one figure; its target is met if the median is within half the noise's width."""
    rounds = (1, 2) if quick else (figure.generations, figure.turns)
    found = alternate(lambda: figure.subjects(quick), *rounds)
    cost, noise = figure.judge(found)
    margin = (noise.high - noise.low) / 2
    return {
        "title": figure.title,
        "unit": "ms more" if figure.adds else "ratio",
        "plain_microseconds": found.plain / 1000,
        "cost": asdict(cost),
        "noise": asdict(noise),
        "target": figure.target,
        "met": cost.median <= figure.target + margin,
    }


def agent() -> dict[str, Any]:
    """Look whether a program that needs no agent gets one."""
    runs = subjects.agent_of_a_program_without_brokered_sockets()
    return {"title": "no brokered socket: no agent", "met": not runs}


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "cores": os.cpu_count(),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "gevent": version("gevent"),
    }


def table(here: dict[str, Any], found: dict[str, dict[str, Any]]) -> str:
    """Write the figures as a Markdown table."""
    lines = [
        "{cores} cores, Linux {kernel}, CPython {python}, gevent {gevent}".format(**here),
        "",
        "| what | plain | cost (95 %) | plain against itself | target | met |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_row, found.values())])


def _row(one: dict[str, Any]) -> str:
    met = "yes" if one["met"] else "NO"
    if "cost" not in one:
        return f"| {one['title']} | | | | | {met} |"
    plain = f"{one['plain_microseconds']:.1f} µs"
    cost, noise = _spread(one["cost"]), _spread(one["noise"])
    return f"| {one['title']} | {plain} | {cost} | {noise} | {one['target']:g} | {met} |"


def _spread(spread: dict[str, float]) -> str:
    return "{median:.3f} ({low:.3f}–{high:.3f})".format(**spread)


def main() -> None:
    """Measure what was asked for, or everything."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=subjects.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*FIGURES, "agent"]))
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    arguments = parser.parse_args()
    names = arguments.names or [*FIGURES, "agent"]
    if unknown := set(names) - {*FIGURES, "agent"}:
        parser.error(f"no such figure: {', '.join(sorted(unknown))}")
    try:
        found = {
            name: agent() if name == "agent" else measure(FIGURES[name], arguments.quick)
            for name in names
        }
    except subjects.BenchError as error:
        print(f"not measured: {error}", file=sys.stderr)
        sys.exit(2)
    here = machine()
    print(json.dumps({"machine": here, "figures": found}) if arguments.json else table(here, found))
    if arguments.check and not all(one["met"] for one in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
