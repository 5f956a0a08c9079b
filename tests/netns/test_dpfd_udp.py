"""UDP mappings on real gateways, with either back end: who hears whom, and under which address."""

import socket
import sys
import time
from pathlib import Path

import pytest

from gcbpatch.addresses import GATEWAY_PORT, Address
from gcbpatch.wire.messages import UDP
from tests.loopback.gateway_client import random_id
from tests.netns.gateway_extra import require
from tests.netns.gateway_ground import INSIDE, BackEnd, Client, start
from tests.netns.lab import Gateway, Host, Lab, Node
from tests.netns.lab.program import HANG_LIMIT
from tests.netns.talk import SILENCE, udp


@pytest.fixture(autouse=True)
def gateway_extra() -> None:
    """Half of this needs python-iptables."""
    require()


@pytest.fixture
def gateway(lab: Lab, tmp_path: Path, back_end: BackEnd) -> Gateway:
    """With random ports, so that no source port is right by chance; drops as a firewall does."""
    gateway = lab.gateway("ga", inside=INSIDE, unsolicited="drop", mapping="random")
    gateway.space.nft("add chain inet lab strict { type filter hook forward priority 5; }")
    gateway.space.nft("add rule inet lab strict ct state established,related accept")
    gateway.space.nft('add rule inet lab strict iifname "lan" accept')
    gateway.space.nft("add rule inet lab strict drop")
    start(gateway, tmp_path / "mirror.db", "--backend", back_end.name)
    return gateway


class Listener(Client):
    """A host inside with a mapped UDP socket."""

    def __init__(self, host: Host, gateway: Gateway) -> None:
        super().__init__(host, gateway)
        self.socket = udp(host)
        self.inside = host.address, self.socket.getsockname()[1]
        self.public = self.forward()

    def forward(self, listener: bytes | None = None, **wishes: object) -> Address:
        return super().forward(listener, protocol=UDP, **wishes)

    def hears(self, node: Node | socket.socket, what: bytes = b"hello") -> Address:
        """Have a datagram come to the public address and an answer go back; who it came from."""
        sender = node if isinstance(node, socket.socket) else udp(node)
        sender.sendto(what, self.public)
        data, peer = self.socket.recvfrom(100)
        assert data == what
        self.socket.sendto(b"answer", peer)
        assert sender.recvfrom(100) == (b"answer", self.public)
        return peer


def test_a_udp_listener_has_one_address_for_all_the_world(gateway: Gateway, pub: Host) -> None:
    one = Listener(gateway.host("a"), gateway)
    assert one.public[0] == gateway.public_address
    assert one.hears(pub)[0] == pub.address
    stranger = udp(pub)  # one that has not spoken yet: what the listener sends leaves from there
    one.socket.sendto(b"first", (pub.address, stranger.getsockname()[1]))
    assert stranger.recvfrom(100) == (b"first", one.public)
    # RFC 4787, REQ-9: also for those inside, and those have their own public address if any.
    neighbour = Listener(gateway.host("b"), gateway)
    assert one.hears(neighbour.socket) == neighbour.public
    assert one.hears(gateway.host("c"))[0] == gateway.public_address
    one.hears(one.host)
    one.hears(gateway)
    # Between two inside addresses nothing is translated.
    neighbour.socket.sendto(b"inside", one.inside)
    assert one.socket.recvfrom(100) == (b"inside", neighbour.inside)


def test_a_listener_with_two_mappings_keeps_the_one_that_is_left(
    gateway: Gateway, pub: Host
) -> None:
    one, second = Listener(gateway.host("a"), gateway), random_id()
    other = one.forward(second)
    peer = udp(pub)
    one.hears(pub)
    one.talk.unforward(one.id)
    one.public = other
    one.hears(pub)
    one.socket.sendto(b"again", (pub.address, peer.getsockname()[1]))
    assert peer.recvfrom(100) == (b"again", other)
    one.talk.unforward(second)
    end = time.monotonic() + HANG_LIMIT
    while leaves_from(one, pub.address, peer) == other:  # old flows are ended beside the answer
        assert time.monotonic() < end


