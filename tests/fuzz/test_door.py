"""Whatever comes through the door, a queue or netlink: a value or the error that is named."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gcbpatch.agent import door, sockdiag
from gcbpatch.wire.messages import Endpoint
from tests.fuzz.material import DEEP, HUGE, cut_or_joined, fuzzed, mutated

ENDPOINT = Endpoint("192.0.2.7", 40000)
QUESTIONS: list[door.DoorMessage] = [
    door.Attach(1),
    door.Listen(bytes(16), 1, ENDPOINT, 9618, True, 5, ENDPOINT, bytes(16)),
    door.Ready(bytes(16), 1, 128),
    door.Adopt(2**63),
    door.Find(bytes(16)),
    door.Dial(ENDPOINT),
    door.AskWorld(),
    door.Bind(bytes(16), 1, ENDPOINT, 9618),
    door.Hold(bytes(16), bytes(8)),
    door.Vacate(),
]
ANSWERS: list[door.DoorMessage] = [
    door.Listening(ENDPOINT, bytes(16), "gcb", 0, ""),
    door.Dialled("relayed", 0, "", ENDPOINT, 1.0),
    door.World(["198.51.100.1"], ["203.0.113.1"]),
    door.Bound(ENDPOINT, ENDPOINT, ["198.51.100.1"], "gcb", 0, ""),
]


def encoded(messages: list[door.DoorMessage]) -> list[bytes]:
    """What these are on the way."""
    out = []
    for message in messages:
        with _pair() as (ours, theirs):
            door.send(theirs, message)
            out.append(ours.recv(door.MAX_MESSAGE))
    return out


@contextmanager
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


SAID = encoded([*QUESTIONS, *ANSWERS])
ARRIVED = b"\x92\xcd\x9c\x40\x92\xa9192.0.2.7\x01"

# Behind the fields of a message, in what a later version might have appended.
LONG_TAIL = b"\x9f" + SAID[4][1:] + DEEP[0]


def door_bytes(whole: list[bytes]) -> st.SearchStrategy[bytes]:
    """What might come through a door instead of ``whole``."""
    longer = mutated(whole).flatmap(
        lambda data: st.sampled_from([*HUGE, *DEEP]).map(lambda bomb: data + bomb)
    )
    grown = st.sampled_from(whole).flatmap(
        lambda data: st.sampled_from([*HUGE, *DEEP]).map(lambda bomb: b"\x9f" + data[1:] + bomb)
    )
    return st.one_of(
        st.binary(min_size=1, max_size=100), mutated(whole), cut_or_joined(whole), longer, grown
    ).filter(bool)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("side", ["question", "answer"])
def test_a_door_gives_a_message_or_says_that_it_is_none(side: str) -> None:
    receive = door.receive_question if side == "question" else door.receive_answer

    @fuzzed
    @given(door_bytes(SAID))
    @example(LONG_TAIL)
    def knock(data: bytes) -> None:
        with _pair() as (ours, theirs):
            before = open_descriptors()
            socket.send_fds(theirs, [data], [theirs.fileno()])
            try:
                message, fds = receive(ours)
            except door.DoorError:
                message, fds = None, []
            assert message is None or isinstance(message, door.DoorMessage)
            door.close_all(fds)
            assert open_descriptors() == before

    knock()


@fuzzed
@given(door_bytes([ARRIVED]))
@example(b"\xc1")
def test_a_queue_gives_an_arrival_or_says_that_it_is_none(data: bytes) -> None:
    with _pair() as (ours, theirs):
        before = open_descriptors()
        socket.send_fds(theirs, [data], [theirs.fileno()])
        try:
            popped = door.pop(ours)
        except door.DoorError:
            popped = None
        if popped is not None:
            assert isinstance(popped[1], door.Arrival)
            os.close(popped[0])
        assert open_descriptors() == before, "the descriptor that came along stayed open"


def test_the_doors_examples_are_messages_of_it() -> None:
    """Or what was changed in them would not have been close to anything."""
    for data, message in zip(SAID, [*QUESTIONS, *ANSWERS], strict=True):
        receive = door.receive_question if message in QUESTIONS else door.receive_answer
        with _pair() as (ours, theirs):
            theirs.send(data)
            assert receive(ours) == (message, [])
    with _pair() as (ours, theirs):
        socket.send_fds(theirs, [ARRIVED], [theirs.fileno()])
        popped = door.pop(ours)
        assert popped is not None and popped[1] == door.Arrival(40000, Endpoint("192.0.2.7", 1))
        os.close(popped[0])


@st.composite
def netlink(draw: st.DrawFn) -> bytes:
    """Messages with a right header over anything, of any length and kind."""
    out = b""
    for _ in range(draw(st.integers(0, 4))):
        body = draw(st.binary(max_size=100))
        length = draw(st.one_of(st.just(16 + len(body)), st.integers(0, 2**32 - 1)))
        kind = draw(st.sampled_from([20, 20, 2, 3, 0]))
        message = length.to_bytes(4, "little") + kind.to_bytes(2, "little") + bytes(10) + body
        out += message + bytes(-len(message) % 4)
    return out


@fuzzed
@given(st.one_of(st.binary(max_size=300), netlink()))
@example(b"")
@example(b"\0" * 16)
@example((68).to_bytes(4, "little") + b"\x14\0" + bytes(62))
def test_ends_of_sockets_are_read_without_raising(data: bytes) -> None:
    cookies = list(sockdiag.ended(data))
    assert len(cookies) <= len(data) // 68
    assert all(0 <= cookie < 2**64 for cookie in cookies)
