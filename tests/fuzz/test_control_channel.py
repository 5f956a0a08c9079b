"""A channel that repeats, reorders, delays, replays and forges: every command has one effect.

Whoever writes a command leaves it with the channel; the channel hands over any of them, at
any time, any number of times, from anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from brokerd.dispatch import Question
from brokerd.limits import Held
from brokerd.server import bare_status
from gcbpatch.addresses import Address
from gcbpatch.errors import RemoteProtocolError, Status
from gcbpatch.wire import auth
from gcbpatch.wire.auth import Key, Keyring
from gcbpatch.wire.codec import HEADER, HEADER_SIZE, Kind, message_of, parse
from gcbpatch.wire.messages import (
    TCP,
    Command,
    Connect,
    ConnectReply,
    Endpoint,
    Hello,
    HelloReply,
    Message,
    Refresh,
    Register,
    Unregister,
)
from tests.fuzz.ground import BROKER, NOW, Ground, broker
from tests.fuzz.material import EXAMPLES, fuzzed

LISTENERS = [bytes([number]) * 16 for number in (1, 2, 3)]
NOWHERE: Address = ("203.0.113.66", 6)


@dataclass(frozen=True)
class Party:
    """One client: where it is, and its token."""

    name: bytes
    address: Address
    key: Key


PARTIES = [
    Party(b"client of alice.", ("192.0.2.7", 40000), Key(b"alices-token", "alice")),
    Party(b"client of bob...", ("192.0.2.8", 40000), Key(b"bobs-token-2", "bob")),
]
PLACES = [*(party.address for party in PARTIES), ("192.0.2.7", 40001), NOWHERE]
parties, listeners = st.sampled_from(PARTIES), st.sampled_from(LISTENERS)


@dataclass(frozen=True)
class Written:
    """A command that the channel has, and where it was written."""

    data: bytes
    address: Address


class Channel(RuleBasedStateMachine):
    """The broker at the end of the worst network there is."""

    written = Bundle("written")

    @initialize(tokens=st.booleans())
    def start(self, tokens: bool) -> None:
        self.tokens = tokens
        self.now, self.transaction, self.calls = NOW, 0, 0
        self.asking: dict[int, Callable[[Status], None]] = {}
        self.done: dict[Written, bytes] = {}
        self.owners: dict[tuple[bytes, bytes, int], Key | None] = {}
        self.stack = ExitStack()
        keyring = Keyring([party.key for party in PARTIES] if tokens else [])
        self.ground: Ground = self.stack.enter_context(broker(keyring, self.ask))

    def ask(
        self, question: Question, done: Callable[[Status], None], now: float
    ) -> Callable[[], None]:
        self.calls += 1
        self.asking[question.transaction] = done
        return lambda: (self.asking.pop(question.transaction, None), None)[1]

    # --- what is written, and may come at once as well as later

    def write(
        self, party: Party, command: Command, message: Message, at_once: bool = False
    ) -> Written:
        self.transaction += 1
        key = party.key if self.tokens else None
        data = auth.sealed(key, Kind.REQUEST, command, self.transaction, message)
        one = Written(data, party.address)
        if at_once:
            self.arrives(one)
        return one

    def cookie(self, party: Party) -> bytes:
        """HELLO is answered whatever happens around it."""
        hello = self.write(party, Command.HELLO, Hello(party.name))
        before = self.state()
        answer = self.ground.dispatcher.answer(
            parse(hello.data), party.address, BROKER, self.now
        )
        assert answer is not None and len(answer) <= len(hello.data)
        assert self.state() == before
        reply = message_of(parse(answer))
        assert isinstance(reply, HelloReply)
        return reply.cookie

    @rule(target=written, party=parties, whose=parties, listener=listeners,
          lifetime=st.sampled_from([1, 20, 100]), at_once=st.booleans())
    def register(
        self, party: Party, whose: Party, listener: bytes, lifetime: int, at_once: bool
    ) -> Written:
        return self.write(party, Command.REGISTER, Register(
            whose.name, self.cookie(party), listener, TCP, 0, bytes(8), [], "", lifetime
        ), at_once)

    @rule(target=written, party=parties, whose=parties, some=st.lists(listeners, max_size=4),
          at_once=st.booleans())
    def refresh(
        self, party: Party, whose: Party, some: list[bytes], at_once: bool
    ) -> Written:
        message = Refresh(whose.name, self.cookie(party), some)
        return self.write(party, Command.REFRESH, message, at_once)

    @rule(target=written, party=parties, whose=parties, listener=listeners, at_once=st.booleans())
    def unregister(
        self, party: Party, whose: Party, listener: bytes, at_once: bool
    ) -> Written:
        message = Unregister(whose.name, self.cookie(party), listener)
        return self.write(party, Command.UNREGISTER, message, at_once)

    @rule(target=written, party=parties, which=st.integers(0, 5), at_once=st.booleans())
    def connect(self, party: Party, which: int, at_once: bool) -> Written:
        ports = sorted(self.ground.opened.ports) or [1]
        target = Endpoint(BROKER, ports[which % len(ports)])
        message = Connect(party.name, self.cookie(party), target, TCP, [], "")
        return self.write(party, Command.CONNECT, message, at_once)

    # --- what the channel does with it

    def hand_over(self, data: bytes, address: Address) -> bytes:
        try:
            frame = parse(data)
            answer = self.ground.dispatcher.answer(frame, address, BROKER, self.now)
            assert answer is not None
        except RemoteProtocolError as error:
            answer = bare_status(data, error.status) or b""
        return answer

    @rule(one=written)
    def deliver(self, one: Written) -> None:
        self.arrives(one)

    def arrives(self, one: Written) -> None:
        before = self.state()
        answer = self.hand_over(one.data, one.address)
        reply = parse(answer)
        if one in self.done:
            assert self.state() == before
            assert answer == self.done[one] or reply.status == Status.STALE_EPOCH
        elif reply.status == Status.STALE_EPOCH:
            assert self.state() == before and len(answer) == HEADER_SIZE
        else:
            self.done[one] = answer
            self.check_first(one, answer, before)

    def check_first(self, one: Written, answer: bytes, before: object) -> None:
        reply = parse(answer)
        assert reply.transaction == parse(one.data).transaction
        if reply.status != Status.SUCCESS:
            assert self.state() == before
        if self.tokens:
            # Nobody but who asked can take it for an answer.
            asker = next(party for party in PARTIES if party.address == one.address)
            assert [p for p in PARTIES if p.key.verify(reply)] == [asker]

    @rule(one=written, address=st.sampled_from(PLACES))
    def deliver_from_elsewhere(self, one: Written, address: Address) -> None:
        assume(address != one.address)
        before = self.state()
        answer = self.hand_over(one.data, address)
        assert len(answer) == HEADER_SIZE <= len(one.data)
        assert parse(answer).status == Status.STALE_EPOCH
        assert self.state() == before

    @rule(one=written, at=st.integers(0, 400), octet=st.integers(1, 255))
    def deliver_changed(self, one: Written, at: int, octet: int) -> None:
        data = bytearray(one.data)
        data[at % len(data)] ^= octet
        before = self.state()
        answer = self.hand_over(bytes(data), one.address)
        if self.tokens:
            assert len(answer) <= HEADER_SIZE
            assert self.state() == before

    @rule(one=written, party=parties)
    def ask_for_the_answer_of_another(self, one: Written, party: Party) -> None:
        """With its address and its transaction, but with nothing that proves either."""
        asked = parse(one.data)
        data = auth.sealed(
            party.key if self.tokens else None, Kind.REQUEST, asked.command, asked.transaction
        )
        before = self.state()
        answer = self.hand_over(data, one.address)
        assert len(answer) == HEADER_SIZE <= len(data)
        assert parse(answer).status == Status.MALFORMED
        assert self.state() == before

    @precondition(lambda self: self.tokens)
    @rule(one=written, party=parties)
    def deliver_under_another_token(self, one: Written, party: Party) -> None:
        """Word by word, from the same address, by somebody who may use the broker as well."""
        asked = parse(one.data)
        assume(not party.key.verify(asked))
        data = auth.sealed(
            party.key, Kind.REQUEST, asked.command, asked.transaction, message_of(asked)
        )
        answer = self.hand_over(data, one.address)
        assert answer != self.done.get(one)
        reply = parse(answer)
        assert reply.status == Status.STALE_EPOCH or party.key.verify(reply)
        if reply.status == Status.SUCCESS and one in self.done:
            self.check_no_secret_is_shared(answer, self.done[one])

    def check_no_secret_is_shared(self, answer: bytes, other: bytes) -> None:
        told = message_of(parse(answer))
        if isinstance(told, ConnectReply):
            assert told.secret not in other and told.rendezvous not in other

    @rule(data=st.binary(max_size=24), command=st.sampled_from(list(Command)),
          size=st.sampled_from([0, 1400, 65487]), address=st.sampled_from(PLACES))
    def deliver_noise(self, data: bytes, command: int, size: int, address: Address) -> None:
        body = data + bytes(max(0, size - len(data)))
        head = HEADER.pack(b"GB", 1, Kind.REQUEST, command, 0, len(body), self.transaction, 0)
        before = self.state()
        answer = self.hand_over(head + body, address)
        assert len(answer) <= HEADER_SIZE
        assert self.state() == before

    @rule(seconds=st.sampled_from([0.5, 5.0, 19.0, 61.0, 125.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.ground.relays.expire(self.now)
        self.ground.dispatcher.expire(self.now)

    @precondition(lambda self: self.asking)
    @rule(status=st.sampled_from([Status.SUCCESS, Status.UNKNOWN, Status.NO_RESOURCES]))
    def answer_a_call(self, status: Status) -> None:
        self.asking.pop(next(iter(self.asking)))(status)

    # --- what must hold

    def listeners(self) -> list[tuple[object, ...]]:
        found = [self.ground.registry.at(TCP, (BROKER, port))
                 for port in sorted(self.ground.opened.ports)]
        return [(one.client, one.id, one.proxy, one.sender, one.expires)
                for one in found if one is not None]

    def state(self) -> object:
        held = [self.ground.limits.free(what) for what in Held]
        return self.listeners(), held, len(self.ground.relays), self.calls

    @invariant()
    def what_is_counted_is_what_is_there(self) -> None:
        ground = self.ground
        held = {what: ground.limits.bounds.of(what.value, False) - ground.limits.free(what)
                for what in Held}
        assert held[Held.PROXIES] == len(ground.registry) == len(ground.opened.ports)
        assert len(self.listeners()) == len(ground.registry)
        assert held[Held.HALF_OPEN] == len(ground.relays)
        assert held[Held.RELAYS] == 0
        assert len(self.asking) <= len(ground.relays)

    @invariant()
    def nobody_gets_a_listener_of_another_token(self) -> None:
        there = {}
        for client, id_, proxy, sender, _ in self.listeners():
            there[client, id_, proxy[1]] = sender.key  # type: ignore[index,attr-defined]
        for name, key in there.items():
            assert self.owners.get(name, key) is key
        self.owners = there  # type: ignore[assignment]

    def teardown(self) -> None:
        if not hasattr(self, "ground"):
            return
        self.wait(1000.0)
        self.what_is_counted_is_what_is_there()
        assert (len(self.ground.registry), len(self.ground.relays), self.asking) == (0, 0, {})
        self.stack.close()


TestChannel = Channel.TestCase
TestChannel.settings = settings(fuzzed, max_examples=EXAMPLES // 3, stateful_step_count=40)
