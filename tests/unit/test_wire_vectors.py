"""The example frames of docs/protocol.md: the code builds and reads exactly these octets.

So that the document and not only the code is tested, MACs, derivations and bodies are also
worked out here by hand, from what the document says and nothing else.
"""

import hashlib
import hmac
import struct
from typing import Any

import pytest

from gcbpatch.errors import Status
from gcbpatch.wire import auth, datagrams
from gcbpatch.wire.auth import Key, Keyring
from gcbpatch.wire.codec import MAX_DATAGRAM, Kind, message_of, parse, status_of
from gcbpatch.wire.messages import REPLIES, REQUESTS, Command, Nothing
from tests.unit.vectors import FrameVector, blocks, frames, values

FRAMES = frames()
VALUES = values()
BY_NAME = {vector.name: vector for vector in FRAMES}

each_frame = pytest.mark.parametrize("vector", FRAMES, ids=lambda vector: vector.name)


@each_frame
def test_building_gives_these_octets(vector: FrameVector) -> None:
    built = auth.sealed(
        vector.key,
        vector.kind,
        vector.command,
        vector.transaction,
        vector.message(),
        vector.status,
    )
    assert built.hex(" ") == vector.data.hex(" ")


@each_frame
def test_reading_gives_these_fields(vector: FrameVector) -> None:
    frame = parse(vector.data)
    assert (frame.kind, frame.command) == (vector.kind, vector.command)
    assert (frame.transaction, status_of(frame)) == (vector.transaction, vector.status)
    assert frame.size == len(vector.data)
    assert message_of(frame) == (vector.message() or Nothing())


@each_frame
def test_fields_stand_in_the_order_of_the_wire(vector: FrameVector) -> None:
    if vector.body is not None:
        assert tuple(vector.body) == vector.message_type.__struct_fields__


@each_frame
def test_the_body_is_the_array_of_the_fields(vector: FrameVector) -> None:
    body = parse(vector.data).body
    if vector.body is None:
        assert body == b""
    else:
        assert read_msgpack(body) == (list(vector.body.values()), b"")


@each_frame
def test_only_the_right_token_opens_a_sealed_frame(vector: FrameVector) -> None:
    frame, key = parse(vector.data), vector.key
    assert (frame.key_id != 0) is (key is not None)
    if key is not None:
        assert Keyring([key]).authenticate(frame) is key
        assert not Key(b"another token").verify(frame)


@each_frame
def test_a_mac_is_what_the_document_says(vector: FrameVector) -> None:
    if vector.token is not None:
        key = hashlib.sha256(b"gcbpatch token" + vector.token).digest()
        assert vector.data[-32:] == hmac.digest(key, vector.data[:-32], "sha256")
        assert vector.data[16:20] == derived(key, b"key id")[:4]


@each_frame
def test_every_frame_fits_into_a_datagram(vector: FrameVector) -> None:
    assert len(vector.data) <= MAX_DATAGRAM


def test_no_request_and_no_reply_lacks_an_example() -> None:
    shown = {(vector.kind, vector.command) for vector in FRAMES if vector.status == Status.SUCCESS}
    requests = {(Kind.REQUEST, command) for command in REQUESTS}
    assert shown == requests | {(Kind.REPLY, command) for command in REPLIES}
    assert set(REQUESTS) == set(Command)


def test_the_only_commands_without_a_reply_are_those_of_agents() -> None:
    assert set(REQUESTS) - set(REPLIES) == {Command.CONFIRM, Command.GO, Command.PUNCH}


def test_names_are_given_once() -> None:
    assert len(BY_NAME) == len(FRAMES)


def test_hello_is_larger_than_its_answer() -> None:
    assert len(BY_NAME["HELLO request"].data) > len(BY_NAME["HELLO reply"].data)


# --- derived values


def derived(key: bytes, *parts: bytes) -> bytes:
    joined = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    return hmac.digest(key, joined, hashlib.sha256)


def test_the_key_id() -> None:
    block = VALUES["key id"]
    assert Key(block.given["token"].encode()).key_id == int.from_bytes(block.data, "big")


def test_the_cookie() -> None:
    block = VALUES["cookie"]
    secret, (host, port), now = block.given.values()
    assert auth.cookie(secret, (host, port), now) == block.data
    text = f"{host}|{port}|{now // 60}".encode()
    assert derived(secret, b"cookie", text)[:8] == block.data


