"""Whatever bytes come: wire gives a value or RemoteProtocolError, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gcbpatch.errors import RemoteProtocolError, Status
from gcbpatch.wire import auth
from gcbpatch.wire.auth import Key, Keyring
from gcbpatch.wire.codec import (
    HEADER,
    HEADER_SIZE,
    MAC_SIZE,
    MAX_BODY,
    Frame,
    Kind,
    frame_size,
    message_of,
    parse,
    status_of,
)
from gcbpatch.wire.messages import REPLIES, REQUESTS, Command, Message, Nothing
from gcbpatch.wire.session import FrameReader
from tests.fuzz.material import (
    DEEP,
    KEY,
    KEYRINGS,
    VALID,
    anything,
    fuzzed,
    headed,
    mutated,
    parsed,
)


@fuzzed
@given(anything)
def test_parse_gives_a_frame_or_refuses(data: bytes) -> None:
    parsed(data)


@fuzzed
@given(anything)
def test_the_size_of_a_frame_is_bounded_or_refused(data: bytes) -> None:
    try:
        assert HEADER_SIZE <= frame_size(data) <= HEADER_SIZE + MAX_BODY + MAC_SIZE
    except RemoteProtocolError:
        assert data[:3] != b"GB\x01" or len(data) < HEADER_SIZE or data[6] >= MAX_BODY >> 8


def read_message(frame: Frame) -> Message | None:
    try:
        message = message_of(frame)
    except RemoteProtocolError as error:
        known = frame.command in (REQUESTS if frame.kind is Kind.REQUEST else REPLIES)
        assert error.status is (Status.MALFORMED if known else Status.UNSUPPORTED)
        return None
    assert isinstance(message, Message)
    return message


@fuzzed
@given(headed())
@example(HEADER.pack(b"GB", 1, 1, 1, 0, len(DEEP[0]), 1, 0) + DEEP[0])
def test_a_body_is_a_message_of_its_command_or_refused(data: bytes) -> None:
    frame = parsed(data)
    assert frame is not None, "made to be whole"
    message = read_message(frame)
    if message is None or isinstance(message, Nothing):
        return
    assert type(message) is (REQUESTS if frame.kind is Kind.REQUEST else REPLIES)[
        Command(frame.command)
    ]


@fuzzed
@given(headed())
def test_a_message_that_was_taken_can_be_sent_and_is_taken_again(data: bytes) -> None:
    frame = parsed(data)
    assert frame is not None
    message = read_message(frame)
    if message is not None and frame.kind is Kind.REQUEST:
        again = parse(auth.sealed(None, frame.kind, frame.command, 1, message))
        assert message_of(again) == message


@fuzzed
@given(anything)
def test_a_status_is_known_or_refused(data: bytes) -> None:
    frame = parsed(data)
    if frame is not None:
        try:
            assert status_of(frame) == frame.status
        except RemoteProtocolError:
            assert frame.status not in list(Status)


@fuzzed
@given(anything, st.sampled_from(KEYRINGS))
def test_authentication_gives_a_key_or_refuses(data: bytes, keyring: Keyring) -> None:
    frame = parsed(data)
    if frame is None:
        return
    try:
        key = keyring.authenticate(frame)
    except RemoteProtocolError as error:
        assert error.status is Status.NOT_AUTHORIZED
        return
    assert (key is None) is not bool(keyring)
    assert key is None or key.verify(frame)


@fuzzed
@given(anything, st.sampled_from([None, KEY]))
def test_a_reply_is_believed_or_refused(data: bytes, key: Key | None) -> None:
    frame = parsed(data)
    if frame is None:
        return
    try:
        auth.check_reply(frame, key)
    except RemoteProtocolError as error:
        assert error.status is Status.NOT_AUTHORIZED
    else:
        assert key is None or key.verify(frame) or frame.status != Status.SUCCESS


@fuzzed
@given(mutated([data for data in VALID if parse(data).key_id]))
def test_whatever_was_changed_on_the_way_is_not_authenticated(data: bytes) -> None:
    frame = parsed(data)
    if frame is not None and data not in VALID:
        with pytest.raises(RemoteProtocolError):
            Keyring([KEY]).authenticate(frame)


@fuzzed
@given(st.lists(anything, max_size=4).map(b"".join), st.integers(1, 64))
def test_a_stream_gives_frames_until_it_is_refused(stream: bytes, step: int) -> None:
    reader, at, whole = FrameReader(), 0, b""
    while at < len(stream):
        assert 1 <= reader.wants <= HEADER_SIZE + MAX_BODY + MAC_SIZE
        piece = stream[at : at + min(step, reader.wants)]
        at += len(piece)
        try:
            frame = reader.feed(piece)
        except RemoteProtocolError:
            return
        whole += piece
        if frame is not None:
            assert parse(whole) == frame
            whole = b""
