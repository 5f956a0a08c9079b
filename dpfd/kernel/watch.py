"""Tells when an IPv4 address of the gateway comes or goes, by rtnetlink.

It must never say which: whoever wants to know looks at the interface.
"""

from __future__ import annotations

import socket

from .port import KernelError

_IPV4_ADDRESSES = 0x10  # RTMGRP_IPV4_IFADDR
_READ = 65536


class AddressWatch:
    """A subscription."""

    def __init__(self) -> None:
        """Raises KernelError."""
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            self._socket.bind((0, _IPV4_ADDRESSES))
        except OSError as error:
            raise KernelError(f"netlink to the interfaces: {error.strerror}") from error

    def close(self) -> None:
        """End the subscription."""
        self._socket.close()

    def changed(self) -> bool:
        """Return whether anything has changed since the last call."""
        changed = False
        while True:
            try:
                self._socket.recv(_READ, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return changed
            except OSError:  # too much has happened to be kept for us
                pass
            changed = True
