"""``python -m tests.sim``: run seeds, or one again: ``--seed N``. Prints the seed of a failure."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback

from .story import Story


def main() -> int:
    """Return 1 if a run failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("--seed", type=int, help="run this one only")
    parser.add_argument("--from", dest="first", type=int, default=0, help="first seed [0]")
    parser.add_argument("--runs", type=int, default=1000, help="how many [1000]")
    asked = parser.parse_args()
    logging.disable(logging.ERROR)
    seeds = range(asked.first, asked.first + asked.runs) if asked.seed is None else [asked.seed]
    for seed in seeds:
        try:
            Story(seed).tell()
        except Exception:
            traceback.print_exc()
            print(f"failed; again with: python -m tests.sim --seed {seed}")
            return 1
    print(f"{len(seeds)} runs, all invariants hold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
