"""Netlink to the kernel's firewall: attributes, messages, dumps, and batches that are whole or not.

The kernel answers within send(): whatever is to be read is there when that returns, so nothing
here waits. It must never know what a message means; the rooms above name tables and addresses.
Layouts: <linux/netlink.h>, <linux/netfilter/nfnetlink.h>.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .port import KernelError

NETFILTER = 12
"""The protocol of netlink that the firewall speaks."""
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
CREATE = 0x400

_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("!BBH")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR, _DONE = 2, 3
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_BATCH_GENERATION = 1
_INTERRUPTED = 0x10
_CAPPED, _HAS_TEXT, _TEXT = 0x100, 0x200, 1
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_BUFFER = 1 << 17
"""Bytes that a socket takes anyway."""
_LONGEST = 1 << 16
"""What is read at a time; the kernel answers in pieces of 32 KiB at most."""
_LARGEST = 64 << 20
_TRIES = 10
_TYPE = 0x3FFF
"""The bits of an attribute's type; the others say "nested" and "in network order"."""


class Request(NamedTuple):
    """One message: ``kind`` is subsystem and command, ``body`` its attributes.

    ``words`` say what it is for, if it fails.
    """

    kind: int
    flags: int
    family: int
    body: bytes
    words: str


class Refusal(NamedTuple):
    """What the kernel has against one message: an errno, and what it says besides."""

    number: int
    text: str = ""

    def __str__(self) -> str:
        return os.strerror(self.number) + (f" ({self.text})" if self.text else "")


class NetlinkError(KernelError):
    """A request or a batch was refused and nothing of it done.

    ``refusals`` holds, by the number of the message, what was wrong with each.
    """

    def __init__(self, problem: str, refusals: dict[int, Refusal]) -> None:
        super().__init__(problem)
        self.refusals = refusals

    def is_only(self, number: int) -> bool:
        """Whether this errno is all that was wrong."""
        return all(refusal.number == number for refusal in self.refusals.values())


class GenerationPassedError(KernelError):
    """Somebody has changed the firewall since the generation that a batch was meant for."""


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded to 4 bytes."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def nest(kind: int, *parts: bytes) -> bytes:
    """Return an attribute that holds attributes."""
    return attribute(kind | 0x8000, b"".join(parts))


