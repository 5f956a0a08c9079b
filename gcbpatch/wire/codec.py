"""Frames: one layout for datagrams and for streams, and the way between bytes and messages.

    offset size
    0      2    "GB"
    2      1    version, 1
    3      1    kind: 1 request, 2 reply
    4      1    command
    5      1    status (0 in requests)
    6      2    length of the body
    8      8    transaction id
    16     4    key id, 0 when the frame carries no MAC
    20     n    body, msgpack
    20+n   32   HMAC-SHA256 of all bytes before it, only when the key id is not 0

Numbers are big-endian. This room must never raise anything but RemoteProtocolError for
what came from the network, and must never decode a body that somebody else has to
authenticate first: parse() looks at the header, message_of() at the body.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

import msgspec

from ..errors import LocalProtocolError, RemoteProtocolError, Status
from .messages import REPLIES, REQUESTS, Command, Message, Nothing

MAGIC = b"GB"
VERSION = 1
HEADER = struct.Struct(">2sBBBBHQI")
HEADER_SIZE = HEADER.size
MAC_SIZE = 32
MAX_BODY = 4096
MAX_DATAGRAM = 1232
"""IPv6's minimum MTU less headers: no control datagram is ever fragmented (RFC 8200)."""


class Kind(enum.IntEnum):
    """Byte 3 of the header."""

    REQUEST = 1
    REPLY = 2


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame with its header read and its body still closed.

    ``command`` and ``status`` are plain numbers: an unknown one must still be answerable.
    """

    kind: Kind
    command: int
    status: int
    transaction: int
    key_id: int
    body: bytes
    signed: bytes
    mac: bytes

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return len(self.signed) + len(self.mac)


_ENCODER = msgspec.msgpack.Encoder()
_DECODERS = {
    Kind.REQUEST: {c: msgspec.msgpack.Decoder(t) for c, t in REQUESTS.items()},
    Kind.REPLY: {c: msgspec.msgpack.Decoder(t) for c, t in REPLIES.items()},
}
_BARE = frozenset(c for c, t in REPLIES.items() if t is Nothing) | {Command.JOIN}


def frame_size(header: bytes) -> int:
    """Return how many bytes the frame has that starts with ``header`` (20 bytes, at least).

    Raises RemoteProtocolError when this is no frame of ours or a larger one than allowed.
    """
    if len(header) < HEADER_SIZE:
        raise RemoteProtocolError(Status.MALFORMED, f"{len(header)} bytes are no whole header")
    magic, version, _, _, _, length, _, key_id = HEADER.unpack_from(header)
    if magic != MAGIC:
        raise RemoteProtocolError(Status.MALFORMED, "not a gcbpatch frame")
    if version != VERSION:
        raise RemoteProtocolError(
            Status.UNSUPPORTED, f"version {version} is not spoken here; {VERSION} is"
        )
    if length > MAX_BODY:
        raise RemoteProtocolError(
            Status.MALFORMED, f"a body of {length} bytes; at most {MAX_BODY} are allowed"
        )
    return HEADER_SIZE + int(length) + (MAC_SIZE if key_id else 0)


def parse(data: bytes) -> Frame:
    """Read one whole frame; the body stays closed. Raises RemoteProtocolError."""
    size = frame_size(data)
    if len(data) != size:
        raise RemoteProtocolError(
            Status.MALFORMED, f"{len(data)} bytes where the header says {size}"
        )
    _, _, kind, command, status, length, transaction, key_id = HEADER.unpack_from(data)
    if kind not in (Kind.REQUEST, Kind.REPLY):
        raise RemoteProtocolError(Status.MALFORMED, f"kind {kind} is neither request nor reply")
    end = HEADER_SIZE + length
    return Frame(
        kind=Kind(kind),
        command=command,
        status=status,
        transaction=transaction,
        key_id=key_id,
        body=bytes(data[HEADER_SIZE:end]),
        signed=bytes(data[:end]),
        mac=bytes(data[end:]),
    )


def message_of(frame: Frame) -> Message:
    """Decode the body of ``frame``.

    Raises RemoteProtocolError: UNSUPPORTED for a command that is not known, MALFORMED for
    a body that does not fit its command. A reply with a status other than SUCCESS has no
    body, and one that says Nothing may leave it empty.
    """
    if frame.kind is Kind.REPLY and frame.status != Status.SUCCESS:
        return Nothing()
    if not frame.body and frame.kind is Kind.REPLY and frame.command in _BARE:
        return Nothing()
    decoder = _DECODERS[frame.kind].get(frame.command)  # type: ignore[call-overload]
    if decoder is None:
        raise RemoteProtocolError(
            Status.UNSUPPORTED, f"command {frame.command} is not known in this direction"
        )
    try:
        message: Message = decoder.decode(frame.body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(
            Status.MALFORMED, f"{Command(frame.command).name}: {error}"
        ) from error
    return message


def status_of(frame: Frame) -> Status:
    """Return the status of a reply; raises RemoteProtocolError for a number not known."""
    try:
        return Status(frame.status)
    except ValueError as error:
        raise RemoteProtocolError(
            Status.MALFORMED, f"status {frame.status} is not known"
        ) from error


def build(
    kind: Kind,
    command: int,
    transaction: int,
    message: Message | None = None,
    status: int = Status.SUCCESS,
    key_id: int = 0,
) -> bytes:
    """Return a frame without its MAC; ``auth.Key.seal`` adds that.

    Raises LocalProtocolError for a body over MAX_BODY bytes.
    """
    body = b"" if message is None else _ENCODER.encode(message)
    if len(body) > MAX_BODY:
        raise LocalProtocolError(f"a body of {len(body)} bytes; at most {MAX_BODY} are allowed")
    header = HEADER.pack(
        MAGIC, VERSION, kind, command, status, len(body), transaction, key_id
    )
    return header + body
