"""The xtables lock, which every iptables command takes and python-iptables does not.

It must never be held while anything but the firewall is waited for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

import gevent

from .port import KernelError

PATH = "/run/xtables.lock"
PATIENCE = 10.0
"""Seconds to wait for somebody else's iptables command."""
_PAUSE = 0.01


@contextlib.contextmanager
def xtables_lock(patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock; other greenlets run while it is waited for. Raises KernelError."""
    path = os.environ.get("XTABLES_LOCKFILE", PATH)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise KernelError(f"{path}: the xtables lock cannot be opened: {error.strerror}") from error
    try:
        _take(descriptor, path, patience)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: str, patience: float) -> None:
    left = patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if left <= 0:
                raise KernelError(f"{path}: held by another program for {patience} s") from None
        gevent.sleep(_PAUSE)
        left -= _PAUSE
