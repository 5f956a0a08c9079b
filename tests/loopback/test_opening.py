"""Connections between two agents: each proves the secret afresh, and nothing can be played back."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from gcbpatch.agent import opening, streams
from gcbpatch.agent.opening import Meeting
from gcbpatch.agent.reception import Reception
from gcbpatch.errors import RefusedError, RemoteProtocolError, Status
from gcbpatch.wire.codec import Frame, Kind, build
from gcbpatch.wire.messages import (
    Command,
    Confirm,
    Endpoint,
    JoinReply,
    Open,
    OpenReply,
    Path,
    PathKind,
)

HANG_S = 20.0


def meeting(listening: bool = False) -> Meeting:
    return Meeting(b"a meetin", b"its shared secret"[:16], listening, ())


def run(test: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(HANG_S):
            await test

    asyncio.run(limited())


def direct(port: int) -> Path:
    return Path(PathKind.DIRECT, [Endpoint("127.0.0.1", port)])


class Between:
    """Stands between two agents, passes everything on, and remembers what the dialler said."""

    def __init__(self, port: int) -> None:
        self.said = b""
        self._port = port

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()

    async def _carry(self, dialler: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        answers, onward = await asyncio.open_connection("127.0.0.1", self._port)

        async def there() -> None:
            while data := await dialler.read(4096):
                self.said += data
                onward.write(data)

        async def and_back() -> None:
            while data := await answers.read(4096):
                back.write(data)

        await asyncio.gather(there(), and_back(), return_exceptions=True)


def test_who_knows_the_secret_gets_through() -> None:
    async def test() -> None:
        reception = Reception()
        async with reception.expect(meeting(), listening=False) as arrivals:
            dialled = await opening.open_at(direct(reception.port), meeting())
            arrived = await arrivals.get()
            await asyncio.get_running_loop().sock_sendall(dialled, b"x")
            assert await asyncio.get_running_loop().sock_recv(arrived, 10) == b"x"
            dialled.close()
            arrived.close()
        reception.close()

    run(test())


def test_what_was_recorded_on_the_way_gets_nobody_through() -> None:
    async def test() -> None:
        reception = Reception()
        loop = asyncio.get_running_loop()
        async with reception.expect(meeting(), listening=False) as arrivals:
            between = Between(reception.port)
            async with between as port:
                dialled = await opening.open_at(direct(port), meeting())
                (await arrivals.get()).close()
                dialled.close()
            assert between.said
            again = await streams.dial(("127.0.0.1", reception.port))
            await loop.sock_sendall(again, between.said)
            reply = await streams.read_frame(again)
            assert (reply.command, reply.status) == (Command.OPEN, Status.SUCCESS)
            assert await loop.sock_recv(again, 10) == b"", "it is closed and not taken"
            assert arrivals.empty()
            again.close()
        reception.close()

    run(test())


def test_an_open_without_its_confirm_is_not_ready() -> None:
    async def test() -> None:
        reception = Reception()
        loop = asyncio.get_running_loop()
        async with reception.expect(meeting(), listening=False) as arrivals:
            sock = await streams.dial(("127.0.0.1", reception.port))
            mine = os.urandom(16)
            proof = meeting().proof("open dialler", mine)
            message = Open(meeting().name, False, proof, mine)
            await streams.ask(sock, Command.OPEN, message, None)
            await streams.say(sock, Command.CONFIRM, Confirm(bytes(16)))
            assert await loop.sock_recv(sock, 10) == b""
            assert arrivals.empty()
            sock.close()
        reception.close()

    run(test())


def test_what_was_dialled_ahead_is_used_once_and_closed_if_it_is_not() -> None:
    async def test() -> None:
        reception, relay = Reception(), socket.create_server(("127.0.0.1", 0))
        relay.setblocking(False)
        loop, address = asyncio.get_running_loop(), ("127.0.0.1", reception.port)
        async with reception.expect(meeting(), listening=False) as arrivals:
            ahead = opening.Ahead(relay.getsockname(), address)
            for _ in range(2):
                with await opening.open_at(direct(reception.port), meeting(), ahead):
                    (await arrivals.get()).close()
            kept = await ahead.relay.take()
            await ahead.close()
            assert kept.getpeername() == relay.getsockname()
            kept.close()
            unused = opening.Ahead(relay.getsockname(), relay.getsockname())
            accepted = [(await loop.sock_accept(relay))[0] for _ in range(3)]
            await unused.close()
            for one in accepted:
                assert await loop.sock_recv(one, 1) == b""
                one.close()
        relay.close()
        reception.close()

    run(test())


def test_a_connection_to_the_relay_that_has_ended_meanwhile_is_dialled_again() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as relay:
            relay.setblocking(False)
            address = relay.getsockname()
            broker: Any = SimpleNamespace(relay=address, address=address, key=None)
            ahead = opening.Ahead(address, None)
            (await loop.sock_accept(relay))[0].close()
            joining = asyncio.ensure_future(opening.join(broker, meeting(), None, ahead))
            sock, _ = await loop.sock_accept(relay)
            frame = await streams.read_frame(sock)
            assert frame.command == Command.JOIN
            await streams.reply(sock, frame, Status.SUCCESS, JoinReply())
            with sock, await joining as joined:
                assert joined.getpeername() == sock.getsockname()
            await ahead.close()

    run(test())


def test_a_place_that_is_left_keeps_nobody_from_the_new_one() -> None:
    async def test() -> None:
        reception = Reception()
        with socket.create_server(("127.0.0.1", 0)) as relay, socket.socket() as left:
            left.bind(("127.0.0.1", 0))
            ahead = opening.Ahead(relay.getsockname(), left.getsockname())
            path = Path(
                PathKind.DIRECT,
                [Endpoint.of(left.getsockname()), Endpoint("127.0.0.1", reception.port)],
            )
            async with reception.expect(meeting(), listening=False) as arrivals:
                with await opening.open_at(path, meeting(), ahead):
                    (await arrivals.get()).close()
            await ahead.close()
        reception.close()

    run(test())


CHALLENGE = b"the connector's."
CONNECTOR = meeting().challenging(CHALLENGE)
CALLED = replace(meeting(listening=True), challenge=CHALLENGE)


@pytest.mark.parametrize(
    "listener", [CALLED, meeting(listening=True)], ids=["challenged", "with an older broker"]
)
def test_a_listener_that_was_called_gets_through(listener: Meeting) -> None:
    async def test() -> None:
        reception, loop = Reception(), asyncio.get_running_loop()
        async with reception.expect(CONNECTOR, listening=True) as arrivals:
            dialled = await opening.open_at(direct(reception.port), listener)
            with await arrivals.get() as arrived, dialled:
                await loop.sock_sendall(dialled, b"x")
                assert await loop.sock_recv(arrived, 10) == b"x", "and nothing before"
        reception.close()

    run(test())


def test_a_challenge_is_answered_once() -> None:
    """What was said on one connection, played back on another, is refused."""
    async def test() -> None:
        reception, loop = Reception(), asyncio.get_running_loop()
        async with reception.expect(CONNECTOR, listening=True) as arrivals:
            between = Between(reception.port)
            async with between as port:
                dialled = await opening.open_at(direct(port), CALLED)
                (await arrivals.get()).close()
                dialled.close()
            again = await streams.dial(("127.0.0.1", reception.port))
            with again:
                await loop.sock_sendall(again, between.said)
                reply = await streams.read_frame(again)
                assert (reply.command, reply.status) == (Command.OPEN, Status.NOT_AUTHORIZED)
            assert arrivals.empty()
        reception.close()

    run(test())


@pytest.mark.parametrize(
    ("expected", "said"),
    [(CONNECTOR, CONNECTOR.challenging(bytes(16))), (meeting(), meeting())],
    ids=["another's challenge", "no challenge"],
)
def test_an_answer_to_another_challenge_is_refused(expected: Meeting, said: Meeting) -> None:
    async def test() -> None:
        reception = Reception()
        async with reception.expect(expected, listening=True) as arrivals:
            mine = os.urandom(16)
            proof = said.proof("open called", said.challenge, mine)
            message = Open(said.name, True, proof, mine)
            sock = await streams.dial(("127.0.0.1", reception.port))
            with sock, pytest.raises(RefusedError):
                await streams.ask(sock, Command.OPEN, message, None)
            assert arrivals.empty()
        reception.close()

    run(test())


def test_a_wrong_secret_is_refused() -> None:
    async def test() -> None:
        reception = Reception()
        stranger = Meeting(meeting().name, bytes(16), False, ())
        async with reception.expect(meeting(), listening=False) as arrivals:
            with pytest.raises(RefusedError) as refused:
                await opening.open_at(direct(reception.port), stranger)
            assert refused.value.status is Status.NOT_AUTHORIZED
            assert arrivals.empty()
        reception.close()

    run(test())


async def _answered_by(answer: Callable[[Frame, Open], OpenReply]) -> None:
    """Dial somebody who answers OPEN as ``answer`` does."""
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    loop = asyncio.get_running_loop()
    dialling = asyncio.ensure_future(
        opening.open_at(direct(server.getsockname()[1]), meeting())
    )
    sock, _ = await loop.sock_accept(server)
    frame = await streams.read_frame(sock)
    asked = Open(meeting().name, False, bytes(16), frame.body[-16:])
    await loop.sock_sendall(
        sock, build(Kind.REPLY, Command.OPEN, 0, answer(frame, asked))
    )
    try:
        with pytest.raises(RemoteProtocolError, match="no right token"):
            await dialling
        assert await loop.sock_recv(sock, 100) == b"", "the dialler says nothing more"
    finally:
        sock.close()
        server.close()


@pytest.mark.parametrize("over", ["another nonce", "no nonce", "nothing"])
def test_a_dialler_believes_only_a_proof_over_its_own_nonce(over: str) -> None:
    def answer(_: Frame, asked: Open) -> OpenReply:
        theirs = {"another nonce": bytes(16), "no nonce": b"", "nothing": asked.nonce}[over]
        label = "open dialler" if over == "nothing" else "open acceptor"
        return OpenReply(meeting().proof(label, theirs, b"a" * 16), b"a" * 16)

    run(_answered_by(answer))
