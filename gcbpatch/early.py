"""Names that modules took from the standard library before it was patched.

`from socket import create_connection` keeps what it found. In the modules of the program, and
of packages it has loaded, such names are bound again; what cannot be is named in one warning.
The standard library is left alone: what it keeps for itself, it or gevent keeps on purpose.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from .mends.journal import Journal

log = logging.getLogger("gcbpatch")

LEFT_ALONE = (
    sys.stdlib_module_names
    | {"gcbpatch", "gevent", "greenlet", "zope", "eventlet"}
    # Debuggers and profilers keep originals so as not to be part of what they watch.
    | {"coverage", "debugpy", "pydevd", "_pydevd_bundle", "_pydev_bundle", "_pydevd_frame_eval"}
) - {"__main__"}
STDLIB_OF_THREADS = ("concurrent.futures.process", "multiprocessing.dummy")
"""Modules of the standard library with threads of their own that start in a program's name."""
MANY = 3
"""How many of a kind are named in the warning."""

Replaced = dict[int, tuple[Any, Any]]
"""What was replaced by what, by the id of what was there before."""


class Before:
    """What there is before the patch that will stay as it is."""

    def __init__(self) -> None:
        self._socket = socket.socket
        self._main = threading.main_thread()
        self._threads = [t for t in threading.enumerate() if t is not self._main]

    def warn(self, replaced: Replaced) -> None:
        """Say once, in the log, what the patch does not reach; nothing when it reaches all."""
        kinds = {
            "sockets that are open already": list(self._open_sockets(replaced)),
            "threads that run already": [t.name for t in self._threads],
            "classes derived from what was patched": sorted(set(_derived(replaced))),
        }
        found = [f"{kind} ({_some(names)})" for kind, names in kinds.items() if names]
        if found:
            log.warning(
                "patch_all() came late and does not reach %s: make it the program's first line",
                ", ".join(found),
            )

    def _open_sockets(self, replaced: Replaced) -> Iterator[str]:
        if id(self._socket) not in replaced or not _holds_sockets():
            return
        for thing in gc.get_objects():
            if issubclass(type(thing), self._socket) and thing.fileno() >= 0:
                yield f"fd {thing.fileno()}"


def bind_again(replaced: Replaced, journal: Journal) -> None:
    """Bind names in modules that are loaded to what took the place of what they name."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and not _left_alone(module.__name__):
            for name, value in list(vars(module).items()):
                old, new = replaced.get(id(value), (None, None))
                if value is old and callable(old):
                    journal.set(module, name, new)


def mended(replaced: Replaced, before: dict[str, Any], after: dict[str, Any]) -> Replaced:
    """Return ``replaced`` with what a module has ``after`` its mends for what it had ``before``."""
    now = {id(value): after[name] for name, value in before.items() if after[name] is not value}
    return {key: (old, now.get(id(new), new)) for key, (old, new) in replaced.items()}


def bind_back(replaced: Replaced) -> None:
    """After the patch was taken back: the same for modules loaded in the meantime."""
    back = {id(new): (new, old) for old, new in replaced.values() if callable(old)}
    bind_again(back, Journal())


def _holds_sockets() -> bool:
    """Whether any descriptor of this process is a socket: the search for them is long."""
    folder = "/proc/self/fd"
    for fd in os.listdir(folder):
        try:
            if os.readlink(f"{folder}/{fd}").startswith("socket:"):
                return True
        except OSError:
            continue  # that of the listing itself
    return False


def _left_alone(name: str) -> bool:
    return name.partition(".")[0] in LEFT_ALONE


def _derived(replaced: Replaced) -> Iterator[str]:
    """Classes made from the old ones; a thread's join() would wait for ever, for one."""
    for old, new in replaced.values():
        if isinstance(old, type) and isinstance(new, type) and old is not new:
            for cls in _below(old):
                if not _left_alone(cls.__module__) or _cannot_be_joined(cls):
                    yield f"{cls.__module__}.{cls.__qualname__}"


def _cannot_be_joined(cls: type) -> bool:
    """Whether this is a thread of the standard library that gevent has not put right."""
    home = cls.__module__
    return any(base.__name__ == "Thread" for base in cls.__mro__) and home in STDLIB_OF_THREADS


def _below(cls: type) -> Iterator[type]:
    below: type
    for below in type.__subclasses__(cls):
        yield below
        if not below.__module__.startswith("gevent."):
            yield from _below(below)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MANY} more" if len(names) > MANY else ""
    return ", ".join(names[:MANY]) + more