def text(kind: int, word: str) -> bytes:
    """Return an attribute with a name, ended by a zero byte."""
    return attribute(kind, word.encode() + b"\0")


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of each attribute. Raises ValueError if their sizes are wrong."""
    at = 0
    while at + 4 <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if not 4 <= size <= len(data) - at:
            raise ValueError(f"no netlink attribute: {size} bytes of {len(data) - at}")
        yield kind & _TYPE, data[at + 4 : at + size]
        at += (size + 3) & ~3


class Netlink:
    """A netlink socket. One request at a time; not to be shared by threads."""

    def __init__(self) -> None:
        """Raises KernelError if this kernel has no such thing."""
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        except OSError as error:
            raise KernelError(f"netlink to the firewall: {error.strerror}") from error
        self._sequence = 0
        self._buffer = memoryview(bytearray(_LONGEST))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def ask(self, request: Request) -> list[bytes]:
        """Send one request; return the bodies of what is answered. Raises NetlinkError."""
        (sequence,) = self._send([request])
        return self._answers(request, sequence, ending=False)

    def dump(self, request: Request) -> list[bytes]:
        """Return everything of a kind, as of one moment. Raises NetlinkError.

        The kernel marks a dump that a change has cut in two; it is asked for again.
        """
        for _ in range(_TRIES):
            (sequence,) = self._send([request._replace(flags=request.flags | DUMP)])
            try:
                return self._answers(request, sequence, ending=True)
            except InterruptedError:
                continue
        raise KernelError(f"{request.words}: changed while it was read, {_TRIES} times")

    def batch(self, requests: Sequence[Request], generation: int | None = None) -> None:
        """Have all of it done at once, or nothing.

        With a ``generation``, only if the firewall is still of that one. Raises NetlinkError,
        whose refusals are by the position in ``requests``, and GenerationPassedError.
        """
        mark = b""
        if generation is not None:
            mark = attribute(_BATCH_GENERATION, generation.to_bytes(4, "big"))
        begin = Request(_BATCH_BEGIN, 0, 0, mark, "a batch")
        last = requests[-1]._replace(flags=requests[-1].flags | ACK)
        end = Request(_BATCH_END, 0, 0, b"", "the end of a batch")
        sequences = self._send([begin, *requests[:-1], last, end], resource=10)
        refusals = self._verdict(sequences[0], sequences[-2])
        if refusals.get(0) and refusals[0].number == errno.ERESTART:
            raise GenerationPassedError("the firewall was changed by another program")
        if refusals:
            raise _complaint(requests, {number - 1: one for number, one in refusals.items()})

    def _send(self, requests: Sequence[Request], resource: int = 0) -> range:
        """Send messages in one piece, and return their numbers."""
        first = self._sequence + 1
        self._sequence += len(requests)
        numbers = range(first, first + len(requests))
        data = b"".join(
            _message(one, number, resource if one.kind in (_BATCH_BEGIN, _BATCH_END) else 0)
            for number, one in zip(numbers, requests, strict=True)
        )
        self._make_room(len(data))
        try:
            self._socket.send(data)
        except OSError as error:
            raise NetlinkError(
                f"{requests[0].words}: {error.strerror}", {0: Refusal(error.errno or 0)}
            ) from error
        return numbers

    def _make_room(self, size: int) -> None:
        """A large batch needs a large buffer, and so do the complaints about it."""
        if size > _BUFFER:
            wanted = min(4 * size, _LARGEST)
            for option in (_SO_SNDBUFFORCE, _SO_RCVBUFFORCE):
                self._socket.setsockopt(socket.SOL_SOCKET, option, wanted)

    def _messages(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield type, flags, number and body of what has been answered."""
        while True:
            try:
                size = self._socket.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                raise KernelError(f"netlink to the firewall: {error.strerror}") from error
            yield from _parted(bytes(self._buffer[:size]))

    def _answers(self, request: Request, sequence: int, *, ending: bool) -> list[bytes]:
        found: list[bytes] = []
        interrupted, ended = False, False
        for kind, flags, number, body in self._messages():
            if number != sequence:
                continue
            interrupted |= bool(flags & _INTERRUPTED)
            if kind in (_ERROR, _DONE):
                ended = True
                refusal = _refusal(flags, body) if body[:4].strip(b"\0") else None
                if refusal is not None:
                    raise _complaint([request], {0: refusal})
            else:
                found.append(body[4:])
        if interrupted:
            raise InterruptedError
        if ending and not ended:
            raise KernelError(f"{request.words}: the answer has no end")
        return found

    def _verdict(self, first: int, last: int) -> dict[int, Refusal]:
        """Return what was refused of a batch, by the number of the message in it."""
        refusals: dict[int, Refusal] = {}
        answered = False
        for kind, flags, number, body in self._messages():
            if kind != _ERROR or not first <= number <= last + 1:
                continue
            answered = True
            refusal = _refusal(flags, body)
            if refusal.number:
                refusals[number - first] = refusal
        if not answered:
            raise KernelError("netlink: a batch was not answered")
        return refusals


def _parted(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, flags, number, _ = _HEADER.unpack_from(data, at)
        yield kind, flags, number, data[at + _HEADER.size : at + size]
        at += (max(size, _HEADER.size) + 3) & ~3


def _message(request: Request, number: int, resource: int) -> bytes:
    size = _HEADER.size + _GENERIC.size + len(request.body)
    header = _HEADER.pack(size, request.kind, request.flags | REQUEST, number, 0)
    return header + _GENERIC.pack(request.family, 0, resource) + request.body


def _refusal(flags: int, body: bytes) -> Refusal:
    """Read struct nlmsgerr and, where the kernel adds it, what it says in words."""
    number = -struct.unpack_from("=i", body)[0]
    if not flags & _HAS_TEXT or not flags & _CAPPED:
        return Refusal(number)
    rest = body[4 + _HEADER.size :]
    words = dict(attributes(rest)).get(_TEXT, b"")
    return Refusal(number, words.rstrip(b"\0").decode("utf-8", "replace"))


def _complaint(requests: Sequence[Request], refusals: dict[int, Refusal]) -> NetlinkError:
    """Name the first message that was refused, and how many were."""
    index = min(refusals)
    words = requests[index].words if 0 <= index < len(requests) else "a batch"
    more = f", and {len(refusals) - 1} more" if len(refusals) > 1 else ""
    return NetlinkError(f"nftables, {words}: {refusals[index]}{more}", refusals)