def leaves_from(one: Listener, host: str, peer: socket.socket) -> Address:
    one.socket.sendto(b"from where?", (host, peer.getsockname()[1]))
    address: Address = peer.recvfrom(100)[1]
    return address


def test_a_removed_mappings_peers_do_not_reach_the_next_ones_owner_by_old_flows(
    gateway: Gateway, pub: Host
) -> None:
    old = Listener(gateway.host("a"), gateway)
    sender = udp(pub)
    old.hears(sender)
    public = old.public
    old.talk.unforward(old.id)
    old.socket.settimeout(SILENCE)
    new = Listener(gateway.host("b"), gateway)
    new.talk.unforward(new.id)
    assert new.forward(wished=public) == public
    assert comes_to(new.socket, sender, public) == b"for the new one"
    with pytest.raises(TimeoutError):
        while old.socket.recvfrom(100)[0] != b"for the new one":
            pass


def test_the_first_datagram_after_the_answer_is_the_next_owners(
    gateway: Gateway, pub: Host
) -> None:
    hosts, sender = (gateway.host("a"), gateway.host("b")), udp(pub)
    owner = Listener(hosts[0], gateway)
    owner.hears(sender)
    public = owner.public
    for turn in range(1, 11):
        owner.talk.unforward(owner.id)
        owner = Listener(hosts[turn % 2], gateway)
        owner.talk.unforward(owner.id)
        assert owner.forward(wished=public) == public
        sender.sendto(b"%d" % turn, public)
        owner.socket.settimeout(HANG_LIMIT)
        assert owner.socket.recvfrom(100)[0] == b"%d" % turn


def test_flows_of_before_the_mapping_are_led_to_it(gateway: Gateway, pub: Host) -> None:
    """Where the gateway itself takes such datagrams its conntrack knows them from then on."""
    taker, sender = udp(gateway, 20000), udp(pub)
    gateway.open(20000)
    public = gateway.public_address, 20000
    sender.sendto(b"for the gateway", public)
    assert taker.recvfrom(100)[0] == b"for the gateway"
    taker.close()
    new = Listener(gateway.host("a"), gateway)
    new.talk.unforward(new.id)
    assert new.forward(wished=public) == public
    assert comes_to(new.socket, sender, public) == b"for the new one"


def comes_to(listener: socket.socket, sender: socket.socket, public: Address) -> bytes:
    """Send from one and the same port, which conntrack knows, until it arrives."""
    listener.settimeout(0.05)
    end = time.monotonic() + HANG_LIMIT
    while time.monotonic() < end:
        sender.sendto(b"for the new one", public)
        try:
            return bytes(listener.recvfrom(100)[0])
        except TimeoutError:
            continue
    return b""


PROGRAM = """
import gcbpatch
gcbpatch.patch_all()
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("0.0.0.0", 0))
print("bound to %s:%d" % sock.getsockname(), flush=True)
if len(sys.argv) > 1:
    host, _, port = sys.argv[1].partition(":")
    sock.sendto(b"from a neighbour", (host, int(port)))
data, peer = sock.recvfrom(100)
print("got %r from %s:%d" % (data, *peer), flush=True)
sock.sendto(b"answer", peer)
"""


def test_patched_programs_inside_know_each_other_by_their_public_addresses(
    gateway: Gateway, pub: Host
) -> None:
    env = {"DPF_SERVER": f"{gateway.inside_address}:{GATEWAY_PORT}"}
    argv = [sys.executable, "-c", PROGRAM]
    first = gateway.host("a").popen(argv, env=env)
    name = first.wait_line("^bound to (.*)$")[1]
    assert name.startswith(f"{gateway.public_address}:")
    second = gateway.host("b").popen([*argv, name], env=env)
    own = second.wait_line("^bound to (.*)$")[1]
    assert first.wait_line("^got b'from a neighbour' from (.*)$")[1] == own
    assert second.wait_line("^got b'answer' from (.*)$")[1] == name
    assert (first.wait(), second.wait()) == (0, 0)
