"""NAT-PMP (RFC 6886) as bytes: what clients ask on port 5351, and what they are answered. Pure.

It must never raise anything but Silence for what arrives: that is not answered at all.
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from dataclasses import dataclass

VERSION = 0
PORT = 5351
_ADDRESS, _UDP, _TCP = 0, 1, 2
_PROTOCOLS = {_UDP: 17, _TCP: 6}
_OPCODES = {number: opcode for opcode, number in _PROTOCOLS.items()}
_RESPONSE = 128
_REQUEST = struct.Struct("!BBHHHI")
_HEAD = struct.Struct("!BBHI")
_MAPPED = struct.Struct("!HHI")


class Result(enum.IntEnum):
    """Section 3.5."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5


class Silence(Exception):
    """Not a request, or not a whole one: it is passed over."""


@dataclass(frozen=True, slots=True)
class AskAddress:
    """What is the gateway's public address?"""


@dataclass(frozen=True, slots=True)
class AskMapping:
    """Map a port; ``lifetime`` 0 (seconds) ends that. ``public`` is wished for, 0 for any.

    With ``inside`` 0 as well all mappings of the protocol are meant. ``protocol`` is IANA's.
    """

    protocol: int
    inside: int
    public: int
    lifetime: int


@dataclass(frozen=True, slots=True)
class AskSomething:
    """An opcode that is not known here."""

    opcode: int


Request = AskAddress | AskMapping | AskSomething


def parse(data: bytes) -> Request:
    """Read a request of version 0. Raises Silence."""
    if len(data) < 2 or data[0] != VERSION or data[1] >= _RESPONSE:
        raise Silence("no request of NAT-PMP")
    opcode = data[1]
    if opcode == _ADDRESS:
        return AskAddress()
    if opcode not in _PROTOCOLS:
        return AskSomething(opcode)
    if len(data) < _REQUEST.size:
        raise Silence("half a request")
    *_, inside, public, lifetime = _REQUEST.unpack_from(data)
    return AskMapping(_PROTOCOLS[opcode], inside, public, lifetime)


def build(request: Request) -> bytes:
    """The request as a client sends it."""
    if isinstance(request, AskMapping):
        opcode, ports = _OPCODES[request.protocol], (request.inside, request.public)
        return _REQUEST.pack(VERSION, opcode, 0, *ports, request.lifetime)
    return bytes((VERSION, request.opcode if isinstance(request, AskSomething) else _ADDRESS))


def refusal(request: Request, result: Result, epoch: int) -> bytes:
    """Answer with something else than success; ``epoch`` in seconds."""
    if isinstance(request, AskMapping):
        return mapped(request, 0, 0, epoch, result)
    if isinstance(request, AskAddress):
        return address("0.0.0.0", epoch, result)
    return _HEAD.pack(VERSION, _RESPONSE + request.opcode, result, epoch)


def address(host: str, epoch: int, result: Result = Result.SUCCESS) -> bytes:
    """Answer AskAddress."""
    head = _HEAD.pack(VERSION, _RESPONSE, result, epoch)
    return head + ipaddress.IPv4Address(host).packed


def mapped(
    request: AskMapping, public: int, lifetime: int, epoch: int, result: Result = Result.SUCCESS
) -> bytes:
    """Answer AskMapping; after the end of a mapping ``public`` and ``lifetime`` are 0."""
    head = _HEAD.pack(VERSION, _RESPONSE + _OPCODES[request.protocol], result, epoch)
    return head + _MAPPED.pack(request.inside, public, lifetime)
