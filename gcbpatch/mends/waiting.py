"""gevent.os: waitpid(-1) returns every child once, and says so when there is none.

A waitpid(-1) of gevent's that has to wait returns the next child that ends, and leaves it among
those it watches: the next one returns it again. Without any child it waits for ever.
It must never drop a child of a fork_and_watch() that somebody wants to be called for.
"""

from __future__ import annotations

import functools
import os
from types import ModuleType

from .journal import Journal


def mend(gevent_os: ModuleType, journal: Journal) -> None:
    """Have ``os.waitpid`` forget a child of any number once it has returned it, and miss none."""
    waitpid = os.waitpid
    if waitpid is not gevent_os.waitpid:
        return  # patch_all(os=False): the kernel's own

    @functools.wraps(waitpid)
    def waitpid_once(pid: int, options: int) -> tuple[int, int]:
        if pid == -1 and not options:
            _expect_one(gevent_os)
        got = waitpid(pid, options)
        if pid == -1 and got[0] > 0:
            _forget(gevent_os, got[0])
        return got

    journal.set(os, "waitpid", waitpid_once)


def _expect_one(gevent_os: ModuleType) -> None:
    """Raise ChildProcessError, as the kernel does, if there is no child to wait for."""
    from gevent import sleep

    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        sleep(0)  # the loop may have collected one just now, and not told its watcher yet
        if not any(isinstance(state, tuple) for state in gevent_os._watched_children.values()):
            raise


def _forget(gevent_os: ModuleType, pid: int) -> None:
    """Stop watching a child; its own watcher is told only after the one for any child."""
    watched = gevent_os._watched_children
    watcher = watched.get(pid)
    if watcher is None or isinstance(watcher, tuple):
        watched.pop(pid, None)
    elif watcher.args[1:] == (None,):
        del watched[pid]
        watcher.stop()
        watcher.close()
