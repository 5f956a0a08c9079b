"""python -m gcbpatch PROGRAM [ARG …]: run an unmodified program patched.

It must never leave a trace of itself in what the program sees: sys.argv, sys.path[0] and
__main__ are as if Python had been given the program.
"""

from __future__ import annotations

import os
import runpy
import sys

from .errors import ConfigError

USAGE = "usage: python -m gcbpatch PROGRAM [ARG ...] | -m MODULE [ARG ...]"


def run(arguments: list[str]) -> None:
    """Patch this process and its Python subprocesses; run a program or module as __main__."""
    from .patching import patch_all, reach_subprocesses

    patch_all()
    reach_subprocesses()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")


def main(arguments: list[str]) -> None:
    """Check the arguments, then run; exits with 2 for bad usage or settings."""
    if not arguments or (arguments[0].startswith("-") and arguments[:1] != ["-m"]):
        sys.exit(_usage(USAGE))
    if arguments[0] == "-m" and len(arguments) < 2:
        sys.exit(_usage(USAGE))
    try:
        run(arguments)
    except ConfigError as error:
        sys.exit(_usage(f"gcbpatch: {error}"))


def _usage(text: str) -> int:
    print(text, file=sys.stderr)
    return 2


if __name__ == "__main__":
    main(sys.argv[1:])
