"""Frames: what is refused, and with which status, before a body is ever looked at."""

import pytest

from gcbpatch.errors import LocalProtocolError, RemoteProtocolError, Status
from gcbpatch.wire.auth import Key
from gcbpatch.wire.codec import (
    HEADER,
    HEADER_SIZE,
    MAC_SIZE,
    MAX_BODY,
    Frame,
    Kind,
    build,
    frame_size,
    message_of,
    parse,
    status_of,
)
from gcbpatch.wire.messages import Command, Go, Hello, Nothing, Session

CLIENT = bytes(range(16))
RENDEZVOUS = bytes(range(8))
KEY = Key(b"correct horse battery")
PLAIN = build(Kind.REQUEST, Command.HELLO, 7, Hello(CLIENT))
SEALED = KEY.seal(build(Kind.REQUEST, Command.HELLO, 7, Hello(CLIENT), key_id=KEY.key_id))


def header(
    magic: bytes = b"GB",
    version: int = 1,
    kind: int = 1,
    command: int = 1,
    status: int = 0,
    length: int = 0,
    transaction: int = 7,
    key_id: int = 0,
) -> bytes:
    return HEADER.pack(magic, version, kind, command, status, length, transaction, key_id)


def refusal(data: bytes) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        parse(data)
    return caught.value


def test_a_header_has_twenty_octets_in_network_order() -> None:
    data = build(Kind.REPLY, 0x21, 0x0102030405060708, status=0x07, key_id=0x0A0B0C0D)
    assert data == bytes.fromhex("4742 01 02 21 07 0000 0102030405060708 0a0b0c0d")
    assert len(data) == HEADER_SIZE


def test_what_was_built_is_read_back() -> None:
    frame = parse(SEALED)
    assert (frame.kind, frame.command, frame.status) == (Kind.REQUEST, Command.HELLO, 0)
    assert (frame.transaction, frame.key_id) == (7, KEY.key_id)
    assert frame.signed + frame.mac == SEALED
    assert len(frame.mac) == MAC_SIZE
    assert frame.size == len(SEALED)
    assert message_of(frame) == Hello(CLIENT)


@pytest.mark.parametrize("data", [PLAIN, SEALED], ids=["plain", "sealed"])
def test_a_frame_cut_at_any_length_is_malformed(data: bytes) -> None:
    for size in range(len(data)):
        assert refusal(data[:size]).status is Status.MALFORMED, size


@pytest.mark.parametrize("data", [PLAIN, SEALED], ids=["plain", "sealed"])
def test_octets_behind_a_frame_are_malformed(data: bytes) -> None:
    for more in (b"\0", data):
        error = refusal(data + more)
        assert error.status is Status.MALFORMED
        assert str(len(data) + len(more)) in str(error) and str(len(data)) in str(error)


@pytest.mark.parametrize("magic", [b"GC", b"BG", b"gb", b"\0\0", b"HT"])
def test_another_magic_is_not_ours(magic: bytes) -> None:
    assert refusal(header(magic=magic)).status is Status.MALFORMED


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_unsupported_and_the_text_says_which_is_right(version: int) -> None:
    error = refusal(header(version=version))
    assert error.status is Status.UNSUPPORTED
    assert f"version {version}" in str(error) and "1 is" in str(error)


@pytest.mark.parametrize("kind", [0, 3, 255])
def test_another_kind_is_malformed(kind: int) -> None:
    error = refusal(header(kind=kind))
    assert error.status is Status.MALFORMED
    assert f"kind {kind}" in str(error)


def test_the_largest_body_is_taken_and_one_octet_more_is_not() -> None:
    assert parse(header(length=MAX_BODY) + bytes(MAX_BODY)).body == bytes(MAX_BODY)
    error = refusal(header(length=MAX_BODY + 1) + bytes(MAX_BODY + 1))
    assert error.status is Status.MALFORMED
    assert str(MAX_BODY + 1) in str(error) and str(MAX_BODY) in str(error)


def test_too_large_a_body_is_refused_by_the_header_alone() -> None:
    with pytest.raises(RemoteProtocolError, match="65535"):
        frame_size(header(length=65535))


