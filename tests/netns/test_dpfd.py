"""dpfd on real gateways: what the kernel forwards and for whom, with either back end."""

import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gcbpatch.addresses import Address
from gcbpatch.errors import RefusedError
from tests.loopback.gateway_client import random_id
from tests.netns.gateway_extra import require
from tests.netns.gateway_ground import INSIDE, BackEnd, Client, start
from tests.netns.gateway_traffic import carries, echoes, everything, flush, iptables
from tests.netns.lab import Gateway, Host, Lab, Program
from tests.netns.talk import dial, listen, outcome

Start = Callable[..., Program]


@pytest.fixture(autouse=True)
def gateway_extra() -> None:
    """Half of this needs python-iptables."""
    require()


@pytest.fixture
def gateway(lab: Lab) -> Gateway:
    return lab.gateway("ga", inside=INSIDE, unsolicited="drop")


@pytest.fixture
def run(gateway: Gateway, tmp_path: Path, back_end: BackEnd) -> Start:
    """Starts dpfd with the back end."""

    def begin(*flags: str) -> Program:
        return start(gateway, tmp_path / "mirror.db", "--backend", back_end.name, *flags)

    return begin


def end(daemon: Program, gateway: Gateway, mirror: Path) -> None:
    assert daemon.terminate() == 0
    flush(gateway, mirror)


def test_everybody_reaches_a_mapped_port_by_its_public_address(
    pub: Host, gateway: Gateway, run: Start, back_end: BackEnd
) -> None:
    run()
    client = Client(gateway.host("a"), gateway, 20123)
    public = client.forward(wished=("0.0.0.0", 20123))
    assert public == (gateway.public_address, 20123)
    assert carries(pub, public, client)[0] == pub.address
    # RFC 5382, REQ-8: who comes from inside is seen under the public address.
    neighbour = Client(gateway.host("b"), gateway)
    assert carries(neighbour.host, public, client)[0] == public[0]
    assert carries(client.host, public, client)[0] == public[0]
    carries(gateway, public, client)
    assert neighbour.talk.query(public) == client.inside
    carries(neighbour.host, client.inside, client)


def test_unforward_removes_the_rule_and_leaves_what_is_established(
    pub: Host, gateway: Gateway, run: Start, back_end: BackEnd
) -> None:
    run()
    client = Client(gateway.host("a"), gateway)
    public = client.forward()
    assert back_end.rules(gateway) == {public: client.inside}
    near = dial(pub, *public)
    far, _ = client.accept()
    client.talk.unforward(client.id)
    assert back_end.rules(gateway) == {}
    assert outcome(pub, *public, patience=1.0) == "silence"
    assert echoes(near, far)


def test_all_of_it_works_without_being_root(
    tmp_path: Path, any_lab: Lab, back_end: BackEnd
) -> None:
    gateway, pub = any_lab.gateway("ga", inside=INSIDE), any_lab.host("pub")
    before = everything(gateway)
    daemon = start(gateway, tmp_path / "mirror", "--backend", back_end.name)
    client = Client(gateway.host("a"), gateway)
    assert carries(pub, client.forward(), client)[0] == pub.address
    end(daemon, gateway, tmp_path / "mirror")
    assert everything(gateway) == before


def test_rules_stay_when_dpfd_ends_until_they_are_flushed(
    gateway: Gateway, run: Start, back_end: BackEnd, tmp_path: Path, pub: Host
) -> None:
    daemon, mirror = run(), tmp_path / "mirror.db"
    client = Client(gateway.host("a"), gateway)
    public = client.forward()
    for number in (signal.SIGTERM, signal.SIGINT):
        daemon.signal(number)
        assert daemon.wait() == 0
        carries(pub, public, client)
        daemon = run()
    argv = [sys.executable, "-m", "dpfd", "--flush", "--mirror", str(mirror)]
    refused = gateway.run(argv, privileged=True, check=False)
    assert (refused.returncode, "another dpfd" in refused.stderr) == (2, True)
    carries(pub, public, client)
    end(daemon, gateway, mirror)
    assert outcome(pub, *public, patience=1.0) == "silence"
    run()
    assert back_end.rules(gateway) == {}
    assert client.reconnect().renew(client.id).lost == [client.id]


def test_others_rules_are_never_touched(
    gateway: Gateway, run: Start, tmp_path: Path, pub: Host
) -> None:
    for rule in (
        "-A PREROUTING -d 198.51.100.99 -p tcp --dport 80 -j DNAT --to-destination 10.1.0.9:80",
        "-A OUTPUT -d 198.51.100.99 -p udp -j DNAT --to-destination 10.1.0.9",
        "-A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE",
        "-N DPF",
    ):
        iptables(gateway, *rule.split())
    iptables(gateway, "-A", "FORWARD", "-s", "10.9.0.0/16", "-j", "DROP", table="filter")
    iptables(gateway, "-P", "FORWARD", "DROP", table="filter", which="nft")
    iptables(gateway, "-A", "FORWARD", "-i", "lan", "-j", "ACCEPT", table="filter", which="nft")
    gateway.space.nft('add rule inet lab forward ct status dnat accept comment "not dpfd"')
    before = everything(gateway)
    daemon = run()
    client = Client(gateway.host("a"), gateway)
    carries(pub, client.forward(), client)
    assert everything(gateway) != before
    end(daemon, gateway, tmp_path / "mirror.db")
    assert everything(gateway) == before


def legacy_drop(gateway: Gateway) -> None:
    iptables(gateway, "-P", "FORWARD", "DROP", table="filter")


