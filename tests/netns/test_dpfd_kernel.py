"""The iptables back end on a real kernel, without the daemon."""

import random
import re
import sys

import pytest

from dpfd.kernel.iptables import Iptables, Layout
from dpfd.kernel.port import KernelError
from dpfd.reconcile import Rule, diff
from tests.netns.gateway_extra import require
from tests.netns.lab import Gateway, Lab


@pytest.fixture(autouse=True)
def gateway_extra() -> None:
    """All of this needs python-iptables."""
    require()

HOSTS = ("198.51.100.1", "198.51.100.2")
FOREIGN = "-A PREROUTING -d 198.51.100.1 -p tcp --dport 10003:10004 -j DNAT"
SCRIPT = "import sys; from tests.netns import test_dpfd_kernel as t; t.{}(*sys.argv[1:])"


def back_end() -> Iptables:
    return Iptables(Layout(HOSTS, 10000, 10600, (("lan", "10.1.0.0/24"),)))


def random_rules(chance: random.Random) -> set[Rule]:
    publics = {(chance.choice(HOSTS), chance.randint(10000, 10600)) for _ in range(40)}
    return {Rule(6, public, ("10.1.0.2", chance.randint(1, 65535))) for public in publics}


def go_from_state_to_state(seed: str) -> None:
    """Inside a gateway: what is read after each change is what was desired."""
    chance, kernel = random.Random(int(seed)), back_end()
    for _ in range(20):
        desired = set() if chance.random() < 0.1 else random_rules(chance)
        changes = diff(desired, kernel.read().rules)
        kernel.apply(changes.adds, changes.removes)
        reading = kernel.read()
        assert sorted(reading.rules) == sorted(desired)
        assert [(claim.low, claim.high) for claim in reading.claims] == [(10003, 10004)]
    kernel.flush()
    assert kernel.read().rules == ()


def fail_half_way() -> None:
    """Inside a gateway: a change of which one part is impossible changes nothing."""
    kernel = back_end()
    good = Rule(6, (HOSTS[0], 10000), ("10.1.0.2", 80))
    kernel.apply([good], [])
    try:
        bad = Rule(6, (HOSTS[0], 10002), ("10.1.0.2", 70000))
        kernel.apply([Rule(6, (HOSTS[0], 10001), ("10.1.0.2", 81)), bad], [good])
    except KernelError as error:
        print(f"refused: {error}")
    assert kernel.read().rules == (good,)


def fill(low: str, end: str) -> None:
    """Inside a gateway: set a rule for each port of a range."""
    ports = range(int(low), int(end))
    back_end().apply([Rule(6, (HOSTS[0], port), ("10.1.0.2", port)) for port in ports], [])


def inside(gateway: Gateway, name: str, *args: str) -> str:
    argv = [sys.executable, "-c", SCRIPT.format(name), *args]
    return gateway.run(argv, privileged=True).stdout


def listing(gateway: Gateway) -> str:
    return gateway.run(["iptables-legacy", "-t", "nat", "-S"], privileged=True).stdout


@pytest.mark.parametrize("seed", range(3))
def test_the_kernel_holds_what_is_desired_and_what_others_made(lab: Lab, seed: int) -> None:
    gateway = lab.gateway("ga", inside="10.1.0.0/24")
    argv = ["iptables-legacy", "-t", "nat", *FOREIGN.split(), "--to-destination", "10.1.0.9"]
    gateway.run(argv, privileged=True)
    before = listing(gateway)
    inside(gateway, "go_from_state_to_state", str(seed))
    assert listing(gateway) == before


def test_a_change_is_all_or_nothing(lab: Lab) -> None:
    assert re.match("refused: iptables, table nat", inside(lab.gateway("ga"), "fail_half_way"))


def test_no_chain_is_longer_than_a_block(lab: Lab) -> None:
    gateway = lab.gateway("ga", inside="10.1.0.0/24")
    inside(gateway, "fill", "10000", "10600")
    chains = re.findall("^-A (DPFD-[0-9A-F]{8}-[0-9A-F]{2}) ", listing(gateway), re.M)
    lengths = {chain: chains.count(chain) for chain in chains}
    assert sum(lengths.values()) == 600
    assert max(lengths.values()) == 256
    assert len(re.findall("^-A DPFD ", listing(gateway), re.M)) == len(lengths) == 3
