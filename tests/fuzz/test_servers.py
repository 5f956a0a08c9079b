"""Whatever frames come: brokerd and dpfd answer or refuse, and strangers learn little of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from brokerd.server import bare_status
from dpfd.dispatch import Dispatcher as GatewayDispatcher
from dpfd.dispatch import Peer
from dpfd.grants import Senses
from dpfd.kernel.fake import FakeKernel
from dpfd.liveness import Answer
from dpfd.mappings import Mappings
from dpfd.mirror import Mirror
from dpfd.policy import Policy
from dpfd.pool import Pool
from dpfd.table import Table
from gcbpatch.errors import RemoteProtocolError, Status
from gcbpatch.wire import auth
from gcbpatch.wire.auth import Keyring
from gcbpatch.wire.codec import HEADER_SIZE, Kind, message_of, parse
from gcbpatch.wire.messages import Command, Hello, Register
from tests.fuzz.ground import BROKER, HERE, NOW, broker
from tests.fuzz.material import KEY, KEYRINGS, VALID, anything, fuzzed, parsed
from tests.unit.vectors import frames


@fuzzed
@given(anything, st.sampled_from(list(Status)))
def test_a_bare_status_is_never_larger_than_what_it_answers(data: bytes, status: Status) -> None:
    answer = bare_status(data, status)
    nothing = len(data) < HEADER_SIZE or data[:2] != b"GB" or data[3] == Kind.REPLY
    assert (answer is None) is nothing
    if answer is None:
        return
    frame = parse(answer)
    assert len(answer) <= len(data)
    assert (frame.kind, frame.status, frame.body, frame.mac) == (Kind.REPLY, status, b"", b"")


UNPADDED = auth.sealed(None, Kind.REQUEST, Command.HELLO, 1, Hello(bytes(16), b""))


@fuzzed
@given(st.lists(anything, min_size=1, max_size=8), st.sampled_from(KEYRINGS), st.booleans())
@example([UNPADDED], KEYRINGS[0], False)
def test_a_broker_answers_or_refuses_and_tells_strangers_no_more_than_they_said(
    datagrams: list[bytes], keyring: Keyring, proved: bool
) -> None:
    address = HERE if proved else ("192.0.2.66", 1)
    with broker(keyring) as ground:
        dispatcher, opened = ground.dispatcher, ground.opened
        for data in datagrams:
            frame = parsed(data)
            if frame is None or frame.kind is Kind.REPLY:
                continue
            try:
                answer = dispatcher.answer(frame, address, BROKER, NOW)
            except RemoteProtocolError:
                continue
            assert proved or answer is None or len(answer) <= len(data)
            reply = parse(answer) if answer is not None else None
            assert reply is None or reply.transaction == frame.transaction
        assert proved or not opened.ports


def test_the_broker_of_the_fuzz_takes_the_documents_register() -> None:
    """Or the test above would show nothing about what lies behind the cookie."""
    register = next(data for data in VALID if isinstance(message_of(parse(data)), Register))
    with broker(Keyring()) as ground:
        dispatcher, opened = ground.dispatcher, ground.opened
        answer = dispatcher.answer(parse(register), HERE, BROKER, NOW)
        assert answer is not None and parse(answer).status == Status.SUCCESS
        assert len(opened.ports) == 1


@contextmanager
def gateway(keyring: Keyring) -> Iterator[GatewayDispatcher]:
    """dpfd's dispatcher over a table, a mirror in a file and a kernel in memory."""
    with tempfile.TemporaryDirectory() as folder:
        mirror = Mirror(str(Path(folder) / "mirror.db"), bytes(8))
        mappings = Mappings(
            Table(), mirror, FakeKernel(), Pool(("203.0.113.1",), 10000, 20000)
        )
        senses = Senses(
            chance=lambda: 0,
            port_in_use=lambda *_: False,
            probe=lambda _: Answer.PROVED,
            watch=lambda _: None,
            clock=lambda: NOW,
        )
        try:
            yield GatewayDispatcher(mappings, Policy(), senses, keyring)
        finally:
            mirror.close()


SESSIONS = [v.data for v in frames() if (v.kind, v.command) == (Kind.REQUEST, Command.SESSION)]
"""One without MAC, one sealed with KEY."""


@fuzzed
@given(st.lists(anything, max_size=6), st.sampled_from(KEYRINGS))
def test_dpfd_answers_every_frame(stream: list[bytes], keyring: Keyring) -> None:
    with gateway(keyring) as dispatcher:
        peer = Peer("10.1.0.5")
        for data in (SESSIONS[bool(keyring)], *stream):
            frame = parsed(data)
            if frame is None:
                continue
            outcome = dispatcher.answer(frame, peer)
            reply = parse(outcome.reply)
            assert (reply.kind, reply.status) == (Kind.REPLY, outcome.status)
            assert reply.transaction == frame.transaction
            if not outcome.goes_on:
                return


@pytest.mark.parametrize("keyring", KEYRINGS)
def test_the_dpfd_of_the_fuzz_takes_the_documents_session_and_forward(keyring: Keyring) -> None:
    """Or the test above would show nothing about what lies behind SESSION."""
    forward = parse(next(data for data in VALID if parse(data).command == Command.FORWARD))
    if keyring:
        data = auth.sealed(KEY, Kind.REQUEST, Command.FORWARD, 0, message_of(forward))
        forward = parse(data)
    with gateway(keyring) as dispatcher:
        peer = Peer("10.1.0.5")
        assert dispatcher.answer(parse(SESSIONS[bool(keyring)]), peer).status is Status.SUCCESS
        assert dispatcher.answer(forward, peer).status is Status.SUCCESS
        assert len(dispatcher.mappings.table) == 1
