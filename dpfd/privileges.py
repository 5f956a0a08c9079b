"""Gives up what dpfd does not need of root's rights once it is started.

CAP_NET_ADMIN sets rules; CAP_NET_RAW is what legacy iptables needs besides. The bounding set
goes first, so that the tools that dpfd runs get no more than it has itself; the user stays, to
whom the mirror and the xtables lock belong. Capabilities are a thread's own: this must never be
called when there are other threads already.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
from pathlib import Path

from gcbpatch.errors import GcbError

log = logging.getLogger("dpfd")

CAP_SETPCAP, CAP_NET_ADMIN, CAP_NET_RAW = 8, 12, 13
KEPT = (CAP_NET_ADMIN, CAP_NET_RAW)
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 38, 47, 2
_VERSION_3 = 0x20080522
_HEADER = struct.Struct("=Ii")
_SETS = struct.Struct("=6I")
"""Effective, permitted, inheritable: first the lower halves, then the upper ones."""


class PrivilegeError(GcbError):
    """The kernel would not take the rights away."""


def require() -> None:
    """Raise PrivilegeError unless this process may set rules."""
    if not _permitted() >> CAP_NET_ADMIN & 1:
        raise PrivilegeError("CAP_NET_ADMIN is needed to set rules; run dpfd as root")


def drop() -> None:
    """Keep KEPT of the capabilities that there are, and nothing else, for good.

    Raises PrivilegeError.
    """
    if len(os.listdir("/proc/self/task")) != 1:
        raise PrivilegeError("capabilities are to be given up, but there are threads already")
    library = ctypes.CDLL(None, use_errno=True)
    permitted = _permitted()
    if permitted >> CAP_SETPCAP & 1:
        _bound(library)
    keep = permitted & sum(1 << capability for capability in KEPT)
    _call(library, "prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    low, high = keep & 0xFFFFFFFF, keep >> 32
    header = _HEADER.pack(_VERSION_3, 0)
    _call(library, "capset", header, _SETS.pack(low, low, low, high, high, high))
    for capability in KEPT:  # for the tools, if this is not root
        if keep >> capability & 1:
            _call(library, "prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)


def _bound(library: ctypes.CDLL) -> None:
    """Take all others out of the bounding set; the kernel knows how many there are."""
    capability = 0
    while library.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) >= 0:
        if capability not in KEPT:
            _call(library, "prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)
        capability += 1


def _permitted() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("CapPrm:")[1].split()[0], 16)


def _call(library: ctypes.CDLL, name: str, *args: int | bytes) -> None:
    if getattr(library, name)(*args):
        problem = os.strerror(ctypes.get_errno())
        raise PrivilegeError(f"capabilities cannot be given up: {name}: {problem}")
