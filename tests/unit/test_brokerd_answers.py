"""What the broker has answered: each token has its own share of what is remembered."""

from __future__ import annotations

from functools import partial
from itertools import count

import pytest

from brokerd import dispatch
from gcbpatch.wire import auth
from gcbpatch.wire.auth import Key, Keyring
from gcbpatch.wire.codec import Kind, parse
from gcbpatch.wire.messages import TCP, Command, Message, Refresh, Register, Unregister
from gcbpatch.wire.replay import Answers
from tests.fuzz.ground import BROKER, HERE, NOW, SECRET, Ground, broker

ALICE, BOB = Key(b"the token of alice"), Key(b"the token of bob")
CLIENT, LISTENER = bytes(16), bytes(range(16))
COOKIE = auth.cookie(SECRET, HERE, NOW)
REGISTER = Register(CLIENT, COOKIE, LISTENER, TCP, 0, bytes(8), [], "", 30, None, b"")

transactions = count(1)


def asked(key: Key, command: Command, message: Message) -> bytes:
    return auth.sealed(key, Kind.REQUEST, command, next(transactions), message)


def answered(ground: Ground, request: bytes) -> bytes | None:
    return ground.dispatcher.answer(parse(request), HERE, BROKER, NOW)


def test_no_tokens_haste_drops_what_another_was_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "Answers", partial(Answers, most=4))
    with broker(Keyring([ALICE, BOB])) as ground:
        register = asked(ALICE, Command.REGISTER, REGISTER)
        answer = answered(ground, register)
        answered(ground, asked(ALICE, Command.UNREGISTER, Unregister(CLIENT, COOKIE, LISTENER)))
        for _ in range(10):
            answered(ground, asked(BOB, Command.REFRESH, Refresh(CLIENT, COOKIE, [LISTENER])))
        assert answered(ground, register) == answer
        assert len(ground.registry) == 0
