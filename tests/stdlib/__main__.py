"""python -m tests.stdlib: run the suite, print how many of what, and what is worse.

    python -m tests.stdlib [--modes gevent,brokered] [--json FILE] [--jobs N] [--all] [MODULE …]

A MODULE is a part of a module's name. Ends with 1 if anything is worse without an excuse.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from .ground import brokered, complaints, excuses, job
from .judge import RANK
from .runner import HANG_SECONDS, MODES, Outcome, run
from .suite import MODULES, classes, missing


def arguments() -> argparse.Namespace:
    """What the user has given."""
    parser = argparse.ArgumentParser(prog="python -m tests.stdlib")
    parser.add_argument("--modes", default=",".join(MODES), help="of " + ", ".join(MODES))
    parser.add_argument("--json", help="write all verdicts here, with their details")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--hang", type=float, default=HANG_SECONDS, help="seconds for one id")
    parser.add_argument("--all", action="store_true", help="what hangs under gevent, too")
    parser.add_argument("modules", nargs="*", metavar="MODULE")
    return parser.parse_args()


def run_mode(
    mode: str, given: argparse.Namespace, found: dict[tuple[str, str], list[str]]
) -> list[Outcome]:
    """Run every class in a mode; returns the outcomes."""
    with brokered(mode) as settings, ThreadPoolExecutor(given.jobs) as pool:
        jobs = [job(case, ids, mode, settings, given.hang) for case, ids in found.items()]
        return list(pool.map(run, jobs))


def table(outcomes: dict[str, list[Outcome]]) -> str:
    """Counts of verdicts by module and mode."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    for mode, ones in outcomes.items():
        for one in ones:
            of_mode = counts.setdefault(one.job.module, {}).setdefault(mode, Counter())
            of_mode.update(one.words().values())
            of_mode["brokered"] += sum(one.paths.values())
            counts.setdefault("in all", {}).setdefault(mode, Counter()).update(one.words().values())
    columns = [*RANK, "brokered"]
    lines = [f"{'':42}{'':10}" + "".join(f"{c:>9}" for c in columns)]
    for module, modes in counts.items():
        for mode, one in modes.items():
            lines.append(f"{module:42}{mode:10}" + "".join(f"{one[c] or '':>9}" for c in columns))
    return "\n".join(lines)


def write(path: str, outcomes: dict[str, list[Outcome]]) -> None:
    """Keep everything for who wants to look closer."""
    kept = {mode: [asdict(one) for one in ones] for mode, ones in outcomes.items()}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(kept, file, indent=1)


def main() -> int:
    """Run what is asked for; the exit status says whether it is good."""
    given = arguments()
    if reason := missing():
        print(reason, file=sys.stderr)
        return 2
    wanted = tuple(m for m in MODULES if not given.modules or any(p in m for p in given.modules))
    found = classes(wanted, given.all)
    outcomes = {}
    for mode in given.modes.split(","):
        began = time.monotonic()
        outcomes[mode] = run_mode(mode, given, found)
        print(f"{mode}: {len(found)} classes, {time.monotonic() - began:.0f} s", file=sys.stderr)
    if given.json:
        write(given.json, outcomes)
    print(table(outcomes))
    found_bad = [c for mode in outcomes for c in complaints(outcomes, mode, excuses())]
    print("\n".join(map(str, found_bad)) or "nothing is worse")
    return bool(found_bad)


if __name__ == "__main__":
    sys.exit(main())
