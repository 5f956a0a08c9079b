"""What dpfd answers to NAT-PMP and PCP, on a kernel table in memory."""

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpfd import natpmp, pcp
from dpfd.policy import Allowance, Network, Policy
from dpfd.pool import Pool
from dpfd.reconcile import Rule
from dpfd.standard import Standard
from gcbpatch.addresses import Address
from gcbpatch.wire.messages import TCP, Endpoint

from .test_dpfd_dispatch import NEIGHBOUR, World

A = "198.51.100.1"
HOST = "10.1.0.2"
NONCE, OTHER_NONCE = b"nonce.......", b"other nonce."
TCP_80 = Rule(TCP, (A, 10001), (HOST, 80))


class Asked(NamedTuple):
    """A world, and the answers of its standard server."""

    world: World
    standard: Standard
    complaints: list[str]

    def pmp(self, inside: int, public: int = 0, lifetime: int = 60) -> tuple[int, int, int]:
        """Result, public port and lifetime."""
        request = natpmp.AskMapping(TCP, inside, public, lifetime)
        data = self.standard.answer(natpmp.build(request), (HOST, 5555))
        assert data is not None
        _, _, result, _, port, given_port, life = struct.unpack("!BBHIHHI", data)
        assert port == inside
        return result, given_port, life

    def pcp(self, request: pcp.Request, host: str = HOST) -> tuple[pcp.Result, int, Address | None]:
        data = self.standard.answer(pcp.build(request, host), (host, 5555))
        assert data is not None
        result, lifetime, epoch, public = pcp.answer(data)
        assert epoch == 77
        return result, lifetime, public


def asked(path: Path, policy: Policy | None = None) -> Asked:
    world = World(path, pool=Pool((A,), 10000, 10009), policy=policy)
    complaints: list[str] = []
    standard = Standard(
        world.dispatcher.grants, 7200, lambda: 77, lambda _, __, text: complaints.append(text)
    )
    return Asked(world, standard, complaints)


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Asked]:
    made = asked(tmp_path / "mirror")
    yield made
    made.world.check_agreement()
    made.world.mirror.close()


MAP = pcp.AskMap(NONCE, TCP, 80, ("0.0.0.0", 10001), 3600)


def test_natpmp_maps_renews_and_ends(it: Asked) -> None:
    assert it.pmp(80, 10001, 3600) == (0, 10001, 3600)
    assert it.world.kernel.rules == [TCP_80]
    assert it.world.watched == []
    it.world.now += 3000
    assert it.pmp(80, 10007, 2**32 - 1) == (0, 10001, 7200)
    it.world.mappings.remove_expired(it.world.now + 7199)
    assert it.world.kernel.rules == [TCP_80]
    assert it.pmp(80, 0, 0) == (0, 0, 0)
    assert it.world.kernel.rules == []
    assert it.pmp(80, 0, 0) == (0, 0, 0)


def test_a_lease_that_nobody_renews_ends(it: Asked) -> None:
    it.pmp(80, 10001, 60)
    it.world.mappings.remove_expired(it.world.now + 60)
    assert it.world.kernel.rules == []


def test_natpmp_ends_all_of_its_own_at_once(it: Asked) -> None:
    it.pmp(80)
    it.pmp(81)
    it.pcp(MAP)
    theirs = it.world.mapped(it.world.session(host=NEIGHBOUR))
    assert it.pmp(0, 0, 0) == (0, 0, 0)
    assert {rule.inside for rule in it.world.kernel.rules} == {(HOST, 80), (NEIGHBOUR, 80)}
    assert theirs in {rule.public for rule in it.world.kernel.rules}


def test_natpmp_tells_the_public_address(it: Asked) -> None:
    assert it.standard.answer(b"\0\0", (HOST, 1)) == natpmp.address(A, 77)


def test_natpmp_says_what_it_cannot(it: Asked) -> None:
    assert it.pmp(0, 0, 60)[0] == natpmp.Result.NOT_AUTHORIZED
    for number in range(10):
        it.pmp(1000 + number)
    assert it.pmp(80) == (natpmp.Result.OUT_OF_RESOURCES, 0, 0)
    assert it.complaints[-1] == "all 10 public addresses are mapped"
    it.world.kernel.broken = "no"
    assert it.pmp(1000, 0, 0)[0] == natpmp.Result.NETWORK_FAILURE
    it.world.kernel.broken = ""
    assert it.standard.answer(b"\0\x09", (HOST, 1)) == bytes.fromhex("0089 0005 0000004d")


