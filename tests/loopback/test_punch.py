"""What is at a punched address is spoken to only if it proves the secret, over both nonces."""

from __future__ import annotations

import asyncio
import socket

import pytest

from gcbpatch.agent import streams
from gcbpatch.agent.meeting import Meeting
from gcbpatch.agent.punch import LEAST_SECONDS, TRIES, Hole
from gcbpatch.errors import RemoteProtocolError
from gcbpatch.wire.messages import Command, Endpoint, JoinReply, Punch

HANG_S = 20.0
MEETING = Meeting(b"a meetin", b"its shared secre", False, ())
THEIRS = b"nonce of theirs."


async def _punch(said_over: str) -> tuple[bytes, bool]:
    """Punch towards somebody who is there and says PUNCH; return what comes to us of his bytes."""
    loop = asyncio.get_running_loop()
    other = socket.create_server(("127.0.0.1", 0))
    other.setblocking(False)
    hole = Hole()
    nonces = {
        "both nonces": (hole.nonce, THEIRS),
        "a recorded nonce": (bytes(16), THEIRS),
        "no nonces": (),
    }.get(said_over, (hole.nonce, THEIRS))
    label = "punch connector" if said_over == "our own words" else "punch listener"
    with streams.shared(("127.0.0.1", 0)) as bound, other:
        source = bound.getsockname()[:2]
        reply = JoinReply(Endpoint.of(other.getsockname()), THEIRS, 0, 1)
        hole.introduce(reply, source)
        punching = asyncio.ensure_future(hole.punch(MEETING))
        sock, peer = await loop.sock_accept(other)
        with sock:
            assert peer == source
            await streams.say(sock, Command.PUNCH, Punch(MEETING.proof(label, *nonces)))
            first = await streams.read_message(sock, Command.PUNCH)
            proves = isinstance(first, Punch) and MEETING.proves(
                "punch connector", first.proof, hole.nonce, THEIRS
            )
            await loop.sock_sendall(sock, b"bytes")
            with await punching as punched:
                return await loop.sock_recv(punched, 10), proves


async def _limited(said_over: str) -> tuple[bytes, bool]:
    async with asyncio.timeout(HANG_S):
        return await _punch(said_over)


def test_who_proves_the_secret_is_who_was_meant() -> None:
    assert asyncio.run(_limited("both nonces")) == (b"bytes", True)


@pytest.mark.parametrize("said_over", ["a recorded nonce", "no nonces", "our own words"])
def test_a_stranger_at_the_punched_address_gets_nothing(said_over: str) -> None:
    with pytest.raises(RemoteProtocolError, match="stranger"):
        asyncio.run(_limited(said_over))


async def _foretold(early: JoinReply, late: JoinReply | None) -> tuple[list[bool], bytes]:
    """Punch by what was foretold and what was said then; return who was dialled, and what came."""
    loop = asyncio.get_running_loop()
    others = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    for other in others:
        other.setblocking(False)
    places = [Endpoint.of(other.getsockname()) for other in others]

    def to(told: JoinReply) -> JoinReply:
        return JoinReply(places[told.wait], told.nonce, 0, 1)

    with streams.shared(("127.0.0.1", 0)) as bound, others[0], others[1]:
        source = bound.getsockname()[:2]
        hole = Hole(b"nonce of our own", to(early), source)
        punching = asyncio.ensure_future(hole.punch(MEETING))
        first, _ = await loop.sock_accept(others[early.wait])
        hole.introduce(late and to(late), source)
        if late is None:
            with first, pytest.raises(ConnectionRefusedError, match="no way"):
                await punching
            return [True, False], b""
        sock = first
        if late.wait != early.wait:
            sock, _ = await loop.sock_accept(others[late.wait])
        with first, sock:
            proof = MEETING.proof("punch listener", hole.nonce, late.nonce)
            await streams.say(sock, Command.PUNCH, Punch(proof))
            await streams.read_message(sock, Command.PUNCH)
            await loop.sock_sendall(sock, b"bytes")
            with await punching as punched:
                return [True, sock is not first], await loop.sock_recv(punched, 10)


@pytest.mark.parametrize(
    ("late", "outcome"),
    [
        pytest.param(JoinReply(None, THEIRS, 0), ([True, False], b"bytes"), id="the same"),
        pytest.param(JoinReply(None, THEIRS, 1), ([True, True], b"bytes"), id="elsewhere"),
        pytest.param(None, ([True, False], b""), id="no way"),
    ],
)
def test_what_was_foretold_is_begun_and_what_is_said_counts(
    late: JoinReply | None, outcome: tuple[list[bool], bytes]
) -> None:
    async def test() -> None:
        async with asyncio.timeout(HANG_S):
            assert await _foretold(JoinReply(None, THEIRS, 0), late) == outcome

    asyncio.run(test())


def test_who_is_told_late_of_the_other_side_tries_again() -> None:
    """Its CALL was lost and came again, when what was foretold had been tried in vain."""

    async def test() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as place, streams.shared(("127.0.0.1", 0)) as bound:
            place.bind(("127.0.0.1", 0))
            source = bound.getsockname()[:2]
            told = JoinReply(Endpoint.of(place.getsockname()), THEIRS, 0, 1)
            hole = Hole(b"nonce of our own", told, source)
            punching = asyncio.ensure_future(hole.punch(MEETING))
            # The tries are over by then: nobody has listened.
            await asyncio.sleep(TRIES * LEAST_SECONDS + 0.2)
            place.listen()
            place.setblocking(False)
            hole.introduce(told, source)
            sock, peer = await loop.sock_accept(place)
            with sock:
                assert peer == source
                proof = MEETING.proof("punch listener", hole.nonce, THEIRS)
                await streams.say(sock, Command.PUNCH, Punch(proof))
                (await punching).close()

    asyncio.run(asyncio.wait_for(test(), HANG_S))


def test_who_is_not_introduced_does_not_connect() -> None:
    async def test() -> None:
        hole = Hole()
        hole.introduce(JoinReply(), ("127.0.0.1", 1))
        with pytest.raises(ConnectionRefusedError, match="no way"):
            await hole.punch(MEETING)

    asyncio.run(test())
