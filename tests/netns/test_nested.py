"""NATs behind NATs, brokers on gateways, and the same private address in several networks."""

from __future__ import annotations

from pathlib import Path

import pytest

from gcbpatch.agent.memory import HOPELESS
from tests.netns.lab import Gateway, Host, Lab, Program
from tests.netns.pairs import ADDRESS, Ground, exchanged

STRANGER = """
    import socket
    listener = socket.create_server(("", 7000))
    print("ready", flush=True)
    while True:
        sock, _ = listener.accept()
        print("heard", sock.recv(4096).hex(), flush=True)
        sock.sendall(b"It is me whom you want!")
        sock.close()
"""
ONE_AFTER_THE_OTHER = """
    import socket
    for address in {addresses}:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=20) as sock:
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
            assert sock.makefile("rb").read() == b"olleh"
"""
SAME = "10.0.0.0/24"


def home(lab: Lab, name: str, uplink: Gateway | None = None) -> Gateway:
    """A gateway whose network is the one that all homes have."""
    return lab.gateway(name, inside=SAME, uplink=uplink or lab.segment())


@pytest.fixture
def ground(lab: Lab, tmp_path: Path) -> Ground:
    """A broker in public."""
    ground = Ground(lab, tmp_path)
    ground.broker(lab.host("public"))
    return ground


def far_broker(lab: Lab, tmp: Path) -> Ground:
    """One 25 ms away, so that there is time for something better than its relay."""
    ground = Ground(lab, tmp)
    ground.broker(lab.host("public", delay_ms=25))
    return ground


def ours(ground: Ground, *hosts: Host) -> None:
    """Have the programs of these hosts patched, with the broker in public."""
    for host in hosts:
        ground.use_broker(host, ground.lab.nodes["public"].address)


def stranger(ground: Ground, host: Host) -> Program:
    """Have whatever is connected to on a host end at somebody who is not meant."""
    host.space.nft(
        "table ip astray {\nchain in {\ntype nat hook prerouting priority dstnat;\n"
        "tcp dport 1-65535 redirect to :7000\n}\n}"
    )
    program = ground.script(host, STRANGER)
    program.wait_line("ready")
    return program


@pytest.mark.parametrize("carrier", ["the same carrier's", "different"])
def test_the_same_private_address_in_two_networks_is_never_mistaken(
    ground: Ground, carrier: str
) -> None:
    """The listener's agent is at 10.0.0.2; so is somebody else, in the connector's network."""
    same = carrier == "the same carrier's"
    provider = ground.lab.gateway("provider", inside="100.64.0.0/24") if same else None
    here, there = home(ground.lab, "here", provider), home(ground.lab, "there", provider)
    listener, other, connector = here.host("listener"), there.host("other"), there.host("connector")
    assert listener.address == other.address
    heard = stranger(ground, other)
    ours(ground, listener, connector)
    listening = ground.listen(listener)
    mine, theirs = exchanged(ground, connector, listening)
    assert ":".join(map(str, mine["getpeername"])) == listening.address
    assert theirs["peer"][0] == connector.observed_address
    assert ground.path_to(connector, listening.address) == ("relayed" if same else "punched")
    if same:  # or nothing was shown
        assert bytes.fromhex(heard.wait_line("heard (.*)").group(1)).startswith(b"GB")
    else:
        assert "heard" not in heard.stdout


def test_who_is_nearer_to_their_common_carrier_is_dialled(lab: Lab, tmp_path: Path) -> None:
    ground = far_broker(lab, tmp_path)
    provider = lab.gateway("provider", inside="100.64.0.0/24")
    inner = home(lab, "home", provider).host("inner")
    outer = provider.host("outer")
    ours(ground, inner, outer)
    for connector, listener, path in ((outer, inner, "reverse"), (inner, outer, "local")):
        listening = ground.listen(listener)
        exchanged(ground, connector, listening)
        assert ground.path_to(connector, listening.address) == path


def test_a_broker_on_a_gateway_joins_its_own_hosts_with_those_of_other_networks(
    lab: Lab, tmp_path: Path
) -> None:
    """Hosts behind it use its inside address, others its public one: all are its clients."""
    ground = Ground(lab, tmp_path)
    gateway = lab.gateway("gateway", inside="10.1.0.0/24")
    gateway.open(65432, "10000-65535")
    ground.broker(gateway)
    inside, neighbour = gateway.host("inside"), gateway.host("neighbour")
    far, other, public = home(lab, "far").host("b"), home(lab, "other").host("c"), lab.host("d")
    for host in (inside, neighbour):
        ground.use_broker(host, gateway.inside_address)
    for host in (far, other, public):
        ground.use_broker(host, gateway.address)
    listening = {host: ground.listen(host) for host in (inside, far)}
    for connector, listener, path in (
        (neighbour, inside, "local"), (far, inside, "relayed"), (public, inside, "reverse"),
        (inside, far, "relayed"), (other, far, "punched"), (public, far, "reverse"),
    ):
        address = listening[listener].address
        assert address.startswith(f"{gateway.address}:")
        exchanged(ground, connector, listening[listener])
        assert ground.path_to(connector, address) == path, (connector.name, listener.name)


