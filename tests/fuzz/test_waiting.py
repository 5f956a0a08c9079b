"""A rendezvous whose other side never comes is gone after its limit, with all that it held."""

from __future__ import annotations

import gc
import os
import select
import socket
from collections.abc import Callable

import pytest

from brokerd.dispatch import Question
from brokerd.limits import Held
from brokerd.registry import Refusal
from brokerd.relay import JOIN_LIMIT, ORDINARY_LIMIT, Rendezvous
from gcbpatch.errors import Status
from gcbpatch.wire import auth
from gcbpatch.wire.auth import Keyring
from gcbpatch.wire.codec import Kind, message_of, parse
from gcbpatch.wire.messages import (
    TCP,
    Call,
    Command,
    Connect,
    ConnectReply,
    Endpoint,
    Join,
    Message,
    Register,
)
from tests.fuzz.ground import BROKER, HERE, NOW, SECRET, Ground, broker

LIFETIME = 30


class Caller:
    """The way out for CALLs: they are kept until they are settled."""

    def __init__(self) -> None:
        self.questions: dict[int, Question] = {}

    def ask(
        self, question: Question, done: Callable[[Status], None], now: float
    ) -> Callable[[], None]:
        self.questions[question.transaction] = question
        return lambda: (self.questions.pop(question.transaction, None), None)[1]

    def last(self) -> Call:
        call = message_of(parse(self.questions[next(reversed(self.questions))].data))
        assert isinstance(call, Call)
        return call


def command(ground: Ground, what: Command, message: Message, now: float) -> Message:
    transaction = int.from_bytes(os.urandom(8), "big")
    data = auth.sealed(None, Kind.REQUEST, what, transaction, message)
    answer = ground.dispatcher.answer(parse(data), HERE, BROKER, now)
    assert answer is not None
    return message_of(parse(answer))


def registered(ground: Ground, now: float) -> int:
    """Register a listener, return its proxy port."""
    cookie = auth.cookie(SECRET, HERE, now)
    command(ground, Command.REGISTER, Register(
        bytes(16), cookie, bytes(16), TCP, 0, bytes(8), [], "", LIFETIME
    ), now)
    (port,) = ground.opened.ports
    return port


def connect(ground: Ground, port: int, now: float) -> ConnectReply:
    message = Connect(
        b"c" * 16, auth.cookie(SECRET, HERE, now), Endpoint(BROKER, port), TCP, [], ""
    )
    reply = command(ground, Command.CONNECT, message, now)
    assert isinstance(reply, ConnectReply)
    return reply


def join(ground: Ground, name: bytes, secret: bytes, listening: bool) -> socket.socket:
    """Let one half come; return its far end."""
    label = "join listener" if listening else "join connector"
    message = Join(name, listening, auth.proof(secret, label, name))
    frame = parse(auth.sealed(None, Kind.REQUEST, Command.JOIN, 1, message))
    near, far = socket.socketpair()
    near.setblocking(False)
    ground.relays.join(near, frame, None, message)
    return far


def held(ground: Ground) -> dict[Held, int]:
    bounds = ground.limits.bounds
    return {what: bounds.of(what.value, False) - ground.limits.free(what) for what in Held}


def remembered() -> int:
    """Return how many rendezvous there are in this process's memory."""
    gc.collect()
    return sum(isinstance(one, Rendezvous) for one in gc.get_objects())


def pass_time(ground: Ground, now: float) -> None:
    ground.relays.expire(now)
    ground.dispatcher.expire(now)


def check_nothing_waits(ground: Ground, caller: Caller, listeners: int) -> None:
    assert held(ground) == {what: 0 for what in Held} | {Held.PROXIES: listeners}
    assert (len(ground.relays), caller.questions) == (0, {})


@pytest.mark.parametrize("comes", ["nobody", "the connector", "the listener"])
def test_a_rendezvous_that_only_one_comes_to_is_gone_after_its_limit(comes: str) -> None:
    caller, before = Caller(), remembered()
    with broker(Keyring(), caller.ask) as ground:
        port, descriptors = registered(ground, NOW), len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            meeting = connect(ground, port, NOW)
        assert remembered() == before + 50 == before + held(ground)[Held.HALF_OPEN]
        name, secret = meeting.rendezvous, meeting.secret
        far = None if comes == "nobody" else join(ground, name, secret, comes == "the listener")
        pass_time(ground, NOW + JOIN_LIMIT - 0.001)
        assert len(ground.relays) == 50
        pass_time(ground, NOW + JOIN_LIMIT)
        check_nothing_waits(ground, caller, 1)
        assert remembered() == before
        if far is not None:
            with far:
                assert parse(far.recv(2048)).status == Status.UNKNOWN
                assert far.recv(1) == b""
        pass_time(ground, NOW + LIFETIME)
        check_nothing_waits(ground, caller, 0)
        assert not ground.opened.ports and not len(ground.registry)
        assert len(os.listdir("/proc/self/fd")) == descriptors


def test_an_ordinary_connection_that_no_listener_comes_to_is_reset_after_its_limit() -> None:
    caller, before = Caller(), remembered()
    with broker(Keyring(), caller.ask) as ground, socket.socket() as door:
        port = registered(ground, NOW)
        door.bind(("127.0.0.1", 0))
        door.listen()
        with socket.create_connection(door.getsockname()) as ordinary:
            accepted = door.accept()[0]
            accepted.setblocking(False)
            ground.dispatcher.accepted((BROKER, port), accepted, ordinary.getsockname(), NOW)
            pass_time(ground, NOW + ORDINARY_LIMIT - 0.001)
            assert not select.select([ordinary], [], [], 0)[0] and len(caller.questions) == 1
            pass_time(ground, NOW + ORDINARY_LIMIT)
            check_nothing_waits(ground, caller, 1)
            with pytest.raises(ConnectionResetError):
                ordinary.recv(1)
    assert remembered() == before


def test_a_join_played_back_is_no_other_half() -> None:
    """Neither while its rendezvous waits, nor for its other side, nor afterwards."""
    caller = Caller()
    with broker(Keyring(), caller.ask) as ground:
        meeting = connect(ground, registered(ground, NOW), NOW)
        name, secret = meeting.rendezvous, meeting.secret
        assert caller.last().rendezvous == name
        with join(ground, name, secret, listening=False) as waiting:
            check_is_refused(ground, name, auth.proof(secret, "join connector", name), False)
            check_is_refused(ground, name, auth.proof(secret, "join connector", name), True)
            assert len(ground.relays) == 1
            assert not select.select([waiting], [], [], 0)[0]
            pass_time(ground, NOW + JOIN_LIMIT)
        check_is_refused(ground, name, auth.proof(secret, "join listener", name), True)
        check_nothing_waits(ground, caller, 1)


def check_is_refused(ground: Ground, name: bytes, proof: bytes, listening: bool) -> None:
    message = Join(name, listening, proof)
    frame = parse(auth.sealed(None, Kind.REQUEST, Command.JOIN, 1, message))
    near, far = socket.socketpair()
    with near, far, pytest.raises(Refusal):
        ground.relays.join(near, frame, None, message)
