"""The pool's messages: JSON objects, each behind four bytes of length in network order.

Nothing read here is trusted: a frame is bounded before it is read, and whatever is not the
message that was expected raises BadMessage, which says what is wrong.
"""

import json
import socket
import struct
from typing import Any, TypeVar

MAX_FRAME = 4 * 1024 * 1024
_LENGTH = struct.Struct("!I")

Message = dict[str, Any]
T = TypeVar("T")


class BadMessage(ValueError):
    """What the other side sent is not a message, or not the one expected here."""


class Refused(Exception):
    """The other side answered with an error; its words are the argument."""


def send(sock: socket.socket, message: Message) -> None:
    """Sends one message whole. Raises BadMessage if it is too large, OSError as sockets do."""
    body = json.dumps(message).encode()
    if len(body) > MAX_FRAME:
        raise BadMessage(f"a message of {len(body)} bytes; at most {MAX_FRAME} are allowed")
    sock.sendall(_LENGTH.pack(len(body)) + body)


def receive(sock: socket.socket) -> Message | None:
    """Returns the next message, or None where the other side ended between two messages."""
    head = _read(sock, _LENGTH.size)
    if not head:
        return None
    (length,) = _LENGTH.unpack(_whole(head, _LENGTH.size))
    if length > MAX_FRAME:
        raise BadMessage(f"a frame of {length} bytes; at most {MAX_FRAME} are allowed")
    return _decode(_whole(_read(sock, length), length))


def ask(sock: socket.socket, message: Message) -> Message:
    """Sends a message and returns the answer. Raises Refused where the answer is an error."""
    send(sock, message)
    return expect(receive(sock))


def expect(answer: Message | None) -> Message:
    """Returns the answer itself if it is one, neither an end of the stream nor an error."""
    if answer is None:
        raise ConnectionResetError("the other side closed the connection without an answer")
    if answer.get("type") == "error":
        raise Refused(str(answer.get("error")))
    return answer


def field(message: Message, name: str, kind: type[T]) -> T:
    """Returns a field of the message. Raises BadMessage if it is missing or of another type."""
    value = message.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BadMessage(f"{message.get('type')!r} needs {name!r} as {kind.__name__}")
    return value


def strings(message: Message, name: str) -> list[str]:
    """Returns a field that is a list of strings. Raises BadMessage if it is anything else."""
    values = field(message, name, list)
    if not all(isinstance(value, str) for value in values):
        raise BadMessage(f"{message.get('type')!r} needs {name!r} as a list of strings")
    return values


def parse_address(text: str) -> tuple[str, int]:
    """Splits HOST:PORT; an IPv6 host stands in brackets. Raises BadMessage."""
    host, colon, port = text.rpartition(":")
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    if not colon or not digits or int(port) > 65535:
        raise BadMessage(f"{text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def format_address(host: str, port: int) -> str:
    """Joins host and port as parse_address() takes them apart."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _read(sock: socket.socket, size: int) -> bytes:
    """Reads `size` bytes, or fewer where the stream ends before."""
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(min(size - len(data), 65536))
        if not chunk:
            break
        data += chunk
    return bytes(data)


def _whole(data: bytes, size: int) -> bytes:
    if len(data) < size:
        raise BadMessage(f"the stream ended after {len(data)} of {size} bytes")
    return data


def _decode(body: bytes) -> Message:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"a frame that is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise BadMessage(f"a JSON {type(message).__name__} where an object should be")
    return message
