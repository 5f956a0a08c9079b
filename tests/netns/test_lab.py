"""What the lab promises of its networks, one sentence each, shown with real sockets on real NAT.

Tests that depend on how the lab enters its namespaces run twice: with the rights of this
process, and inside a user namespace as for an ordinary user.
"""

import errno
import re
import socket

import pytest

from tests.netns.lab import Gateway, Host, Lab, LabError, Node
from tests.netns.lab.program import HANG_LIMIT
from tests.netns.talk import SILENCE, dial, listen, outcome, udp


def udp_answer(node: Node, address: str, port: int) -> str:
    """The name of the error that an unsolicited datagram brings back."""
    with udp(node) as sender:
        sender.connect((address, port))
        sender.send(b"?")
        with pytest.raises(OSError) as caught:
            sender.recv(10)
    assert caught.value.errno is not None
    return errno.errorcode[caught.value.errno]


def dropped_at(node: Node) -> int:
    """How many packets the node's firewall has dropped or rejected."""
    listing = node.run(["nft", "list", "chain", "inet", "lab", "input"], privileged=True).stdout
    return sum(int(count) for count in re.findall(r"counter packets (\d+)", listing))


def tcp_seen_from(host: Host, targets: list[Host], port: int, own_port: int) -> list[int]:
    """The ports under which the targets see the connections of one local port."""
    seen = []
    for target in targets:
        listener = listen(target, port)
        with dial(host, target.address, port, own_port=own_port):
            connection, peer = listener.accept()
            connection.close()
        assert peer[0] == host.observed_address
        seen.append(peer[1])
        # The same local port must be free for the next target: reset, no TIME_WAIT.
    return seen


def udp_seen_from(host: Host, targets: list[Host], port: int, own_port: int) -> list[int]:
    """The ports under which the targets see the datagrams of one socket."""
    sender = udp(host, own_port)
    seen = []
    for target in targets:
        receiver = udp(target, port)
        sender.sendto(b"who am I?", (target.address, port))
        _, peer = receiver.recvfrom(100)
        assert peer[0] == host.observed_address
        seen.append(peer[1])
        receiver.sendto(b"answer", peer)
        assert sender.recv(100) == b"answer"
    return seen


class TestAddresses:
    def test_public_hosts_have_test_net_addresses_and_reach_each_other(self, lab: Lab) -> None:
        one, two = lab.host("one"), lab.host("two")
        assert [one.address, two.address] == ["198.51.100.1", "198.51.100.2"]
        listen(two, 80)
        assert outcome(one, two.address, 80) == "connected"

    def test_inside_reaches_outside_under_the_address_of_its_gateway(self, any_lab: Lab) -> None:
        public = any_lab.host("pub")
        gateway = any_lab.gateway("ga", inside="10.1.0.0/24")
        inner = gateway.host("a")
        assert (gateway.inside_address, inner.address) == ("10.1.0.1", "10.1.0.2")
        assert inner.observed_address == gateway.public_address == "198.51.100.2"
        listener = listen(public, 80)
        with dial(inner, public.address, 80) as connector:
            connection, peer = listener.accept()
            assert peer[0] == gateway.public_address
            connection.sendall(b"hello")
            assert connector.recv(10) == b"hello"

    def test_two_gateways_may_use_the_same_inside_network(self, lab: Lab) -> None:
        public = lab.host("pub")
        inner = [lab.gateway("ga").host("a"), lab.gateway("gb").host("b")]
        assert inner[0].address == inner[1].address == "10.0.0.2"
        listener = listen(public, 80)
        seen = []
        for host in inner:
            with dial(host, public.address, 80):
                seen.append(listener.accept()[1][0])
        assert seen == [host.observed_address for host in inner]
        assert len(set(seen)) == 2

    def test_hosts_behind_one_gateway_reach_each_other_directly(self, lab: Lab) -> None:
        gateway = lab.gateway("ga")
        one, two = gateway.host("one"), gateway.host("two")
        listener = listen(two, 80)
        with dial(one, two.address, 80):
            assert listener.accept()[1][0] == one.address

    def test_dual_stack_listeners_work_though_links_have_no_ipv6(self, lab: Lab) -> None:
        one, two = lab.host("one"), lab.host("two")
        listener = two.socket(family=socket.AF_INET6)
        listener.settimeout(HANG_LIMIT)
        listener.bind(("::", 80))
        listener.listen()
        with dial(one, two.address, 80):
            assert listener.accept()[1][0] == f"::ffff:{one.address}"

    def test_private_address_is_not_reachable_from_outside(self, lab: Lab) -> None:
        public = lab.host("pub")
        inner = lab.gateway("ga", unsolicited="accept").host("a")
        listen(inner, 80)
        assert outcome(public, inner.address, 80, SILENCE) == "silence"

    def test_node_takes_further_addresses_of_its_network(self, lab: Lab) -> None:
        one, two = lab.host("one"), lab.host("two")
        listen(two, 80)
        assert outcome(one, two.add_address(), 80) == "connected"

    def test_nested_nat_shows_the_outermost_address(self, any_lab: Lab) -> None:
        public = any_lab.host("pub")
        provider = any_lab.gateway("isp", inside="100.64.0.0/24")
        home = any_lab.gateway("home", inside="10.3.0.0/24", uplink=provider)
        inner = home.host("a")
        assert home.public_address == "100.64.0.2"
        assert inner.observed_address == home.observed_address == provider.public_address
        listener = listen(public, 80)
        with dial(inner, public.address, 80):
            assert listener.accept()[1][0] == provider.public_address

    def test_segments_are_one_router_hop_apart(self, lab: Lab) -> None:
        inner = lab.gateway("ga").host("a")
        near, far = lab.host("near"), lab.host("far", uplink=lab.segment())
        assert far.address == "203.0.113.1"
        sender = udp(inner)
        for target, hops in ((near, 2), (far, 3)):
            receiver = udp(target, 9)
            for ttl in (hops - 1, hops):
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
                sender.sendto(str(ttl).encode(), (target.address, 9))
            # Order is kept on the way, so the first one never comes.
            assert receiver.recv(10) == str(hops).encode()


