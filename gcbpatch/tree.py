"""The names by which the processes of a program tree and their agent know each other.

It must never import anything of the project: the program has these names before it loads
what speaks to an agent.
"""

from __future__ import annotations

import os

AGENT_VARIABLE = "GCB_AGENT"
CLIENT_VARIABLE = "GCB_CLIENT"
"""The client id of the program tree: an agent that is started again goes on under it."""
NUDGE_HOST = "127.71.67.66"
"""Source address of nudges: loopback, and nobody's by chance ("GCB" in its octets)."""
NUDGE_HOST_6 = "::1"
"""The same by IPv6, which has no other loopback address; so they have a mark as well."""
NUDGE_SEGMENT = 1009
"""The mark: the greatest segment (TCP_MAXSEG) that they say they take; a real one says 65476."""


def new_name() -> str:
    """Return a fresh name for a door; children find it in the environment."""
    return f"gcbpatch.{os.getuid()}.{os.urandom(12).hex()}"
