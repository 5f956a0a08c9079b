"""Both back ends on a real kernel, without the daemon."""

import random
import re
import subprocess
import sys

import pytest

from dpfd.kernel.choice import NAMES, back_end
from dpfd.kernel.firewall import BackEnd, Firewall
from dpfd.kernel.port import KernelError, Layout
from dpfd.reconcile import Rule, diff
from gcbpatch.wire.messages import TCP, UDP
from tests.netns.gateway_extra import require
from tests.netns.lab import Gateway, Lab

HOSTS = ("198.51.100.1", "198.51.100.2")
LAYOUT = Layout(HOSTS, 10000, 10600, (("lan", "10.1.0.0/24"),), 90)
FOREIGN = {
    "iptables": "iptables-legacy -t nat -A PREROUTING -d 198.51.100.1 -p tcp --dport 10003:10004 "
    "-j DNAT --to-destination 10.1.0.9",
    "nftables": "nft add rule inet lab static ip daddr 198.51.100.1 tcp dport 10003-10004 "
    "dnat ip to 10.1.0.9",
}
LISTING = {"iptables": "iptables-legacy -t nat -S", "nftables": "nft -s list ruleset"}
SCRIPT = "import sys; from tests.netns import test_dpfd_kernel as t; t.{}(*sys.argv[1:])"
GOOD = Rule(TCP, (HOSTS[0], 10000), ("10.1.0.2", 80))

pytestmark = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def gateway_extra() -> None:
    """Half of this needs python-iptables."""
    require()


@pytest.fixture
def gateway(lab: Lab) -> Gateway:
    return lab.gateway("ga", inside="10.1.0.0/24")


def random_rules(chance: random.Random) -> set[Rule]:
    publics = {
        (chance.choice((TCP, UDP)), chance.choice(HOSTS), chance.randint(10000, 10600))
        for _ in range(40)
    }
    return {
        Rule(protocol, (host, port), ("10.1.0.2", chance.randint(1, 50)))
        for protocol, host, port in publics
    }


def sources(name: str, kernel: BackEnd) -> set[tuple[str, str]]:
    """Where the kernel has the datagrams of UDP listeners leave from: inside, public."""
    if name == "nftables":
        pattern = r"udp \. (.*?) \. (\d+) .*?: (.*?) \. (\d+)"
        words = "nft list map ip dpfd sources"
        found = re.findall(pattern, subprocess.check_output(words.split(), text=True))
    else:
        pattern = r"-s (.*?)/32 -p udp -m udp --sport (\d+) -j SNAT --to-source (.*?):(\d+)"
        words = "iptables-legacy -t nat -S"
        found = re.findall(pattern, subprocess.check_output(words.split(), text=True))
    return {(f"{host}:{port}", f"{to}:{at}") for host, port, to, at in found}


def go_from_state_to_state(name: str, seed: str) -> None:
    """Inside a gateway: what is read after each change is what was desired."""
    chance, kernel = random.Random(int(seed)), back_end(name, LAYOUT)
    firewall = Firewall(kernel, LAYOUT)
    for _ in range(20):
        desired = set() if chance.random() < 0.1 else random_rules(chance)
        changes = diff(desired, kernel.read().rules)
        kernel.apply(changes.adds, changes.removes)
        kernel.hold(desired)
        reading = firewall.read()
        assert sorted(reading.rules) == sorted(desired)
        assert {(claim.low, claim.high) for claim in reading.claims} == {(10003, 10004)}
        udp = [rule for rule in desired if rule.protocol == UDP]
        shown = {(f"{r.inside[0]}:{r.inside[1]}", f"{r.public[0]}:{r.public[1]}") for r in udp}
        left = sources(name, kernel)
        assert left <= shown
        assert {inside for inside, _ in left} == {inside for inside, _ in shown}
    kernel.flush()
    assert kernel.read().rules == ()


def fail_half_way(name: str) -> None:
    """Inside a gateway: a change of which one part is impossible changes nothing."""
    kernel = back_end(name, LAYOUT)
    kernel.apply([GOOD], [])
    second = GOOD._replace(public=(HOSTS[0], 10001))
    bad = {
        "nftables": second._replace(inside=("10.1.0.2", 81)),  # of the same public address
        "iptables": GOOD._replace(protocol=7, public=(HOSTS[0], 10002)),  # which has no ports
    }[name]
    try:
        kernel.apply([second, bad], [GOOD])
    except KernelError as error:
        print(f"refused: {error}")
    assert kernel.read().rules == (GOOD,)


