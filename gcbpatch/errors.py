"""Errors and statuses that every house shares.

This room names what can go wrong between programs, brokers and gateways. It must never
import anything of the project, so that every other room can import it.
"""

from __future__ import annotations

import enum
import errno


class Status(enum.IntEnum):
    """Outcome of a request, as carried in byte 5 of a reply's header.

    The names are PCP's (RFC 6887, section 7.4) and TURN's (RFC 8656); ``UNKNOWN`` is the
    NAK of Son & Livny 2003: "I know nothing of that address".
    """

    SUCCESS = 0
    NOT_AUTHORIZED = 1
    MALFORMED = 2
    UNSUPPORTED = 3
    NO_RESOURCES = 4
    CANNOT_PROVIDE_EXTERNAL = 5
    QUOTA_EXCEEDED = 6
    UNKNOWN = 7
    STALE_EPOCH = 8


class GcbError(Exception):
    """Base of the errors that this project raises on its own account."""


class RemoteProtocolError(GcbError):
    """The other side sent what the protocol does not allow.

    ``status`` is what a replier would answer with. Parsers of this project raise this
    error on garbage, and nothing else.
    """

    def __init__(self, status: Status, problem: str) -> None:
        super().__init__(problem)
        self.status = status


class LocalProtocolError(GcbError):
    """This side asked the protocol for something that it cannot express: a bug of ours."""


class ConfigError(GcbError):
    """A configuration file, flag or environment variable is wrong; the text says how to mend it."""


class RefusedError(GcbError):
    """A broker or gateway answered a request with a status other than SUCCESS."""

    def __init__(self, status: Status, request: str) -> None:
        super().__init__(f"{request} was refused: {status.name}")
        self.status = status


_ERRNO = {
    Status.NO_RESOURCES: errno.EADDRNOTAVAIL,
    Status.CANNOT_PROVIDE_EXTERNAL: errno.EADDRNOTAVAIL,
    Status.QUOTA_EXCEEDED: errno.EADDRNOTAVAIL,
    Status.UNKNOWN: errno.ECONNREFUSED,
}


EXHAUSTED = frozenset(
    {Status.NO_RESOURCES, Status.CANNOT_PROVIDE_EXTERNAL, Status.QUOTA_EXCEEDED}
)
"""Refusals for want of something: a program that listens is told so, by EADDRNOTAVAIL."""


def errno_of(status: Status) -> int:
    """Return the errno that a program sees at the socket surface for ``status``."""
    return _ERRNO.get(status, errno.ECONNABORTED)
