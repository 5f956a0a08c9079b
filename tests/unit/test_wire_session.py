"""Frames on a byte stream: whole ones come out, and never an octet too many goes in."""

import pytest

from gcbpatch.errors import RemoteProtocolError, Status
from gcbpatch.wire.codec import HEADER, HEADER_SIZE, MAX_BODY, Frame, parse
from gcbpatch.wire.session import FrameReader
from tests.unit.vectors import FrameVector, frames

EXAMPLES = frames()


def read_all(stream: bytes, step: int) -> list[Frame]:
    """Read a stream by at most ``step`` octets, never more than are wanted."""
    reader, found, at = FrameReader(), [], 0
    while at < len(stream):
        assert reader.wants >= 1
        piece = stream[at : at + min(step, reader.wants)]
        at += len(piece)
        frame = reader.feed(piece)
        if frame is not None:
            assert reader.empty
            found.append(frame)
    assert reader.empty
    return found


@pytest.mark.parametrize("vector", EXAMPLES, ids=lambda vector: vector.name)
def test_octet_by_octet_the_frame_comes_with_its_last(vector: FrameVector) -> None:
    reader = FrameReader()
    for at in range(len(vector.data) - 1):
        assert reader.wants <= len(vector.data) - at
        assert reader.feed(vector.data[at : at + 1]) is None
        assert not reader.empty
    assert reader.wants == 1
    assert reader.feed(vector.data[-1:]) == parse(vector.data)
    assert reader.empty


@pytest.mark.parametrize("step", [1, 2, 7, 19, 20, 21, 1000])
def test_one_frame_follows_the_other(step: int) -> None:
    stream = b"".join(vector.data for vector in EXAMPLES)
    assert read_all(stream, step) == [parse(vector.data) for vector in EXAMPLES]


@pytest.mark.parametrize("vector", EXAMPLES, ids=lambda vector: vector.name)
def test_it_takes_what_it_wants_and_leaves_the_programs_bytes(vector: FrameVector) -> None:
    stream, reader, frame = vector.data + b"GBhello", FrameReader(), None
    while frame is None:
        piece, stream = stream[: reader.wants], stream[reader.wants :]
        frame = reader.feed(piece)
    assert stream == b"GBhello"


def test_it_wants_a_header_first_and_then_exactly_the_rest() -> None:
    data = next(vector.data for vector in EXAMPLES if vector.token)
    reader = FrameReader()
    assert reader.wants == HEADER_SIZE
    assert reader.feed(data[:HEADER_SIZE]) is None
    assert reader.wants == len(data) - HEADER_SIZE


def test_more_than_it_wants_is_our_own_fault_and_is_not_taken() -> None:
    reader = FrameReader()
    with pytest.raises(ValueError, match="21 bytes where 20"):
        reader.feed(bytes(HEADER_SIZE + 1))
    assert reader.empty and reader.wants == HEADER_SIZE


def test_nothing_given_is_nothing_read() -> None:
    reader = FrameReader()
    assert reader.feed(b"") is None
    assert reader.empty


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (HEADER.pack(b"XX", 1, 1, 1, 0, 0, 0, 0), Status.MALFORMED),
        (HEADER.pack(b"GB", 2, 1, 1, 0, 0, 0, 0), Status.UNSUPPORTED),
        (HEADER.pack(b"GB", 1, 1, 1, 0, MAX_BODY + 1, 0, 0), Status.MALFORMED),
    ],
)
def test_a_wrong_header_is_refused_before_its_body_is_awaited(
    header: bytes, status: Status
) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        FrameReader().feed(header)
    assert caught.value.status is status


def test_a_wrong_kind_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="kind 9"):
        FrameReader().feed(HEADER.pack(b"GB", 1, 9, 1, 0, 0, 0, 0))
