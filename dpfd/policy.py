"""Who may map what, and for how long. Pure.

It must never look at the table's content, only at the counts it is given, and must never
grant what it does not name.
"""

from __future__ import annotations

from dataclasses import dataclass

from gcbpatch.addresses import is_wildcard
from gcbpatch.errors import Status
from gcbpatch.wire.messages import TCP, Forward


class Refused(Exception):
    """The policy says no; ``status`` is the answer, the text is for the log."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits that an administrator sets.

    ``max_lifetime`` in seconds: longer wishes are granted as this. ``per_client`` and
    ``in_all`` are numbers of mappings.
    """

    max_lifetime: int = 30
    per_client: int = 1024
    in_all: int = 50_000

    def check(self, request: Forward, peer: str) -> None:
        """Raise Refused unless the session's peer may ask for this mapping at all."""
        if request.protocol != TCP:
            raise Refused(Status.UNSUPPORTED, f"protocol {request.protocol} is not mapped here")
        for what, endpoint in (("inside", request.inside), ("management", request.management)):
            if endpoint.host != peer:
                problem = f"{what} address {endpoint.host} is not the client's own, {peer}"
                raise Refused(Status.NOT_AUTHORIZED, problem)
            if not endpoint.port:
                raise Refused(Status.MALFORMED, f"{what} port 0 is no listener's")
        if not request.lifetime:
            raise Refused(Status.MALFORMED, "lifetime 0; UNFORWARD removes a mapping")
        if is_wildcard(peer):
            raise Refused(Status.NOT_AUTHORIZED, f"{peer} is nobody's address")

    def check_room(self, mappings_of_client: int, mappings_in_all: int) -> None:
        """Raise Refused if there is no room for one more mapping."""
        if mappings_of_client >= self.per_client:
            raise Refused(
                Status.QUOTA_EXCEEDED,
                f"the client has {mappings_of_client} mappings; {self.per_client} are allowed",
            )
        if mappings_in_all >= self.in_all:
            raise Refused(Status.NO_RESOURCES, f"all {self.in_all} mappings are taken")

    def lifetime(self, wished: int) -> int:
        """Return the seconds that are granted."""
        return max(1, min(wished, self.max_lifetime))
