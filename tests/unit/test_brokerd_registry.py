"""Who holds which proxy address, without a socket and without a clock."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from brokerd.hosts import Hosts
from brokerd.registry import MOST_ATTEMPTS, MOST_IDLE, Listener, Ports, Refusal, Registry, Sender
from gcbpatch.addresses import Address
from gcbpatch.errors import Status
from gcbpatch.wire.auth import Key
from gcbpatch.wire.messages import TCP, Endpoint, Refresh, Register

HOST = "198.51.100.1"
SECRET = b"a claim secret"
LONGEST = 30
KEYS = [None, Key(b"token of alice"), Key(b"token of bob")]


def anywhere(proxy: Address) -> bool:
    return True


def sender(key: Key | None = None, port: int = 4000) -> Sender:
    return Sender(("192.0.2.7", port), HOST, key)


def register_of(
    client: int = 1,
    listener: int = 1,
    wished: int = 0,
    lifetime: int = LONGEST,
    proxy: Endpoint | None = None,
    claim: bytes = b"",
) -> Register:
    return Register(
        bytes([client]) * 16, bytes(8), bytes([listener]) * 16, TCP, wished, bytes(8), [], "",
        lifetime, proxy, claim,
    )


def refresh_of(client: int, *listeners: int) -> Refresh:
    return Refresh(bytes([client]) * 16, bytes(8), [bytes([n]) * 16 for n in listeners])


def registry(low: int = 10000, high: int = 10099, quiet_until: float = 0.0) -> Registry:
    return Registry(Hosts((HOST,)), Ports(low, high), LONGEST, SECRET, quiet_until)


def enter(
    registry: Registry, now: float = 0.0, key: Key | None = None, dice: int = 0, **asked: object
) -> Listener:
    return registry.register(
        register_of(**asked), sender(key), now, dice, anywhere  # type: ignore[arg-type]
    )


def status_of(function: object, *args: object, **named: object) -> Status:
    with pytest.raises(Refusal) as refused:
        function(*args, **named)  # type: ignore[operator]
    return refused.value.status


def test_a_port_comes_from_the_range_and_the_tenth_comes_last() -> None:
    here = registry()
    ports = [enter(here, listener=n, dice=n * 7919).proxy[1] for n in range(100)]
    assert sorted(ports) == list(range(10000, 10100))
    assert set(ports[90:]) == set(range(10090, 10100))
    assert status_of(enter, here, listener=200) is Status.NO_RESOURCES


def test_a_wish_is_granted_from_1024_up_where_free() -> None:
    here = registry()
    assert enter(here, listener=1, wished=1024).proxy == (HOST, 1024)
    assert enter(here, listener=2, wished=1024).proxy[1] in range(10000, 10100)
    assert enter(here, listener=3, wished=1023).proxy[1] in range(10000, 10100)
    assert enter(here, listener=4, wished=10095).proxy == (HOST, 10095)


def test_a_port_that_the_kernel_refuses_is_passed_over() -> None:
    here = registry()
    tried: list[int] = []

    def odd(proxy: Address) -> bool:
        tried.append(proxy[1])
        return proxy[1] % 2 == 1

    assert here.register(register_of(), sender(), 0.0, 4, odd).proxy == (HOST, 10005)
    assert tried == [10004, 10005]


def test_the_kernel_is_not_asked_for_ever() -> None:
    here = registry(10000, 20000)
    tried: list[int] = []

    def never(proxy: Address) -> bool:
        tried.append(proxy[1])
        return False

    assert status_of(
        here.register, register_of(), sender(), 0.0, 0, never
    ) is Status.NO_RESOURCES
    assert len(tried) == MOST_ATTEMPTS
    assert len(here) == 0


def test_registering_again_refreshes_and_says_what_is_new() -> None:
    here = registry()
    first = enter(here)
    again = here.register(
        register_of(wished=2000, lifetime=5), sender(port=5000), 10.0, 1, anywhere
    )
    assert again is first
    assert again.proxy == (HOST, 10000)
    assert (again.lifetime, again.expires) == (5, 15.0)
    assert again.sender.address == ("192.0.2.7", 5000)


@pytest.mark.parametrize("asked, granted", [(0, 1), (1, 1), (30, 30), (31, 30), (86400, 30)])
def test_a_lifetime_is_bounded(asked: int, granted: int) -> None:
    assert enter(registry(), lifetime=asked).lifetime == granted


def test_a_listener_ends_with_its_lifetime_unless_refreshed() -> None:
    here = registry()
    kept, gone = enter(here, listener=1), enter(here, listener=2, lifetime=10)
    assert here.expire(9.9) == []
    assert here.expire(10.0) == [gone]
    assert here.at(TCP, gone.proxy) is None
    assert here.refresh(refresh_of(1, 1, 2), sender(), 20.0) == (30, [bytes([2]) * 16])
    assert here.expire(49.9) == []
    assert here.expire(50.0) == [kept]
    assert len(here) == 0


def test_a_lifetime_can_be_made_shorter() -> None:
    here = registry()
    listener = enter(here)
    enter(here, lifetime=5)
    assert here.expire(5.0) == [listener]


def test_refresh_moves_where_calls_go() -> None:
    here = registry()
    listener = enter(here)
    here.refresh(refresh_of(1, 1), sender(port=9), 1.0)
    assert listener.sender.address == ("192.0.2.7", 9)


def test_another_token_may_do_nothing_with_a_listener() -> None:
    here = registry()
    listener = enter(here, key=KEYS[1])
    for key in (None, KEYS[2]):
        assert status_of(enter, here, key=key) is Status.NOT_AUTHORIZED
        assert status_of(
            here.refresh, refresh_of(1, 1), sender(key), 1.0
        ) is Status.NOT_AUTHORIZED
        assert status_of(
            here.unregister, listener.client, listener.id, sender(key)
        ) is Status.NOT_AUTHORIZED
    assert listener.expires == LONGEST
    assert here.at(TCP, listener.proxy) is listener


def test_unregister_frees_the_address() -> None:
    here = registry()
    listener = enter(here)
    assert here.unregister(listener.client, listener.id, sender()) is listener
    assert here.at(TCP, listener.proxy) is None
    assert status_of(
        here.unregister, listener.client, listener.id, sender()
    ) is Status.UNKNOWN
    assert here.expire(1000.0) == []


def claimed(listener: Listener, holder: Registry) -> dict[str, object]:
    return {"proxy": Endpoint.of(listener.proxy), "claim": holder.claim_of(listener)}


def test_a_claim_gets_the_address_back_after_a_restart() -> None:
    before, after = registry(), registry(quiet_until=30.0)
    held = enter(before, wished=7777)
    assert enter(after, **claimed(held, before)).proxy == held.proxy


def test_while_it_is_quiet_newcomers_get_the_tenth_only() -> None:
    here = registry(quiet_until=30.0)
    ports = [enter(here, 29.9, listener=n, wished=10000 + n).proxy[1] for n in range(10)]
    assert sorted(ports) == list(range(10090, 10100))
    assert status_of(enter, here, 29.9, listener=20) is Status.NO_RESOURCES
    assert enter(here, 30.0, listener=20, wished=10020).proxy == (HOST, 10020)


def test_a_claim_is_worth_nothing_to_others_or_for_others() -> None:
    before, after = registry(), registry()
    held = enter(before, wished=7777)
    right = claimed(held, before)
    wrong = [
        {"client": 2, **right},
        {**right, "proxy": Endpoint(HOST, 7778)},
        {**right, "proxy": Endpoint("198.51.100.2", 7777)},
        {**right, "claim": b""},
        {**right, "claim": bytes(16)},
    ]
    for asked in wrong:
        listener = enter(after, **asked)
        assert listener.proxy[1] not in (7777, 7778)
        after.unregister(listener.client, listener.id, sender())


def test_a_claim_does_not_take_from_another_client() -> None:
    here = registry()
    held = enter(here, wished=7777)
    right = claimed(held, here)
    here.unregister(held.client, held.id, sender())
    other = enter(here, client=2, wished=7777)
    assert enter(here, **right).proxy != other.proxy
    assert here.at(TCP, other.proxy) is other


def test_a_client_whose_agent_died_takes_its_own_address_over() -> None:
    here = registry()
    held = enter(here, listener=1, key=KEYS[1])
    right = claimed(held, here)
    assert enter(here, listener=2, key=KEYS[2], **right).proxy != held.proxy
    next_one = here.register(
        register_of(listener=3, **right), sender(KEYS[1]), 5.0, 0, lambda port: False
    )
    assert next_one.proxy == held.proxy
    assert here.at(TCP, held.proxy) is next_one
    assert here.refresh(refresh_of(1, 1), sender(KEYS[1]), 6.0)[1] == [bytes([1]) * 16]


class Registering(RuleBasedStateMachine):
    """Any order of commands, by any clients and tokens, against a plain model of the truth."""

    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        # What the kernel has open, as dispatch would keep it.
        self.open: set[int] = set()
        self.deadlines: dict[tuple[bytes, bytes], float] = {}
        self.proxies: dict[tuple[bytes, bytes], tuple[str, int]] = {}

    @initialize(quiet=st.sampled_from([0.0, 30.0]))
    def start(self, quiet: float) -> None:
        self.registry = registry(10000, 10009, quiet)

    def open_proxy(self, proxy: Address) -> bool:
        port = proxy[1]
        assert port not in self.open, "a port is opened that is open"
        if port % 5 == 4:
            return False
        self.open.add(port)
        return True

    @rule(
        target=claims,
        client=st.integers(1, 3),
        listener=st.integers(1, 4),
        wished=st.sampled_from([0, 0, 80, 2000, 10001, 10009]),
        lifetime=st.integers(0, 60),
        key=st.sampled_from(KEYS[:2]),
        dice=st.integers(0, 100),
        claim=st.one_of(st.none(), claims),
    )
    def register(
        self,
        client: int,
        listener: int,
        wished: int,
        lifetime: int,
        key: Key | None,
        dice: int,
        claim: tuple[Endpoint, bytes] | None,
    ) -> tuple[Endpoint, bytes] | None:
        proxy, right = claim or (None, b"")
        asked = register_of(client, listener, wished, lifetime, proxy, right)
        try:
            entered = self.registry.register(asked, sender(key), self.now, dice, self.open_proxy)
        except Refusal as refusal:
            assert refusal.status in (Status.NOT_AUTHORIZED, Status.NO_RESOURCES)
            return None
        before = self.proxies.get(entered.name)
        assert before in (None, entered.proxy), "an address changed under its listener"
        for name, held in list(self.proxies.items()):
            if held == entered.proxy and name != entered.name:
                assert name[0] == entered.client, "an address was taken from another client"
                del self.proxies[name], self.deadlines[name]
        self.proxies[entered.name] = entered.proxy
        self.deadlines[entered.name] = self.now + max(1, min(lifetime, LONGEST))
        return Endpoint.of(entered.proxy), self.registry.claim_of(entered)

    @rule(client=st.integers(1, 3), listener=st.integers(1, 4), key=st.sampled_from(KEYS[:2]))
    def unregister(self, client: int, listener: int, key: Key | None) -> None:
        name = (bytes([client]) * 16, bytes([listener]) * 16)
        try:
            gone = self.registry.unregister(*name, sender(key))
        except Refusal as refusal:
            assert (refusal.status is Status.UNKNOWN) == (name not in self.proxies)
            return
        self.forget(gone)

    @rule(
        client=st.integers(1, 3),
        listeners=st.lists(st.integers(1, 4)),
        key=st.sampled_from(KEYS[:2]),
    )
    def refresh(self, client: int, listeners: list[int], key: Key | None) -> None:
        asked = refresh_of(client, *listeners)
        names = {(asked.client, id_) for id_ in asked.listeners}
        try:
            _, lost = self.registry.refresh(asked, sender(key), self.now)
        except Refusal:
            return
        assert {(asked.client, id_) for id_ in lost} == names - self.proxies.keys()
        for name in names & self.proxies.keys():
            listener = self.registry.at(TCP, self.proxies[name])
            assert listener
            self.deadlines[name] = self.now + listener.lifetime

    @rule(seconds=st.sampled_from([0.5, 1.0, 7.0, 29.0, 31.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for listener in self.registry.expire(self.now):
            assert self.deadlines[listener.name] <= self.now, "it ended before its time"
            self.forget(listener)
        assert all(end > self.now for end in self.deadlines.values()), "it outlived its time"

    def forget(self, listener: Listener) -> None:
        self.open.remove(listener.proxy[1])
        assert self.proxies.pop(listener.name) == listener.proxy
        del self.deadlines[listener.name]

    @invariant()
    def addresses_belong_to_one(self) -> None:
        assert len(set(self.proxies.values())) == len(self.proxies)
        assert {port for _, port in self.proxies.values()} == self.open
        for name, proxy in self.proxies.items():
            listener = self.registry.at(TCP, proxy)
            assert listener and listener.name == name
        if hasattr(self, "registry"):
            assert len(self.registry) == len(self.proxies)


Registering.TestCase.settings = settings(deadline=None)
TestRegistering = Registering.TestCase


def test_a_draining_registry_enters_nobody_and_keeps_all() -> None:
    here = registry()
    held = enter(here, listener=1)
    here.draining = True
    assert here.free == 0
    assert status_of(enter, here, listener=2) is Status.NO_RESOURCES
    assert enter(here, listener=1, now=5.0) is held
    assert here.refresh(refresh_of(1, 1), sender(), 6.0) == (LONGEST, [])
    claim = {"proxy": Endpoint.of(held.proxy), "claim": here.claim_of(held)}
    assert enter(here, listener=3, **claim).proxy == held.proxy, "its client's agent was replaced"


def test_who_comes_and_goes_leaves_no_memory_behind() -> None:
    one = registry()
    enter(one, client=2)
    for number in range(10 * MOST_IDLE):
        listener = enter(one, now=number * 1e-4)
        one.unregister(listener.client, listener.id, sender())
    assert len(one._queue) <= MOST_IDLE + 2
    assert [gone.client for gone in one.expire(LONGEST + 1.0)] == [bytes([2]) * 16]
