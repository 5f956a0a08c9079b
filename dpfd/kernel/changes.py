"""Has anybody changed the gateway's firewall, of either world? Cheap enough to ask every second.

nftables counts its transactions; of legacy iptables the size and the hooks of the nat table tell.
dpfd's own changes count as well. It must never read rules: that is for who is told that some
have changed.
"""

from __future__ import annotations

import logging

from . import legacy
from .netlink import Netlink, Request
from .port import KernelError

log = logging.getLogger("dpfd")

_GET_GENERATION = 0x0A10


class Changes:
    """What the firewall looked like when it was looked at last."""

    def __init__(self) -> None:
        """Raises KernelError."""
        self._netlink = Netlink()
        self._seen: tuple[list[bytes], bytes] | None = None

    def close(self) -> None:
        """Let go of the socket."""
        self._netlink.close()

    def any(self) -> bool:
        """Return whether there were changes since the last call; the first says yes.

        Raises KernelError.
        """
        now = self._generation(), legacy.signature("nat")
        changed, self._seen = now != self._seen, now
        return changed

    def _generation(self) -> list[bytes]:
        """As the kernel tells it; empty where it has no nftables."""
        try:
            asked = Request(_GET_GENERATION, 0, 0, b"", "asking for the generation")
            return self._netlink.ask(asked)
        except KernelError as error:
            log.debug("%s", error)
            return []