def test_pcp_maps_renews_and_ends(it: Asked) -> None:
    assert it.pcp(MAP) == (pcp.Result.SUCCESS, 3600, (A, 10001))
    assert it.world.kernel.rules == [TCP_80]
    again = replace(MAP, public=("0.0.0.0", 0), lifetime=60)
    assert it.pcp(again) == (pcp.Result.SUCCESS, 60, (A, 10001))
    thief = replace(MAP, nonce=OTHER_NONCE)
    assert it.pcp(thief)[0] is pcp.Result.NOT_AUTHORIZED
    assert it.pcp(replace(thief, lifetime=0))[0] is pcp.Result.NOT_AUTHORIZED
    assert it.pcp(replace(MAP, lifetime=0))[:2] == (pcp.Result.SUCCESS, 0)
    assert it.world.kernel.rules == []


def test_pcp_gives_another_address_or_none_as_is_preferred(it: Asked) -> None:
    it.world.in_use.add((A, 10001))
    picky = replace(MAP, prefers_failure=True)
    automatic = replace(picky, public=("0.0.0.0", 40000))
    assert it.pcp(automatic)[0] is pcp.Result.CANNOT_PROVIDE_EXTERNAL
    assert it.pcp(picky)[0] is pcp.Result.CANNOT_PROVIDE_EXTERNAL
    result, _, public = it.pcp(MAP)
    assert result is pcp.Result.SUCCESS and public != (A, 10001)
    assert it.pcp(picky)[0] is pcp.Result.CANNOT_PROVIDE_EXTERNAL
    assert it.pcp(replace(picky, public=public))[2] == public


def test_pcp_says_what_it_cannot(it: Asked) -> None:
    assert it.pcp(replace(MAP, protocol=132))[0] is pcp.Result.UNSUPP_PROTOCOL
    assert it.pcp(replace(MAP, inside=0))[0] is pcp.Result.NOT_AUTHORIZED
    everything = replace(MAP, protocol=0, inside=0)
    assert it.pcp(everything)[0] is pcp.Result.UNSUPP_PROTOCOL
    data = it.standard.answer(pcp.build(MAP, NEIGHBOUR), (HOST, 1))
    assert data is not None and pcp.answer(data)[0] is pcp.Result.ADDRESS_MISMATCH
    assert it.pcp(pcp.AskAnnouncement()) == (pcp.Result.SUCCESS, 0, None)
    it.world.kernel.broken = "no"
    assert it.pcp(MAP)[:2] == (pcp.Result.NETWORK_FAILURE, 30)
    it.world.kernel.broken = ""


def test_the_policy_is_the_same_for_all(tmp_path: Path) -> None:
    allow = Allowance(networks=(Network(f"{HOST}/32"),), inside_ports=((80, 80),), mappings=1)
    it = asked(tmp_path / "mirror", Policy(allow=(allow,)))
    assert it.pmp(22)[0] == natpmp.Result.NOT_AUTHORIZED
    assert it.pcp(MAP, NEIGHBOUR)[0] is pcp.Result.NOT_AUTHORIZED
    assert it.pcp(MAP)[0] is pcp.Result.SUCCESS
    assert it.world.forward(it.world.session(), inside=Endpoint(HOST, 81)).status == 1
    it.world.mirror.close()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_comes_the_three_agree_and_answers_are_answers(
    it: Asked, data: st.DataObject
) -> None:
    ports, life = st.sampled_from((0, 80, 81, 10001)), st.sampled_from((0, 1, 60, 2**32 - 1))
    protocols = st.sampled_from((6, 17))
    asks = st.one_of(
        st.binary(max_size=100),
        st.builds(natpmp.AskMapping, protocols, ports, ports, life).map(natpmp.build),
        st.builds(
            pcp.AskMap,
            st.sampled_from((NONCE, OTHER_NONCE)),
            st.sampled_from((0, 6, 17, 132)),
            ports,
            st.tuples(st.sampled_from((A, "0.0.0.0", "2001:db8::1")), ports),
            life,
            st.booleans(),
        ).map(lambda request: pcp.build(request, HOST)),
    )
    for question in data.draw(st.lists(asks, max_size=6)):
        reply = it.standard.answer(question, (HOST, 5555))
        if reply is not None:
            assert reply[1] & 128 and len(reply) <= max(1100, len(question))
    it.world.check_agreement()