def debian_drop(gateway: Gateway) -> None:
    iptables(gateway, "-P", "FORWARD", "DROP", table="filter", which="nft")


def nft_drop(gateway: Gateway) -> None:
    hook = "{ type filter hook forward priority 10; policy drop; }"
    gateway.space.nft("add table ip strict", f"add chain ip strict guard {hook}")


def nft_reject(gateway: Gateway) -> None:
    hook = "{ type filter hook forward priority -10; policy accept; }"
    gateway.space.nft("add table inet strict", f"add chain inet strict guard {hook}")
    gateway.space.nft("add rule inet strict guard reject with icmpx admin-prohibited")


def test_forwarded_traffic_passes_strict_forward_chains_of_both_worlds(
    gateway: Gateway, run: Start, back_end: BackEnd, pub: Host
) -> None:
    for strict in (legacy_drop, debian_drop, nft_drop, nft_reject):
        strict(gateway)
    everything(gateway)  # to look at a legacy table is to make it
    host = gateway.host("a")
    listener = listen(host, 80)
    gateway.forward(30000, host, 80)  # an administrator's, outside of dpfd's ports
    daemon = run("--ports", "20000-20099")
    client = Client(host, gateway)
    public = client.forward()
    carries(pub, public, client)
    assert outcome(pub, gateway.public_address, 30000) == "EHOSTUNREACH"
    accepted = everything(gateway)
    assert daemon.terminate() == 0
    run("--ports", "20000-20099")  # nothing is put in twice
    assert everything(gateway) == accepted
    assert "-A FORWARD" in iptables(gateway, "-S", table="filter", which="nft")
    listener.close()


def test_a_firewall_reload_is_put_right_on_sighup(
    gateway: Gateway, run: Start, back_end: BackEnd, pub: Host
) -> None:
    daemon = run()
    client = Client(gateway.host("a"), gateway)
    public = client.forward()
    for damage in back_end.damages[:2]:
        back_end.damage(gateway, damage)
        daemon.signal(signal.SIGHUP)
        assert outcome(pub, *public) == "connected"  # a lost SYN is sent again
        client.accept()[0].close()
        carries(pub, public, client)


def test_a_firewall_reload_is_noticed_by_itself(
    gateway: Gateway, run: Start, back_end: BackEnd, pub: Host
) -> None:
    """The interval of reconciling would be a minute, and a mapping is acknowledged meanwhile."""
    daemon = run()
    client = Client(gateway.host("a"), gateway)
    public, late = client.forward(), random_id()
    back_end.damage(gateway, back_end.damages[0])
    second = client.forward(late)
    carries(pub, second, client)
    if back_end.name == "nftables":
        daemon.wait_line("others had changed table ip dpfd", stream="stderr")
    else:
        daemon.wait_line("another program has changed dpfd's chains", stream="stderr")
    daemon.signal(signal.SIGHUP)
    daemon.wait_line("reconciled", stream="stderr")
    assert back_end.rules(gateway) == {public: client.inside, second: client.inside}


def foreign_legacy(gateway: Gateway, ports: str) -> None:
    rule = f"-A PREROUTING -d {gateway.public_address} -p tcp --dport {ports} -j DNAT"
    iptables(gateway, *rule.replace("-2", ":2").split(), "--to-destination", "10.1.0.9")


def foreign_nft(gateway: Gateway, ports: str) -> None:
    words = f"ip daddr {gateway.public_address} tcp dport {ports} dnat ip to 10.1.0.9"
    gateway.space.nft(f"add rule inet lab static {words}")


@pytest.mark.parametrize("foreign", [foreign_legacy, foreign_nft])
def test_ports_of_others_are_not_given(
    gateway: Gateway, run: Start, foreign: Callable[[Gateway, str], None]
) -> None:
    busy = listen(gateway, 20000)
    foreign(gateway, "20001-20002")
    run("--ports", "20000-20003")
    client = Client(gateway.host("a"), gateway)
    assert client.forward(wished=("0.0.0.0", 20001)) == (gateway.public_address, 20003)
    with pytest.raises(RefusedError, match="NO_RESOURCES"):
        client.forward(random_id())
    busy.close()
    assert client.forward(random_id()) == (gateway.public_address, 20000)


def test_several_public_addresses(gateway: Gateway, run: Start, pub: Host) -> None:
    second = gateway.add_address()
    run()
    client = Client(gateway.host("a"), gateway)
    assert client.talk.open().public == [gateway.public_address, second]
    public: Address = client.forward(wished=(second, 20000))
    assert public == (second, 20000)
    carries(pub, public, client)
    assert carries(gateway.host("b"), public, client)[0] == second


LOOP = {
    "iptables": "iptables-legacy -w -t nat -A PREROUTING -p udp --dport {} -j ACCEPT",
    "nftables": "nft add rule inet lab open udp dport {} accept",
}
PROGRAM = """
import subprocess, sys
print("begun", flush=True)
for port in range(1, 101):
    subprocess.run(sys.argv[1].format(port).split(), check=True)
"""


def test_nothing_is_lost_when_others_write_at_the_same_time(
    gateway: Gateway, run: Start, back_end: BackEnd
) -> None:
    run()
    client = Client(gateway.host("a"), gateway)
    words = LOOP[back_end.name]
    other = gateway.popen([sys.executable, "-c", PROGRAM, words], privileged=True)
    other.wait_line("begun")
    for _ in range(60):
        client.forward(random_id())
    assert other.wait() == 0, other.stderr
    assert len(back_end.rules(gateway)) == 60
    assert len(re.findall(r"udp (?:--)?dport \d+ .*accept", everything(gateway), re.I)) == 100
