"""Public hosts behind a firewall: nobody is told to dial what is not reached."""

from __future__ import annotations

import re
import time
from pathlib import Path

from tests.netns.lab import Host, Lab
from tests.netns.pairs import Ground, exchanged

HANG_S = 30.0
SPY = """
    table inet spy {
        set syns { typeof ip saddr . tcp dport; size 65535; flags dynamic; }
        chain in {
            type filter hook prerouting priority raw; policy accept;
            tcp flags & (syn | ack) == syn add @syns { ip saddr . tcp dport }
        }
    }
"""


def shut_port(ground: Ground, host: Host) -> str:
    """The port at which an agent of a host has found that it is not reached."""
    log = ground.log_of(host).read_text()
    found = re.search(r"the agent at \S+:(\d+) is reached by nobody", log)
    assert found is not None
    return found.group(1)


def dialled(host: Host) -> str:
    """Who has sent a first packet to a host, and to which port of it."""
    return host.run(["nft", "list", "set", "inet", "spy", "syns"], privileged=True).stdout


def world(lab: Lab, tmp: Path, **settings: str) -> tuple[Ground, Host, Host]:
    """A broker, a public host behind its firewall, and one behind a NAT: they have to punch."""
    ground = Ground(lab, tmp)
    ground.broker(lab.host("public"))
    walled = lab.host("walled", firewall="drop")
    inside = lab.gateway("gateway", uplink=lab.segment()).host("inside")
    for host in (walled, inside):
        ground.use_broker(host, lab.nodes["public"].address, **settings)
    walled.space.nft(SPY)
    return ground, walled, inside


def test_a_shut_listener_is_not_dialled_in_vain(lab: Lab, tmp_path: Path) -> None:
    ground, walled, inside = world(lab, tmp_path)
    listening = ground.listen(walled)
    exchanged(ground, inside, listening)
    assert ground.path_to(inside, listening.address) == "punched"
    port, packets = shut_port(ground, walled), dialled(walled)
    broker = lab.nodes["public"].address
    assert f"{broker} . {port}" in packets, "or nobody has looked"
    assert f"{inside.observed_address} . " in packets, "or nothing was shown"
    assert f"{inside.observed_address} . {port}" not in packets


def test_a_shut_connector_waits_for_nobody_to_dial_it(lab: Lab, tmp_path: Path) -> None:
    ground, walled, inside = world(lab, tmp_path)
    listening = ground.listen(inside)
    exchanged(ground, walled, listening)
    assert ground.path_to(walled, listening.address) == "punched"
    assert shut_port(ground, walled)
    assert "no reverse path, since this agent's port is shut" in ground.log_of(walled).read_text()


def test_a_firewall_that_opens_is_noticed(lab: Lab, tmp_path: Path) -> None:
    ground, walled, inside = world(lab, tmp_path, GCB_LIFETIME="3")
    listening = ground.listen(walled)
    shut_port(ground, walled)
    walled.open("1024-65535")
    until = time.monotonic() + HANG_S
    while ground.path_to(inside, listening.address) != "direct" and time.monotonic() < until:
        exchanged(ground, inside, listening)
    assert ground.path_to(inside, listening.address) == "direct"
    assert "is reached again" in ground.log_of(walled).read_text()