def remove_what_is_not_there(name: str) -> None:
    """Inside a gateway: such a removal is passed over, and the rest is done."""
    kernel = back_end(name, LAYOUT)
    absent = [Rule(protocol, (HOSTS[1], 10001), ("10.1.0.2", 80)) for protocol in (TCP, UDP)]
    for _ in range(2):
        kernel.apply([GOOD], [*absent, GOOD])
    assert kernel.read().rules == (GOOD,)


def share(name: str) -> None:
    """Inside a gateway: two dpfds leave each other's rules alone."""
    first = back_end(name, Layout(HOSTS, 10000, 10200, LAYOUT.inside))
    second = back_end(name, Layout(HOSTS[:1], 10201, 10600, LAYOUT.inside))
    other = GOOD._replace(public=(HOSTS[0], 10250))
    first.apply([GOOD], [])
    second.apply([other], [])
    first.apply([], [])
    assert (first.read().rules, second.read().rules) == ((GOOD,), (other,))
    before = subprocess.check_output(LISTING[name].split())
    for kernel in (first, second, first):
        kernel.read()
        kernel.apply([], [])
    assert subprocess.check_output(LISTING[name].split()) == before


def fill(name: str, low: str, end: str) -> None:
    """Inside a gateway: set a rule for each port of a range."""
    ports = range(int(low), int(end))
    rules = [Rule(TCP, (HOSTS[0], port), ("10.1.0.2", port)) for port in ports]
    back_end(name, LAYOUT).apply(rules, [])


def inside(gateway: Gateway, function: str, *args: str) -> str:
    argv = [sys.executable, "-c", SCRIPT.format(function), *args]
    return gateway.run(argv, privileged=True).stdout


def listing(gateway: Gateway, name: str) -> str:
    return gateway.run(LISTING[name].split(), privileged=True).stdout


@pytest.mark.parametrize("seed", range(2))
def test_the_kernel_holds_what_is_desired_and_what_others_made(
    gateway: Gateway, name: str, seed: int
) -> None:
    gateway.run(FOREIGN[name].split(), privileged=True)
    before = listing(gateway, name)
    inside(gateway, "go_from_state_to_state", name, str(seed))
    assert listing(gateway, name) == before


def test_a_change_is_all_or_nothing(gateway: Gateway, name: str) -> None:
    assert re.match(f"refused: {name}, ", inside(gateway, "fail_half_way", name))


def test_removals_of_what_is_not_there_are_passed_over(gateway: Gateway, name: str) -> None:
    inside(gateway, "remove_what_is_not_there", name)


def test_two_dpfds_share_a_gateway(gateway: Gateway, name: str) -> None:
    inside(gateway, "share", name)


def test_no_packet_passes_many_rules(gateway: Gateway, name: str) -> None:
    inside(gateway, "fill", name, "10000", "10600")
    found = listing(gateway, name)
    if name == "nftables":
        assert found.count("dnat ip to meta l4proto") == 2  # at two hooks
        assert len(re.findall(r"tcp \. 198.51.100.1 \. 10\d\d\d", found)) == 600
        return
    chains = re.findall("^-A (DPFD-[0-9A-F]{8}-[0-9A-F]{2}) ", found, re.M)
    lengths = {chain: chains.count(chain) for chain in chains}
    assert sum(lengths.values()) == 600
    assert max(lengths.values()) == 256
    assert len(re.findall("^-A DPFD ", found, re.M)) == len(lengths) == 3


def set_many_at_once(name: str) -> None:
    """Inside a gateway: all are found again, though nftables is just making room for them."""
    publics = [(host, port) for host in HOSTS for port in range(10000, 10601)]
    rules = {Rule(TCP, public, ("10.1.0.2", 80)) for public in publics}
    for _ in range(20 if name == "nftables" else 2):
        kernel = back_end(name, LAYOUT)
        kernel.read()
        kernel.apply(rules, set())
        print(len(rules.difference(kernel.read().rules)))
        kernel.flush()


def test_many_that_are_set_at_once_are_all_found(gateway: Gateway, name: str) -> None:
    assert set(inside(gateway, "set_many_at_once", name).split()) == {"0"}
