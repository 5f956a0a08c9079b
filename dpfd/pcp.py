"""PCP (RFC 6887) as bytes: MAP and ANNOUNCE, as requests and responses. Pure.

It must never raise anything but Silence (what is not answered) and Problem (what is answered
with a result code, and the request's own bytes).
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from gcbpatch.addresses import Address

VERSION = 2
LONGEST = 1100
ANNOUNCE, MAP = 0, 1
_PREFER_FAILURE = 2
_OPTIONAL = 128
_RESPONSE = 128
_REQUEST = struct.Struct("!BBHI16s")
_ANSWER = struct.Struct("!BBBBII12x")
_MAP = struct.Struct("!12sB3xHH16s")
_OPTION = struct.Struct("!BxH")


class Result(enum.IntEnum):
    """Section 7.4."""

    SUCCESS = 0
    UNSUPP_VERSION = 1
    NOT_AUTHORIZED = 2
    MALFORMED_REQUEST = 3
    UNSUPP_OPCODE = 4
    UNSUPP_OPTION = 5
    MALFORMED_OPTION = 6
    NETWORK_FAILURE = 7
    NO_RESOURCES = 8
    UNSUPP_PROTOCOL = 9
    USER_EX_QUOTA = 10
    CANNOT_PROVIDE_EXTERNAL = 11
    ADDRESS_MISMATCH = 12


class Silence(Exception):
    """Not a request: it is passed over."""


class Problem(Exception):
    """A request that is answered with a result code; the text is for the log."""

    def __init__(self, result: Result, why: str) -> None:
        super().__init__(why)
        self.result = result


@dataclass(frozen=True, slots=True)
class AskMap:
    """Map a port (section 11); ``lifetime`` 0 (seconds) ends that.

    ``public`` is suggested, with host 0.0.0.0 and port 0 for any; who ``prefers_failure`` wants
    it or nothing. ``nonce`` (12 bytes) must be the same in all requests for one mapping.
    """

    nonce: bytes
    protocol: int
    inside: int
    public: Address
    lifetime: int
    prefers_failure: bool = False


@dataclass(frozen=True, slots=True)
class AskAnnouncement:
    """Tell the epoch (section 14.1)."""


Request = AskMap | AskAnnouncement


def parse(data: bytes, source: str) -> Request:
    """Read a request that came from the host ``source``. Raises Silence and Problem."""
    if len(data) < 2 or data[1] & _RESPONSE:
        raise Silence("no request of PCP")
    if data[0] != VERSION:
        raise Problem(Result.UNSUPP_VERSION, f"version {data[0]} of PCP")
    if len(data) < _REQUEST.size or len(data) > LONGEST or len(data) % 4:
        raise Problem(Result.MALFORMED_REQUEST, f"a request of {len(data)} bytes")
    _, opcode, _, lifetime, client = _REQUEST.unpack_from(data)
    if opcode not in (ANNOUNCE, MAP):
        raise Problem(Result.UNSUPP_OPCODE, f"opcode {opcode}")
    if _host(client) != source:
        raise Problem(Result.ADDRESS_MISMATCH, f"it calls itself {_host(client)}")
    if opcode == ANNOUNCE:
        list(_options(data[_REQUEST.size :], ()))
        return AskAnnouncement()
    return _map_of(data[_REQUEST.size :], lifetime)


def _map_of(body: bytes, lifetime: int) -> AskMap:
    if len(body) < _MAP.size:
        raise Problem(Result.MALFORMED_REQUEST, f"MAP with {len(body)} bytes of its own")
    nonce, protocol, inside, port, host = _MAP.unpack_from(body)
    if protocol == 0 and inside != 0:
        raise Problem(Result.MALFORMED_REQUEST, "a port of no protocol")
    options = list(_options(body[_MAP.size :], (_PREFER_FAILURE,)))
    if len(set(options)) != len(options):
        raise Problem(Result.MALFORMED_OPTION, "an option twice")
    return AskMap(nonce, protocol, inside, (_host(host), port), lifetime, bool(options))


def _options(data: bytes, known: tuple[int, ...]) -> Iterator[int]:
    """Yield the known options, which have no data; one that must be known and is not is a Problem.

    Their order is the request's; what follows half an option is no option.
    """
    while data:
        if len(data) < _OPTION.size:
            raise Problem(Result.MALFORMED_OPTION, "half an option")
        code, length = _OPTION.unpack_from(data)
        end = _OPTION.size + (length + 3) // 4 * 4
        if end > len(data):
            raise Problem(Result.MALFORMED_OPTION, f"option {code} is cut off")
        if code in known:
            if length:
                raise Problem(Result.MALFORMED_OPTION, f"option {code} with {length} bytes")
            yield code
        elif code < _OPTIONAL:
            raise Problem(Result.UNSUPP_OPTION, f"option {code}")
        data = data[end:]


def build(request: Request, source: str) -> bytes:
    """The request as a client at ``source`` sends it."""
    if isinstance(request, AskAnnouncement):
        return _REQUEST.pack(VERSION, ANNOUNCE, 0, 0, _packed(source))
    host, port = request.public
    head = _REQUEST.pack(VERSION, MAP, 0, request.lifetime, _packed(source))
    body = _MAP.pack(request.nonce, request.protocol, request.inside, port, _packed(host))
    return head + body + (_OPTION.pack(_PREFER_FAILURE, 0) if request.prefers_failure else b"")


def refusal(data: bytes, result: Result, lifetime: int, epoch: int) -> bytes:
    """Answer a request, whole or not, with its own bytes and a result code (section 8.2).

    ``lifetime`` is how many seconds the client should take this answer for true.
    """
    size = min(max(len(data) // 4 * 4, _REQUEST.size), LONGEST)
    body = data.ljust(size, b"\0")[_ANSWER.size : size]
    opcode = data[1] | _RESPONSE
    return _ANSWER.pack(VERSION, opcode, 0, result, lifetime, epoch) + body


def announced(epoch: int) -> bytes:
    """Answer AskAnnouncement."""
    return _ANSWER.pack(VERSION, _RESPONSE | ANNOUNCE, 0, Result.SUCCESS, 0, epoch)


def mapped(request: AskMap, public: Address, lifetime: int, epoch: int) -> bytes:
    """Answer AskMap; an option that was honoured stands in the answer, too."""
    head = _ANSWER.pack(VERSION, _RESPONSE | MAP, 0, Result.SUCCESS, lifetime, epoch)
    where = public[1], _packed(public[0])
    body = _MAP.pack(request.nonce, request.protocol, request.inside, *where)
    return head + body + (_OPTION.pack(_PREFER_FAILURE, 0) if request.prefers_failure else b"")


def answer(data: bytes) -> tuple[Result, int, int, Address | None]:
    """What a client reads in an answer: result, lifetime, epoch, and of MAP the public address.

    Raises Silence for what is no answer.
    """
    if len(data) < _ANSWER.size or data[0] != VERSION or not data[1] & _RESPONSE:
        raise Silence("no answer of PCP")
    _, opcode, _, result, lifetime, epoch = _ANSWER.unpack_from(data)
    try:
        code = Result(result)
    except ValueError:
        raise Silence(f"result {result}") from None
    if opcode & ~_RESPONSE != MAP or len(data) < _ANSWER.size + _MAP.size:
        return code, lifetime, epoch, None
    *_, port, host = _MAP.unpack_from(data, _ANSWER.size)
    return code, lifetime, epoch, (_host(host), port)


def _host(packed: bytes) -> str:
    """An IPv4 address as such, of the 16 bytes in which it is mapped; all zeros are any."""
    address = ipaddress.IPv6Address(packed)
    if not int(address):
        return "0.0.0.0"
    return str(address.ipv4_mapped or address)


def _packed(host: str) -> bytes:
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address):
        return address.packed
    return b"\0" * 10 + b"\xff\xff" + address.packed
