"""Who may map what, and which public addresses there are to give."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpfd.policy import Allowance, Asker, Network, Policy, Refused
from dpfd.pool import Pool
from gcbpatch.errors import Status
from gcbpatch.wire.messages import TCP, Endpoint, Forward

PEER = "10.1.0.2"


def request(**changes: object) -> Forward:
    settings: dict[str, object] = {
        "client": b"c" * 16,
        "listener": b"l" * 16,
        "protocol": TCP,
        "inside": Endpoint(PEER, 80),
        "wished": None,
        "management": Endpoint(PEER, 40000),
        "nonce": b"n" * 16,
        "lifetime": 30,
    }
    return Forward(**(settings | changes))  # type: ignore[arg-type]


def test_a_client_may_map_its_own_address() -> None:
    Policy().check(request(), Asker(PEER))


REFUSED = {
    "another host's address": ({"inside": Endpoint("10.1.0.3", 80)}, Status.NOT_AUTHORIZED),
    "the gateway's address": ({"inside": Endpoint("10.1.0.1", 22)}, Status.NOT_AUTHORIZED),
    "all addresses": ({"inside": Endpoint("0.0.0.0", 80)}, Status.NOT_AUTHORIZED),
    "an IPv6 address": ({"inside": Endpoint("::1", 80)}, Status.NOT_AUTHORIZED),
    "somebody else's management socket": (
        {"management": Endpoint("10.1.0.3", 40000)},
        Status.NOT_AUTHORIZED,
    ),
    "inside port 0": ({"inside": Endpoint(PEER, 0)}, Status.MALFORMED),
    "management port 0": ({"management": Endpoint(PEER, 0)}, Status.MALFORMED),
    "lifetime 0": ({"lifetime": 0}, Status.MALFORMED),
    "something between TCP and UDP": ({"protocol": 7}, Status.UNSUPPORTED),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    changes, status = REFUSED[what]
    with pytest.raises(Refused) as refusal:
        Policy().check(request(**changes), Asker(PEER))
    assert refusal.value.status is status


def test_nobody_may_map_the_wildcard_address() -> None:
    everywhere = Endpoint("0.0.0.0", 80)
    with pytest.raises(Refused):
        Policy().check(request(inside=everywhere, management=everywhere), Asker("0.0.0.0"))


@pytest.mark.parametrize(("wished", "granted"), [(1, 1), (30, 30), (31, 30), (2**32 - 1, 30)])
def test_lifetimes_are_clamped(wished: int, granted: int) -> None:
    assert Policy(max_lifetime=30).lifetime(wished) == granted


def refusal(policy: Policy, asker: Asker | None = None, **changes: object) -> Status | None:
    try:
        policy.check(request(**changes), asker or Asker(PEER))
    except Refused as refused:
        return refused.status
    return None


def room(policy: Policy, *counts: int, allowance: Allowance | None = None) -> Status | None:
    try:
        policy.check_room(allowance or Allowance(), *counts)
    except Refused as refused:
        return refused.status
    return None


def test_clients_and_hosts_have_a_quota_and_so_have_all() -> None:
    policy = Policy(per_client=2, per_host=3, in_all=5)
    assert room(policy, 1, 2, 4) is None
    assert room(policy, 2, 2, 4) is Status.QUOTA_EXCEEDED
    assert room(policy, 1, 3, 4) is Status.QUOTA_EXCEEDED  # however often it calls itself another
    assert room(policy, 1, 2, 5) is Status.NO_RESOURCES
    assert room(policy, 1, 2, 4, allowance=Allowance(mappings=1)) is Status.QUOTA_EXCEEDED


LAN, LAB = Network("10.1.0.0/24"), Network("10.2.0.0/24")
RULES = Policy(
    allow=(
        Allowance(tokens=("batch",), ports=((20000, 20099),)),
        Allowance(networks=(LAN,), inside=(LAB,), inside_ports=((80, 80), (8000, 8999))),
    )
)


def test_the_first_allowance_for_an_asker_counts() -> None:
    assert refusal(RULES, inside=Endpoint(PEER, 80)) is None
    assert refusal(RULES, inside=Endpoint(PEER, 8999)) is None
    assert refusal(RULES, inside=Endpoint(PEER, 22)) is Status.NOT_AUTHORIZED
    assert refusal(RULES, Asker(PEER, "batch"), inside=Endpoint(PEER, 22)) is None
    elsewhere = Asker("10.3.0.1")
    own = {"inside": Endpoint("10.3.0.1", 80), "management": Endpoint("10.3.0.1", 9)}
    assert refusal(RULES, elsewhere, **own) is Status.NOT_AUTHORIZED
    assert refusal(RULES, Asker("10.3.0.1", "batch"), **own) is None
    assert refusal(RULES, Asker("10.3.0.1", "other"), **own) is Status.NOT_AUTHORIZED


def test_others_are_mapped_by_whom_it_is_allowed_only() -> None:
    neighbour = Endpoint("10.2.0.7", 80)
    assert refusal(RULES, inside=neighbour) is None
    assert refusal(RULES, Asker(PEER, "batch"), inside=neighbour) is Status.NOT_AUTHORIZED
    assert refusal(RULES, inside=Endpoint("10.1.0.3", 80)) is Status.NOT_AUTHORIZED
    management = Endpoint("10.2.0.7", 9)  # who answers for it is the asker in any case
    assert refusal(RULES, inside=neighbour, management=management) is Status.NOT_AUTHORIZED


def test_public_ports_are_those_of_the_allowance() -> None:
    allowance = RULES.check(request(), Asker(PEER, "batch"))
    assert [allowance.gives(("198.51.100.1", port)) for port in (19999, 20000, 20100)] == [
        False,
        True,
        False,
    ]


def test_what_was_granted_earlier_stays_if_anybody_from_there_may_have_it() -> None:
    public = ("198.51.100.1", 20000)
    assert RULES.tolerates(PEER, (PEER, 22), public)  # it may have had the token
    assert not RULES.tolerates(PEER, (PEER, 22), ("198.51.100.1", 20100))
    assert RULES.tolerates(PEER, ("10.2.0.7", 80), ("198.51.100.1", 20100))
    assert not Policy(allow=()).tolerates(PEER, (PEER, 80), public)


A, B = "198.51.100.1", "198.51.100.2"
POOL = Pool((A, B), 10000, 10003)


def test_the_wish_comes_first() -> None:
    assert next(POOL.candidates([(B, 10002)], 0)) == (B, 10002)


@pytest.mark.parametrize("host", ["0.0.0.0", "203.0.113.9"])
def test_a_wish_without_a_host_of_ours_is_for_the_port(host: str) -> None:
    candidates = POOL.candidates([(host, 10002)], 0)
    assert [next(candidates), next(candidates)] == [(A, 10002), (B, 10002)]


def test_a_second_wish_comes_before_chance() -> None:
    candidates = [*POOL.candidates([(A, 10001), (B, 10003)], 0)]
    assert candidates.index((B, 10003)) == 2  # (B, 10001) fits the first wish better


@pytest.mark.parametrize("wish", [(A, 22), (A, 10004), ("0.0.0.0", 0), (A, 0)])
def test_a_wish_that_cannot_be_is_passed_over(wish: tuple[str, int]) -> None:
    assert list(POOL.candidates([wish], 3)) == list(POOL.candidates([], 3))


@given(
    st.lists(st.tuples(st.sampled_from([A, B, "0.0.0.0"]), st.integers(0, 65535))), st.integers(0)
)
def test_every_address_is_offered_once(wishes: list[tuple[str, int]], start: int) -> None:
    candidates = list(POOL.candidates(wishes, start))
    assert len(candidates) == POOL.size == 8
    assert set(candidates) == {(h, p) for h in (A, B) for p in range(10000, 10004)}


def test_where_to_begin_is_chance() -> None:
    starts = {next(POOL.candidates([], start)) for start in range(8)}
    assert len(starts) == 8


def test_a_free_port_is_found_soon_though_its_neighbours_are_taken() -> None:
    pool, chance, tries = Pool((A,), 10000, 18008), random.Random(1), []
    for _ in range(100):
        candidates = pool.candidates([], chance.getrandbits(64))
        tries.append(next(number for number, one in enumerate(candidates) if one[1] > 16000))
    assert sum(tries) < 100 * 20  # one in four is free; one after the other it would be 3,000
