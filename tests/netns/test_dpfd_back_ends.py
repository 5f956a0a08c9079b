"""Which back end is taken and why, what it would do, how it ends, and addresses that change."""

import re
from pathlib import Path

import pytest

from gcbpatch.addresses import Address
from tests.loopback.gateway_client import random_id
from tests.netns.gateway_extra import require
from tests.netns.gateway_ground import BACK_ENDS, INSIDE, BackEnd, Client, command, start
from tests.netns.gateway_traffic import carries, everything, iptables
from tests.netns.lab import Gateway, Host, Lab, Program
from tests.netns.talk import outcome

NFTABLES, IPTABLES = BACK_ENDS
each_back_end = pytest.mark.parametrize("back_end", BACK_ENDS, ids=lambda one: one.name)


@pytest.fixture(autouse=True)
def gateway_extra() -> None:
    """Half of this needs python-iptables."""
    require()


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return tmp_path / "mirror.db"


@pytest.fixture
def gateway(lab: Lab) -> Gateway:
    return lab.gateway("ga", inside=INSIDE)


def reason(daemon: Program) -> str:
    return daemon.wait_line("INFO dpfd: back end (.*)$", stream="stderr")[1]


def test_auto_takes_what_the_gateway_uses_and_what_was_left_by_the_other_goes(
    gateway: Gateway, mirror: Path, pub: Host
) -> None:
    daemon = start(gateway, mirror)
    assert reason(daemon) == "nftables: the legacy nat table is not in use here"
    client = Client(gateway.host("a"), gateway)
    public = client.forward()
    assert NFTABLES.rules(gateway) == {public: client.inside}
    daemon.terminate()
    iptables(gateway, "-A", "POSTROUTING", "-s", "10.9.0.0/16", "-j", "MASQUERADE")
    daemon = start(gateway, mirror)
    assert reason(daemon) == "iptables: the legacy nat table is in use here"
    assert (NFTABLES.rules(gateway), IPTABLES.rules(gateway)) == ({}, {public: client.inside})
    carries(pub, public, client)
    daemon.terminate()
    daemon = start(gateway, mirror, "--backend", "nftables")
    assert reason(daemon) == "nftables: as configured"
    assert (NFTABLES.rules(gateway), IPTABLES.rules(gateway)) == ({public: client.inside}, {})
    carries(pub, public, client)


@each_back_end
def test_a_dry_run_prints_what_would_be_done_and_does_nothing(
    back_end: BackEnd, gateway: Gateway, mirror: Path
) -> None:
    flags = ("--backend", back_end.name)
    daemon = start(gateway, mirror, *flags)
    client = Client(gateway.host("a"), gateway)
    host, port = client.forward()
    daemon.terminate()
    back_end.reboot(gateway)
    before, there = everything(gateway), mirror.read_bytes()
    done = gateway.run([*command(gateway, mirror, *flags), "--dry-run"], privileged=True)
    lines = done.stdout.splitlines()
    assert lines[0] == f"# back end {back_end.name}: as configured"
    to = client.inside
    element = f"tcp . {host} . {port} timeout 90s : {to[0]} . {to[1]}"
    assert {
        "nftables": f"nft 'add element ip dpfd ports {{ {element} }}'",
        "iptables": f"-d {host} -p tcp --dport {port} -j DNAT --to-destination {to[0]}:{to[1]}",
    }[back_end.name] in lines[-1]
    assert (everything(gateway), mirror.read_bytes()) == (before, there)
    if back_end is NFTABLES:  # and these are commands that a shell takes
        gateway.run(["sh", "-e"], input=done.stdout, privileged=True)
        assert back_end.rules(gateway) == {(host, port): to}


def test_the_kernel_ends_the_mappings_of_a_dpfd_that_does_not_come_back(
    gateway: Gateway, mirror: Path, pub: Host
) -> None:
    """Not before, though: leases in the kernel are begun anew as long as it is there."""
    daemon = start(gateway, mirror, "--lifetime", "2")
    client = Client(gateway.host("a"), gateway)
    public = client.forward()
    first = expiry(gateway, public)
    while expiry(gateway, public) <= first:  # it has been begun anew
        assert client.talk.renew(client.id).lost == []
    daemon.kill()
    assert NFTABLES.rules(gateway) == {public: client.inside}
    while NFTABLES.rules(gateway):  # three lifetimes, and no more
        pass
    assert outcome(pub, *public, patience=1.0) == "silence"
    again = start(gateway, mirror)
    again.wait_line("lacked 1 rules", stream="stderr")


def expiry(gateway: Gateway, public: Address) -> int:
    """Milliseconds that an element has still to live."""
    listed = gateway.run(["nft", "list", "map", "ip", "dpfd", "ports"], privileged=True).stdout
    key = re.escape(f"tcp . {public[0]} . {public[1]} ")
    found = re.search(rf"{key}timeout \S+ expires (?:(\d+)s)?(?:(\d+)ms)?", listed)
    assert found, listed
    return 1000 * int(found[1] or 0) + int(found[2] or 0)


@each_back_end
def test_an_address_that_changes_is_followed(
    back_end: BackEnd, gateway: Gateway, mirror: Path, pub: Host
) -> None:
    """As by DHCP: the old address goes, for a moment there is none, then there is another."""
    daemon = start(gateway, mirror, "--backend", back_end.name)
    client = Client(gateway.host("a"), gateway)
    public = client.forward()
    prefix = gateway.network.with_prefix(gateway.public_address)
    gateway.space.ip(f"address del {prefix} dev {gateway.public_interface}")
    daemon.wait_line("the public addresses stay", stream="stderr")
    assert client.talk.renew(client.id).lost == []
    second = gateway.add_address()
    daemon.wait_line(f"the public addresses are {second} now", stream="stderr")
    daemon.wait_line("removed", stream="stderr")
    assert client.talk.renew(client.id).lost == [client.id]
    moved = client.forward(wished=public)
    assert moved == (second, public[1])
    assert back_end.rules(gateway) == {moved: client.inside}
    assert carries(pub, moved, client)[0] == pub.address
    assert carries(gateway.host("b"), moved, client)[0] == second
    assert everything(gateway).count(public[0]) == 0
    third = client.forward(random_id())
    assert third[0] == second


@each_back_end
def test_a_link_that_goes_down_and_up_costs_nothing(
    back_end: BackEnd, gateway: Gateway, mirror: Path, pub: Host
) -> None:
    start(gateway, mirror, "--backend", back_end.name)
    client = Client(gateway.host("a"), gateway)
    public = client.forward()
    carries(pub, public, client)
    before = everything(gateway)
    for state in ("down", "up"):
        gateway.space.ip(f"link set {gateway.public_interface} {state}")
    assert everything(gateway) == before
    assert client.talk.renew(client.id).lost == []
    carries(pub, public, client)
