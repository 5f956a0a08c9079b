"""Named places at which dpfd can be made to die, for tests of what it leaves behind.

The environment variable DPFD_FAULT names one: ``set: mirror`` is SIGKILL at the first passage,
``set: mirror@3`` at the third, ``*@7`` at the seventh passage of any but the answers (which a
test needs to look around). Without it nothing happens, at the cost of one comparison. It must
never do anything but that: what a killed process leaves is what is tested.
"""

from __future__ import annotations

import os
import signal
import sys

VARIABLE = "DPFD_FAULT"

POINTS = (
    "load: strays",
    "reconcile: read",
    "reconcile: applied",
    "mirror: written",
    "mirror: committed",
    "kernel: prepared",
    "kernel: committed",
    "set: asked",
    "set: table",
    "set: mirror",
    "set: kernel",
    "remove: asked",
    "remove: kernel",
    "remove: mirror",
    "remove: table",
    "answer: ready",
    "answer: sent",
)
"""All of them, in no order: what lies between two steps of a change."""


class Fault:
    """The one place that was named, and how often it may still be passed."""

    def __init__(self, text: str) -> None:
        """Raises ValueError for a place that does not exist."""
        self.name, _, count = text.partition("@")
        if self.name not in ("", "*", *POINTS):
            raise ValueError(f"{VARIABLE}={text!r} is none of {', '.join(POINTS)}")
        self.left = int(count or 1)

    def meet(self, name: str) -> None:
        """Die if it is this place's turn."""
        if self.name != name and (self.name != "*" or name.startswith("answer")):
            return
        self.left -= 1
        if not self.left:
            print(f"dpfd dies at {name}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


_fault = Fault(os.environ.get(VARIABLE, ""))


def point(name: str) -> None:
    """A place is passed."""
    if _fault.name:
        _fault.meet(name)