def test_what_fails_between_two_networks_is_not_tried_for_the_next_listener_there(
    ground: Ground,
) -> None:
    """Nothing comes through between the two gateways, which nobody can know before."""
    here, there = home(ground.lab, "here"), home(ground.lab, "there")
    ground.lab.core.nft(
        "table ip cut {\nchain between {\ntype filter hook forward priority 0;\n"
        f"ip saddr {here.address} ip daddr {there.address} drop\n}}\n}}"
    )
    connector, first, second = here.host("a"), there.host("b"), there.host("c")
    ours(ground, connector, first, second)
    listening = [ground.start(host, "crossing") for host in (*[first] * HOPELESS, second)]
    addresses = [program.wait_line(ADDRESS).group(1) for program in listening]
    ground.script(connector, ONE_AFTER_THE_OTHER.format(addresses=addresses)).wait()
    log = ground.log_of(connector).read_text()
    for number, address in enumerate(addresses):
        assert f"connected to {address}: RELAYED," in log
        left_out = f"{address}: no punch, as it came to nothing lately" in log
        assert left_out == (number >= HOPELESS)


def test_a_broker_with_workers_introduces_and_relays(lab: Lab, tmp_path: Path) -> None:
    ground = Ground(lab, tmp_path)
    ground.broker(lab.host("public"), workers=2)
    here, there = home(lab, "here").host("a"), home(lab, "there").host("b")
    random = lab.gateway("random", inside=SAME, mapping="random").host("c")
    ours(ground, here, there, random)
    listening = ground.listen(here)
    for connector, path in ((there, "punched"), (random, "relayed")):
        exchanged(ground, connector, listening)
        assert ground.path_to(connector, listening.address) == path


def test_a_neighbour_with_a_firewall_of_its_own_dials_who_cannot_dial_it(
    lab: Lab, tmp_path: Path
) -> None:
    ground = far_broker(lab, tmp_path)
    gateway = home(lab, "home")
    walled, open_one = gateway.host("walled", firewall="drop"), gateway.host("open")
    ours(ground, walled, open_one)
    for connector, listener, path in ((open_one, walled, "reverse"), (walled, open_one, "local")):
        listening = ground.listen(listener)
        exchanged(ground, connector, listening)
        assert ground.path_to(connector, listening.address) == path


def test_two_with_different_brokers_punch_by_the_listeners(lab: Lab, tmp_path: Path) -> None:
    """Nobody has told the connector of that broker. Its first connect asks, and may be the
    kernel's all the same, if the answer comes later than the handshake ends; the next is not."""
    ground = Ground(lab, tmp_path)
    here, there = home(lab, "here").host("a"), home(lab, "there").host("b")
    for name, host in (("one", here), ("other", there)):
        broker = lab.host(name)
        ground.broker(broker)
        ground.use_broker(host, broker.address)
    for connector, listener in ((there, here), (here, there)):
        address = ground.start(listener, "crossing").wait_line(ADDRESS).group(1)
        ground.script(connector, ONE_AFTER_THE_OTHER.format(addresses=[address] * 2)).wait()
        assert f"connected to {address}: PUNCHED," in ground.log_of(connector).read_text()


@pytest.mark.parametrize(
    ("ports", "path"), [((65432, 65433), "punched"), ((65432,), "relayed")], ids=["open", "shut"]
)
def test_shifted_ports_are_known_by_the_brokers_second_port(
    lab: Lab, tmp_path: Path, ports: tuple[int, ...], path: str
) -> None:
    """Behind a firewall that lets nothing to it they count as dependent on the destination."""
    ground = Ground(lab, tmp_path)
    broker = lab.host("public", firewall="drop")
    broker.open(*ports, "10000-32767")
    ground.broker(broker)
    here, there = (
        lab.gateway(name, inside=SAME, mapping="shifting").host(f"{name}'s")
        for name in ("here", "there")
    )
    ours(ground, here, there)
    listening = ground.listen(here)
    exchanged(ground, there, listening)
    assert ground.path_to(there, listening.address) == path
