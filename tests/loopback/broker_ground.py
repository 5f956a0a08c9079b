"""What the tests of a real brokerd on loopback share: brokers with and without tokens, refusals."""

from __future__ import annotations

import socket
import time

import pytest

from gcbpatch.addresses import Address
from gcbpatch.errors import Status
from gcbpatch.wire.auth import Key
from gcbpatch.wire.codec import message_of, parse
from gcbpatch.wire.messages import ConnectReply

from .broker_client import HANG_S, Broker, Client, Refused

LISTENER = b"listener number1"
OTHER = b"listener number2"
TOKENS = "alice alices-token\nbob bobs-token-2\n"
ALICE, BOB = Key(b"alices-token", "alice"), Key(b"bobs-token-2", "bob")


def greeted(broker: Broker, key: Key | None = None, client: bytes = b"") -> Client:
    made = Client(broker.address, key, client)
    made.hello()
    return made


def udp_to(broker: Address) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(broker)
    sock.settimeout(HANG_S)
    return sock


def parse_connect(answer: bytes) -> bytes:
    """Return the name of the rendezvous in an answer to CONNECT."""
    message = message_of(parse(answer))
    assert isinstance(message, ConnectReply)
    return message.rendezvous


def refusal(function: object, *args: object, **named: object) -> Status:
    """Call something that must be refused, return with what."""
    with pytest.raises(Refused) as refused:
        function(*args, **named)  # type: ignore[operator]
    return refused.value.status


def is_closed(sock: socket.socket) -> bool:
    """Wait for the other end to close; with something unread that is a reset."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def wait_until(true: object) -> None:
    """Ask until the answer is yes."""
    until = time.monotonic() + HANG_S
    while not true():  # type: ignore[operator]
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.05)