class TestUnsolicited:
    @pytest.mark.parametrize(
        ("policy", "expected"),
        [("drop", "silence"), ("reject", "EHOSTUNREACH"), ("rst", "ECONNREFUSED")],
    )
    @pytest.mark.parametrize("kind", ["gateway", "host"])
    def test_connect_meets_the_policy(
        self, lab: Lab, policy: str, expected: str, kind: str
    ) -> None:
        public, target = lab.host("pub"), guarded(lab, policy, kind)
        listen(target, 80)
        before = dropped_at(target)
        patience = SILENCE if expected == "silence" else HANG_LIMIT
        assert outcome(public, target.address, 80, patience) == expected
        assert dropped_at(target) > before

    @pytest.mark.parametrize(
        ("policy", "expected"), [("reject", "EHOSTUNREACH"), ("rst", "ECONNREFUSED")]
    )
    def test_datagram_meets_the_policy(self, lab: Lab, policy: str, expected: str) -> None:
        public, target = lab.host("pub"), guarded(lab, policy, "gateway")
        udp(target, 53)
        assert udp_answer(public, target.address, 53) == expected

    def test_datagram_is_dropped_where_the_policy_is_drop(self, lab: Lab) -> None:
        public, target = lab.host("pub"), guarded(lab, "drop", "gateway")
        receiver = udp(target, 53)
        sender = udp(public)
        sender.sendto(b"unsolicited", (target.address, 53))
        target.open(53)
        sender.sendto(b"let in", (target.address, 53))
        assert receiver.recv(100) == b"let in"

    @pytest.mark.parametrize("policy", ["drop", "reject", "rst"])
    def test_open_ports_let_in(self, lab: Lab, policy: str) -> None:
        public, target = lab.host("pub"), guarded(lab, policy, "gateway")
        target.open(80, "1000-1999")
        listen(target, 80)
        listen(target, 1500)
        assert outcome(public, target.address, 80) == "connected"
        assert outcome(public, target.address, 1500) == "connected"

    def test_firewalled_host_reaches_out(self, lab: Lab) -> None:
        public, walled = lab.host("pub"), lab.host("fw", firewall="drop")
        listener = listen(public, 80)
        with dial(walled, public.address, 80):
            assert listener.accept()[1][0] == walled.address

    def test_gateway_lets_its_inside_use_its_own_services(self, lab: Lab) -> None:
        gateway = lab.gateway("ga", unsolicited="drop")
        inner = gateway.host("a")
        listen(gateway, 80)
        assert outcome(inner, gateway.inside_address, 80) == "connected"
        assert outcome(inner, gateway.public_address, 80) == "connected"

    def test_static_forwarding_passes_the_gateway(self, lab: Lab) -> None:
        public = lab.host("pub")
        gateway = lab.gateway("ga", unsolicited="drop")
        inner = gateway.host("a")
        gateway.forward(8080, inner, 80)
        listener = listen(inner, 80)
        with dial(public, gateway.public_address, 8080):
            assert listener.accept()[1][0] == public.address

    def test_legacy_iptables_of_a_daemon_work_beside_the_lab(self, any_lab: Lab) -> None:
        public = any_lab.host("pub")
        gateway = any_lab.gateway("ga", unsolicited="drop", mapping="random")
        inner = gateway.host("a")
        mapped = f"{gateway.public_address}:8080"
        inside = f"{inner.address}:80"
        for rule in (
            f"PREROUTING -d {gateway.public_address} -p tcp --dport 8080 "
            f"-j DNAT --to-destination {inside}",
            f"POSTROUTING -o wan -s {inner.address} -p udp --sport 80 -j SNAT --to-source {mapped}",
        ):
            argv = ["iptables-legacy", "-t", "nat", "-A", *rule.split()]
            gateway.run(argv, privileged=True)
        listener = listen(inner, 80)
        with dial(public, gateway.public_address, 8080):
            assert listener.accept()[1][0] == public.address
        assert udp_seen_from(inner, [public], 53, own_port=80) == [8080]


