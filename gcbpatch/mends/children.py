"""multiprocessing: children started by spawn and forkserver come up patched like their parent.

The parent puts an object into the data that a child unpickles first of all; unpickling it
patches the child before the program's main module is imported there. Neither the fork server
nor the resource tracker unpickles that data: they are never patched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from .journal import Journal

KEY = "gcbpatch"
"""Our key in the preparation data; multiprocessing passes over keys that it does not know."""

_COME_UP = """
import sys
sys.path[:] = path
from gcbpatch.patching import come_up
come_up(how)
"""

HOW: dict[str, Any] = {}
"""How this process is patched, as gcbpatch.patching.come_up wants to hear it."""


class Patched:
    """How a child is to be patched. Unpickled it is None, and the deed is done."""

    def __init__(self, how: dict[str, Any]) -> None:
        self._how = dict(how)

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str, dict[str, Any]]]:
        """Bring the search path along: the child has not yet been given its own."""
        return exec, (_COME_UP, {"path": list(sys.path), "how": self._how})


def mend(spawn: ModuleType, journal: Journal) -> None:
    """Add to what ``multiprocessing.spawn`` tells a child before anything else."""
    prepare = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        return {KEY: Patched(HOW)} | prepare(name)

    journal.set(spawn, "get_preparation_data", get_preparation_data)