def test_the_size_of_a_frame_counts_its_mac() -> None:
    assert frame_size(header(length=5)) == HEADER_SIZE + 5
    assert frame_size(header(length=5, key_id=1)) == HEADER_SIZE + 5 + MAC_SIZE


def test_more_than_the_header_may_be_given_for_the_size() -> None:
    assert frame_size(SEALED) == len(SEALED)


def test_an_unknown_command_has_a_frame_so_that_it_can_be_answered() -> None:
    frame = parse(header(command=200))
    assert frame.command == 200
    with pytest.raises(RemoteProtocolError, match="command 200") as caught:
        message_of(frame)
    assert caught.value.status is Status.UNSUPPORTED


def test_go_has_no_reply() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        message_of(parse(build(Kind.REPLY, Command.GO, 0, Go(RENDEZVOUS))))
    assert caught.value.status is Status.UNSUPPORTED


def test_a_body_that_is_no_msgpack_is_malformed_and_the_command_is_named() -> None:
    with pytest.raises(RemoteProtocolError, match="HELLO") as caught:
        message_of(parse(header(length=1) + b"\xc1"))
    assert caught.value.status is Status.MALFORMED


def test_a_tail_that_goes_deeper_than_the_interpreter_can_is_malformed() -> None:
    fields = parse(PLAIN).body[1:]
    body = b"\x9f" + fields + b"\x91" * (MAX_BODY - 1 - len(fields))
    with pytest.raises(RemoteProtocolError) as caught:
        message_of(parse(header(length=len(body)) + body))
    assert caught.value.status is Status.MALFORMED


def test_octets_behind_the_array_are_malformed() -> None:
    body = parse(PLAIN).body + b"\xc0"
    with pytest.raises(RemoteProtocolError) as caught:
        message_of(parse(header(length=len(body)) + body))
    assert caught.value.status is Status.MALFORMED


def test_a_request_without_a_body_is_malformed() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        message_of(parse(header(command=Command.SESSION)))
    assert caught.value.status is Status.MALFORMED


def test_a_reply_that_says_nothing_may_have_no_body() -> None:
    for command in (Command.UNREGISTER, Command.CALL, Command.JOIN, Command.UNFORWARD):
        assert message_of(parse(build(Kind.REPLY, command, 1))) == Nothing()


def test_a_reply_that_should_say_something_may_not() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        message_of(parse(build(Kind.REPLY, Command.HELLO, 1)))
    assert caught.value.status is Status.MALFORMED


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.SUCCESS])
def test_the_body_of_a_refusal_is_not_looked_at(status: Status) -> None:
    frame = parse(header(kind=2, status=status, length=3) + b"\xc1\xc1\xc1")
    assert message_of(frame) == Nothing()
    assert status_of(frame) is status


@pytest.mark.parametrize("status", [len(Status), 255])
def test_a_status_that_is_not_known_is_malformed(status: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"status {status}") as caught:
        status_of(parse(header(kind=2, status=status)))
    assert caught.value.status is Status.MALFORMED


def test_the_status_of_a_request_is_not_looked_at() -> None:
    body = parse(PLAIN).body
    assert message_of(parse(header(status=9, length=len(body)) + body)) == Hello(CLIENT)


def test_a_body_that_is_too_large_to_be_sent_is_our_own_fault() -> None:
    with pytest.raises(LocalProtocolError, match=str(MAX_BODY)):
        build(Kind.REQUEST, Command.HELLO, 1, Hello(CLIENT, bytes(MAX_BODY)))


def test_a_frame_owns_its_octets() -> None:
    data = bytearray(SEALED)
    frame = parse(bytes(data))
    data[:] = bytes(len(data))
    assert frame.signed + frame.mac == SEALED


def test_frames_are_equal_if_all_their_octets_are() -> None:
    one, other = build(Kind.REQUEST, 16, 0, Session(CLIENT)), build(
        Kind.REQUEST, 16, 1, Session(CLIENT)
    )
    assert parse(one) == parse(one) != parse(other)
    assert isinstance(parse(one), Frame)