def guarded(lab: Lab, policy: str, kind: str) -> Gateway | Host:
    """A node on the public segment that treats unsolicited packets so."""
    if kind == "host":
        return lab.host("target", firewall=policy)  # type: ignore[arg-type]
    return lab.gateway("target", unsolicited=policy)  # type: ignore[arg-type]


class TestMapping:
    def test_preserving_keeps_the_port_for_every_destination(self, lab: Lab) -> None:
        targets = [lab.host("one"), lab.host("two")]
        inner = lab.gateway("ga", mapping="preserving").host("a")
        assert tcp_seen_from(inner, targets, 80, own_port=5001) == [5001, 5001]
        assert udp_seen_from(inner, targets, 80, own_port=5001) == [5001, 5001]

    def test_random_takes_another_port_for_every_destination(self, any_lab: Lab) -> None:
        targets = [any_lab.host(name) for name in ("one", "two", "three")]
        inner = any_lab.gateway("ga", mapping="random").host("a")
        # One coincidence in 60000 would be bad luck, two are a broken lab.
        assert len({5001, *tcp_seen_from(inner, targets, 80, own_port=5001)}) > 2
        assert len({5001, *udp_seen_from(inner, targets, 80, own_port=5001)}) > 2

    def test_two_hosts_with_the_same_port_get_different_ones(self, lab: Lab) -> None:
        public = lab.host("pub")
        gateway = lab.gateway("ga", mapping="preserving")
        listener = listen(public, 80)
        seen = set()
        for inner in (gateway.host("a"), gateway.host("b")):
            dial(inner, public.address, 80, own_port=5001)
            seen.add(listener.accept()[1][1])
        assert 5001 in seen and len(seen) == 2

    def test_answers_come_only_from_where_was_sent(self, lab: Lab) -> None:
        asked, stranger = lab.host("asked"), lab.host("stranger")
        inner = lab.gateway("ga", unsolicited="drop").host("a")
        sender, receiver = udp(inner, 5001), udp(asked, 53)
        sender.sendto(b"question", (asked.address, 53))
        _, mapped = receiver.recvfrom(100)
        udp(stranger, 53).sendto(b"intrusion", mapped)
        receiver.sendto(b"answer", mapped)
        assert sender.recv(100) == b"answer"


class TestBlockedUdp:
    @pytest.mark.parametrize("blocked", ["host", "gateway", "public host"])
    def test_udp_vanishes_and_tcp_passes(self, any_lab: Lab, blocked: str) -> None:
        public = any_lab.host("pub")
        if blocked == "public host":
            mute = any_lab.host("mute", block_udp=True)
        elif blocked == "host":
            mute = any_lab.gateway("ga").host("mute", block_udp=True)
        else:
            mute = any_lab.gateway("ga", block_udp=True).host("mute")
        receiver, listener = udp(public, 53), listen(public, 80)
        udp(mute).sendto(b"into the void", (public.address, 53))
        dial(mute, public.address, 80)
        listener.accept()
        # The handshake was later and is done: the datagram would be here.
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(100)


class TestMistakes:
    def test_names_are_unique(self, lab: Lab) -> None:
        lab.host("one")
        with pytest.raises(LabError, match="already a node named 'one'"):
            lab.gateway("one")

    def test_unknown_words_are_refused_with_the_right_ones(self, lab: Lab) -> None:
        with pytest.raises(LabError, match="'deny' is none of accept, drop, reject, rst"):
            lab.gateway("ga", unsolicited="deny")  # type: ignore[arg-type]
        with pytest.raises(LabError, match="'cone' is none of preserving, random"):
            lab.gateway("gb", mapping="cone")  # type: ignore[arg-type]

    def test_networks_must_be_networks_with_room(self, lab: Lab) -> None:
        with pytest.raises(LabError, match="no IPv4 network"):
            lab.gateway("ga", inside="10.0.0.7/24")
        with pytest.raises(LabError, match="too small"):
            lab.gateway("gb", inside="10.0.0.0/30")
        gateway = lab.gateway("gc", inside="10.0.0.0/29")
        for number in range(5):
            gateway.host(f"h{number}")
        with pytest.raises(LabError, match="no free address"):
            gateway.host("one too many")

    def test_there_are_three_public_segments(self, lab: Lab) -> None:
        lab.segment()
        lab.segment()
        with pytest.raises(LabError, match="only 3"):
            lab.segment()
