"""What programs, asyncio and multiprocessing need beside gevent's patches, one room for each mend.

A mend is a function that is given the module it mends, right after the program has imported
it, and a journal by which everything can be taken back. No mend may ever import the module
it mends: a program that does not use asyncio or multiprocessing does not pay for them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from . import (
    children,
    closing,
    connection,
    forking,
    joining,
    polling,
    resource_sharer,
    running_loop,
    semaphores,
    waiting,
)
from .journal import Journal
from .late import Late

MENDS: dict[str, Callable[[ModuleType, Journal], None]] = {
    "os": closing.mend,
    "gevent.os": waiting.mend,
    "gevent.hub": forking.mend,
    "gevent.select": polling.mend,
    "asyncio.events": running_loop.mend,
    "multiprocessing.connection": connection.mend,
    "multiprocessing.synchronize": semaphores.mend,
    "multiprocessing.resource_sharer": resource_sharer.mend,
    "multiprocessing.spawn": children.mend,
    "multiprocessing.popen_fork": joining.mend,
}
"""Which module is mended by what; tests take one out to show what it is for."""


def install(journal: Journal) -> None:
    """Mend the modules that are there now, and the others when they are imported."""
    late = Late({name: _bound(mend, journal) for name, mend in MENDS.items()})
    late.install()
    journal.add(late.remove)


def _bound(
    mend: Callable[[ModuleType, Journal], None], journal: Journal
) -> Callable[[ModuleType], None]:
    return lambda module: mend(module, journal)
