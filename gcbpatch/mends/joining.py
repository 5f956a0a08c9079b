"""multiprocessing: joining a child that was spawned does not stop the other greenlets.

gevent waits in its loop only for children that it has forked itself; a spawned one is started
beside it, and waiting for it stops the whole process. And its loop begins to listen for SIGCHLD
only after the first fork: a child that has ended by then is never noticed. It must never
collect a child's status: that is left to multiprocessing.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from .journal import Journal


def mend(popen_fork: ModuleType, journal: Journal) -> None:
    """Let ``multiprocessing.popen_fork.Popen.poll`` wait in the hub, where it waits."""
    poll = popen_fork.Popen.poll

    def patient_poll(popen: Any, flag: int = os.WNOHANG) -> int | None:
        if popen.returncode is None and not flag & os.WNOHANG:
            _wait_for_end(popen.pid)
        status: int | None = poll(popen, flag)
        return status

    journal.set(popen_fork.Popen, "poll", patient_poll)
    os.register_at_fork(before=_expect_children)  # cannot be taken back, and does no harm


def _expect_children() -> None:
    from gevent import get_hub, monkey

    if monkey.is_object_patched("os", "fork"):
        get_hub().loop.install_sigchld()


def _wait_for_end(pid: int) -> None:
    from gevent.socket import wait_read

    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return  # gone, or no descriptor to be had: poll() tells, or waits as ever
    try:
        wait_read(descriptor)
    finally:
        os.close(descriptor)