def test_the_claim() -> None:
    block = VALUES["claim"]
    secret, client, protocol, (host, port) = block.given.values()
    assert auth.claim(secret, client, protocol, (host, port)) == block.data
    text = f"{protocol}|{host}|{port}".encode()
    assert derived(secret, b"claim", client, text)[:16] == block.data


def test_the_tag_and_what_stands_before_a_payload_past_the_relay() -> None:
    tag, header = VALUES["tag"], VALUES["header past the relay"]
    listener, (host, port) = tag.given.values()
    named = struct.pack(">BBH4B", 0xD4, 0, port, *map(int, host.split(".")))
    assert datagrams.tag(listener, datagrams.whole((host, port))) == tag.data
    assert hashlib.blake2b(named, digest_size=8, key=listener).digest() == tag.data
    assert header.data == b"\xd5" + named[1:] + tag.data
    assert datagrams.direct(named, tag.data) == header.data
    assert datagrams.undirected(listener, header.data) == named
    assert datagrams.undirected(listener, header.data[:-1] + b"?") is None


@pytest.mark.parametrize("name", [name for name in VALUES if name.startswith("proof")])
def test_a_proof(name: str) -> None:
    block = VALUES[name]
    secret, label, *what = block.given.values()
    assert auth.proof(secret, label, *what) == block.data
    assert derived(secret, label.encode(), *what)[:16] == block.data


def test_every_value_is_used_by_a_test() -> None:
    others = {name for name in VALUES if not name.startswith("proof")}
    assert others == {"key id", "cookie", "claim", "tag", "header past the relay"}
    assert len(VALUES) - len(others) == 13


@pytest.mark.parametrize(
    ("frame", "value"),
    [
        ("JOIN request", "proof of a joining listener"),
        ("OPEN request", "proof of who opens"),
        ("OPEN request of who was called", "proof of who was called and opens"),
        ("OPEN reply", "proof of who is opened"),
        ("CONFIRM request", "proof of who confirms"),
        ("PUNCH request", "proof of a punching connector"),
        ("PROVE reply", "proof of a management socket"),
        ("WAY request", "proof of who asks for a way"),
        ("WAY reply", "proof of who is asked for a way"),
    ],
)
def test_the_example_frames_hold_the_example_proofs(frame: str, value: str) -> None:
    body = BY_NAME[frame].body
    assert body is not None and body["proof"] == VALUES[value].data


def test_the_example_frames_hold_the_example_cookie_and_claim() -> None:
    hello, again = BY_NAME["HELLO reply"].body, BY_NAME["REGISTER reply"].body
    assert hello is not None and hello["cookie"] == VALUES["cookie"].data
    assert again is not None and again["claim"] == VALUES["claim"].data


# --- the reader of the document


def test_a_block_whose_octets_do_not_stand_last_is_refused() -> None:
    with pytest.raises(ValueError, match="HELLO request: its octets"):
        blocks('```frame HELLO request\n47 42\n{"body": null}\n```\n')


def test_text_that_starts_with_0x_is_bytes() -> None:
    (block,) = blocks('```value x\n{"a": ["0x00ff", "0", {"b": "0x"}]}\n01\n02 03\n```\n')
    assert block.given == {"a": [b"\x00\xff", "0", {"b": b""}]}
    assert block.data == b"\x01\x02\x03"


def read_msgpack(data: bytes) -> tuple[Any, bytes]:
    """Read the forms that senders use; return the value and what is left behind it."""
    first, rest = data[0], data[1:]
    if first < 0x80:
        return first, rest
    if 0x90 <= first <= 0x9F:
        return _read_array(first & 0x0F, rest)
    if 0xA0 <= first <= 0xBF:
        return rest[: first & 0x1F].decode(), rest[first & 0x1F :]
    if first == 0xC4:
        return rest[1 : 1 + rest[0]], rest[1 + rest[0] :]
    if first == 0xD9:
        return rest[1 : 1 + rest[0]].decode(), rest[1 + rest[0] :]
    if first in (0xCC, 0xCD):
        size = 1 if first == 0xCC else 2
        return int.from_bytes(rest[:size], "big"), rest[size:]
    return {0xC0: None, 0xC2: False, 0xC3: True}[first], rest


def _read_array(count: int, rest: bytes) -> tuple[list[Any], bytes]:
    items = []
    for _ in range(count):
        item, rest = read_msgpack(rest)
        items.append(item)
    return items, rest
