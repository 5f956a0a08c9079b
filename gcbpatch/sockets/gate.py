"""What a route with ``deny`` keeps from leaving: connects, and datagrams with an address.

There is a gate only where a table can deny. It must never let a name pass that stands for
a denied address, and never look at what is sent.
"""

from __future__ import annotations

import _socket
import errno
import os
from typing import Any

from ..routefile import RouteFile
from ..routes import Routes, Way
from .target import resolved


class Gate:
    """Compares destinations with ``routes``, which may change meanwhile."""

    def __init__(self, routes: Routes | RouteFile) -> None:
        self._routes = routes

    def denies(self, address: Any) -> bool:
        """Whether a route denies ``address``, whose host is an IP literal if it has one."""
        if not isinstance(address, tuple) or not address or not isinstance(address[0], str):
            return False
        # For the kernel no host at all is this one.
        return self._routes.way(address[0] or "0.0.0.0") is Way.DENY

    def passed(self, sock: _socket.socket, address: Any) -> Any:
        """Return the address, its host in numbers where it passed.

        Raises PermissionError as the kernel does for a prohibited route, and what looking
        up a name raises.
        """
        if not self._routes.current.denies:
            return address
        address = resolved(sock, address)
        if self.denies(address):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return address
