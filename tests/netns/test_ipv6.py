"""Hosts of one family and of the other, behind firewalls and NATs, and one broker for all."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from tests.netns.lab import Host, Lab, Program, give_ipv6, ipv6_of, take_ipv4
from tests.netns.lab.program import HANG_LIMIT
from tests.netns.pairs import Ground, exchanged
from tests.netns.talk import SILENCE


class World(Ground):
    """A broker of both families; hosts with IPv4 alone, and with IPv6 alone.

    ``home`` and ``house`` are IPv6 hosts behind routers that let nothing in, ``native`` one that
    is open; ``old`` is behind a NAT.
    """

    def __init__(self, lab: Lab, tmp: Path) -> None:
        super().__init__(lab, tmp)
        self.hub = lab.host("hub")
        gates = [lab.gateway(f"gate-{n}", inside=f"10.{n}.0.0/24") for n in (1, 2, 3)]
        self.home, self.house = gates[0].host("home"), gates[1].host("house")
        self.old, self.native = gates[2].host("old"), lab.host("native")
        give_ipv6(self.hub, *gates[:2], self.home, self.house, self.native)
        take_ipv4(self.home, self.house, self.native)
        self.v4, self.v6 = self.hub.address, ipv6_of(self.hub.address)
        self.brokerd = self.broker_at(self.hub, self.v4, self.v6)
        self.use_broker(self.old, self.v4)
        for one in (self.home, self.house, self.native):
            self.use_broker(one, f"[{self.v6}]")

    def broker_at(self, host: Host, *addresses: str) -> Program:
        """Start a broker with these addresses."""
        argv = [sys.executable, "-m", "brokerd", "--key-file", str(self.tmp / f"{host.name}.key")]
        argv += [word for address in addresses for word in ("--address", address)]
        daemon = host.popen([*argv, "--log", "INFO"])
        daemon.wait_line("^brokerd ready")
        return daemon


@pytest.fixture
def world(lab: Lab, tmp_path: Path) -> World:
    return World(lab, tmp_path)


ONLY, TOO = ("--ipv6", "only"), ("--ipv6", "too")


def test_everybody_reaches_everybody_whatever_families_they_have(world: World) -> None:
    listening = {
        world.home: world.listen(world.home, *ONLY),
        world.old: world.listen(world.old),
    }
    assert listening[world.home].address.startswith(f"[{world.v6}]")
    assert listening[world.old].address.startswith(world.v4)
    # An ordinary program on the broker's host, which has both.
    for one in listening.values():
        exchanged(world, world.hub, one)
    ways = {
        (world.house, world.home): "punched",
        (world.native, world.home): "reverse",
        (world.old, world.home): "relayed",
        (world.house, world.old): "relayed",
        (world.native, world.old): "relayed",
    }
    for (connector, listener), way in ways.items():
        mine, theirs = exchanged(world, connector, listening[listener])
        assert world.path_to(connector, listening[listener].address) == way
        host = listening[listener].address.rpartition(":")[0].strip("[]")
        seen = host if way == "relayed" else ipv6_of(connector.address)
        assert theirs["peer"][0] == theirs["getpeername"][0] == seen
        assert mine["getpeername"][0] == host
        assert len(theirs["peer"]) == len(theirs["name"]) == (4 if ":" in host else 2)


@pytest.mark.parametrize("flags", [ONLY, TOO], ids=["IPv6 alone", "both families"])
def test_a_public_ipv6_host_is_not_brokered_until_it_is_closed_off(
    world: World, flags: tuple[str, str]
) -> None:
    world.settings[world.native.name]["GCB_LIFETIME"] = "3"
    listening = world.listen(world.native, "--port", "9618", *flags)
    assert listening.address == f"[{ipv6_of(world.native.address)}]:9618"
    assert "registered" not in world.brokerd.stderr
    theirs = exchanged(world, world.house, listening)[1]
    assert theirs["peer"][0] == ipv6_of(world.house.address)
    # Answers may go out: only what comes unasked is dropped from now on.
    world.native.space.nft(
        "table inet cut { chain input { type filter hook input priority 0; policy accept; "
        "iifname eth0 tcp dport 9618 ct state new drop; }; }"
    )
    world.brokerd.wait_line("registered", stream="stderr")


def test_datagrams_by_ipv6_come_through_firewalls_by_the_relay(world: World) -> None:
    home = world.script(
        world.home,
        """
        import socket
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind(("", 0))
        print("listening on {} {}".format(*sock.getsockname()), flush=True)
        while True:
            data, peer = sock.recvfrom(2000)
            sock.sendto(data + b" " + peer[0].encode(), peer)
        """,
    )
    host, port = home.wait_line("listening on (.*) (.*)").groups()
    assert host == world.v6
    peer = world.hub.socket(socket.SOCK_DGRAM, socket.AF_INET6)
    peer.settimeout(HANG_LIMIT)
    peer.sendto(b"hello", (host, int(port)))
    data, source = peer.recvfrom(2000)
    assert source[:2] == (host, int(port)) and data == f"hello {world.v6}".encode()
    house = world.script(
        world.house,
        f"""
        import socket
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind(("", 0))
        sock.connect(("{host}", {port}))
        sock.send(b"hello")
        print("heard", sock.recv(2000).decode(), flush=True)
        """,
    )
    # Both have a proxy address, and see each other's.
    assert house.wait_line("heard (.*)").group(1) == f"hello {world.v6}"


def test_who_is_behind_a_router_gets_out_and_nobody_gets_in(any_lab: Lab) -> None:
    public, gateway = any_lab.host("public"), any_lab.gateway("gateway")
    inside = gateway.host("inside")
    give_ipv6(public, gateway, inside)
    take_ipv4(inside)
    listeners = {}
    for node in (public, inside):
        listeners[node.name] = node.socket(family=socket.AF_INET6)
        listeners[node.name].bind(("::", 9618))
        listeners[node.name].listen()
    out = inside.socket(family=socket.AF_INET6)
    out.connect((ipv6_of(public.address), 9618))
    assert listeners["public"].accept()[1][0] == ipv6_of(inside.address)
    into = public.socket(family=socket.AF_INET6)
    into.settimeout(SILENCE)
    with pytest.raises(TimeoutError):
        into.connect((ipv6_of(inside.address), 9618))
    with pytest.raises(OSError, match="unreachable"):
        inside.socket().connect((public.address, 9618))


def test_a_broker_that_nobody_has_configured_is_found_by_its_answer(world: World) -> None:
    far = ipv6_of(world.native.address)
    world.broker_at(world.native, far)
    world.use_broker(world.home, f"[{far}]")
    listening = world.listen(world.home, *ONLY)
    assert listening.address.startswith(f"[{far}]")
    exchanged(world, world.house, listening)
    assert world.path_to(world.house, listening.address) == "punched"
