"""dpfd on real gateways: what the kernel forwards, for whom, and for how long."""

import hashlib
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gcbpatch.addresses import GATEWAY_PORT, Address, format_address, parse_host_port
from gcbpatch.errors import RefusedError
from gcbpatch.wire.messages import Command, ForwardReply
from tests.loopback.gateway_client import GatewayClient, Management, random_id
from tests.netns.gateway_extra import require
from tests.netns.lab import Gateway, Host, Lab, Node, Program
from tests.netns.lab.program import HANG_LIMIT
from tests.netns.talk import dial, listen, outcome


@pytest.fixture(autouse=True)
def gateway_extra() -> None:
    """All of this needs python-iptables."""
    require()

INSIDE = "10.1.0.0/24"
ROOT = "-j DPFD"


def start(gateway: Gateway, mirror: Path, *flags: str, ready: bool = True) -> Program:
    """dpfd on a gateway."""
    argv = [sys.executable, "-m", "dpfd", "--private", gateway.inside_interface]
    argv += ["--public", gateway.public_interface, "--mirror", str(mirror)]
    argv += ["--backend", "iptables", *flags]
    daemon = gateway.popen(argv, privileged=True)
    if ready:
        line = daemon.wait_line("^dpfd ready on (.*)$")
        assert line[1] == f"{gateway.inside_address}:{GATEWAY_PORT}"
    return daemon


def flush(gateway: Gateway, mirror: Path) -> None:
    argv = [sys.executable, "-m", "dpfd", "--flush", "--mirror", str(mirror)]
    gateway.run(argv, privileged=True)


def iptables(gateway: Gateway, *args: str, table: str = "nat", which: str = "legacy") -> str:
    argv = [f"iptables-{which}", "-w", "-t", table, *args]
    return gateway.run(argv, privileged=True).stdout


def forwards(gateway: Gateway) -> list[str]:
    """The rules [A:B > X:Y] in dpfd's chains."""
    pattern = r"-A DPFD-\S+ -d (\S+)/32 .*--dport (\d+) -j DNAT --to-destination (\S+)"
    found = re.findall(pattern, iptables(gateway, "-S"))
    return sorted(f"{host}:{port} > {inside}" for host, port, inside in found)


class Client:
    """A host inside with a listener, a management socket and a command session."""

    def __init__(self, host: Host, gateway: Gateway, port: int = 0) -> None:
        self.host = host
        self.server: Address = (gateway.inside_address, GATEWAY_PORT)
        self.listener = listen(host, port)
        self.inside: Address = (host.address, self.listener.getsockname()[1])
        self.management = Management(host.address, host.socket())
        self.id = random_id()
        self.session = self.reconnect(random_id())

    def reconnect(self, client: bytes | None = None) -> GatewayClient:
        link = dial(self.host, *self.server)
        known = client or self.session.client
        self.session = GatewayClient(self.server, client=known, link=link)
        self.session.open()
        return self.session

    def forward(self, **wishes: object) -> Address:
        return self._forward(**wishes).public.address

    def _forward(self, **wishes: object) -> ForwardReply:
        return self.session.forward(self.id, self.inside, self.management, **wishes)  # type: ignore[arg-type]

    def accept(self) -> tuple[socket.socket, Address]:
        connection, peer = self.listener.accept()
        connection.settimeout(HANG_LIMIT)
        return connection, peer


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return tmp_path / "mirror.db"


@pytest.fixture
def pub(lab: Lab) -> Host:
    return lab.host("pub")


@pytest.fixture
def gateway(lab: Lab) -> Gateway:
    return lab.gateway("ga", inside=INSIDE, unsolicited="drop")


@pytest.fixture
def daemon(gateway: Gateway, mirror: Path) -> Iterator[Program]:
    yield start(gateway, mirror)


@pytest.fixture
def client(gateway: Gateway, daemon: Program) -> Client:
    return Client(gateway.host("a"), gateway)


def carries(node: Node, public: Address, client: Client) -> Address:
    """Connect, move bytes both ways, compare; return the peer address that the client saw."""
    near = dial(node, *public)
    far, peer = client.accept()
    with near, far:
        for sender, receiver in ((near, far), (far, near)):
            data = os.urandom(1 << 20)
            pump = threading.Thread(target=send_all, args=(sender, data), daemon=True)
            pump.start()
            assert hashlib.sha256(read_all(receiver)).digest() == hashlib.sha256(data).digest()
            pump.join(HANG_LIMIT)
    return peer


def send_all(link: socket.socket, data: bytes) -> None:
    link.sendall(data)
    link.shutdown(socket.SHUT_WR)


def read_all(link: socket.socket) -> bytes:
    return b"".join(iter(lambda: link.recv(65536), b""))


def echoes(near: socket.socket, far: socket.socket) -> bool:
    near.sendall(b"still there?")
    return far.recv(100) == b"still there?"


def test_a_public_host_reaches_a_mapped_port(pub: Host, gateway: Gateway, client: Client) -> None:
    public = client.forward()
    assert public[0] == gateway.public_address
    assert carries(pub, public, client)[0] == pub.address


def test_the_same_port_is_given_where_it_is_wished(
    lab: Lab, gateway: Gateway, daemon: Program, pub: Host
) -> None:
    client = Client(gateway.host("a"), gateway, 20123)
    assert client.forward(wished=("0.0.0.0", 20123)) == (gateway.public_address, 20123)
    carries(pub, (gateway.public_address, 20123), client)


def test_all_of_it_works_without_being_root(tmp_path: Path, any_lab: Lab) -> None:
    gateway, pub = any_lab.gateway("ga", inside=INSIDE), any_lab.host("pub")
    daemon = start(gateway, tmp_path / "mirror")
    client = Client(gateway.host("a"), gateway)
    assert carries(pub, client.forward(), client)[0] == pub.address
    assert daemon.terminate() == 0
    flush(gateway, tmp_path / "mirror")
    assert "DPFD" not in iptables(gateway, "-S")


def test_unforward_removes_the_rule(pub: Host, gateway: Gateway, client: Client) -> None:
    public = client.forward()
    assert forwards(gateway) == [f"{format_address(public)} > {format_address(client.inside)}"]
    near = dial(pub, *public)
    far, _ = client.accept()
    client.session.unforward(client.id)
    assert forwards(gateway) == []
    assert outcome(pub, *public, patience=1.0) == "silence"
    assert echoes(near, far)  # what is established lives on


def test_the_chains_of_a_block_come_and_go(gateway: Gateway, client: Client) -> None:
    ports = (20480, 20735, 20736)  # the first two are of one block
    ids = {port: random_id() for port in ports}
    for port in ports:
        wish = (gateway.public_address, port)
        client.session.forward(ids[port], client.inside, client.management, wished=wish)
    assert len(re.findall("^-N DPFD-[0-9A-F]{8}-", iptables(gateway, "-S"), re.M)) == 2
    for port, left in zip(ports, (2, 1, 0), strict=True):
        client.session.unforward(ids[port])
        assert len(re.findall("^-N DPFD-[0-9A-F]{8}-", iptables(gateway, "-S"), re.M)) == left


def test_neighbours_and_the_gateway_itself_use_the_public_address(
    gateway: Gateway, client: Client
) -> None:
    public = client.forward()
    # RFC 5382, REQ-8: who comes from inside is seen under the public address.
    assert carries(gateway.host("b"), public, client)[0] == public[0]
    assert carries(client.host, public, client)[0] == public[0]
    carries(gateway, public, client)


def test_a_neighbour_may_ask_who_is_behind_a_public_address(
    gateway: Gateway, client: Client
) -> None:
    public = client.forward()
    neighbour = Client(gateway.host("b"), gateway)
    assert neighbour.session.query(public) == client.inside
    carries(neighbour.host, client.inside, client)


def test_a_host_may_not_map_another(gateway: Gateway, client: Client) -> None:
    victim = gateway.host("b").address, 22
    with pytest.raises(RefusedError, match="NOT_AUTHORIZED"):
        client.session.forward(random_id(), victim, client.management)
    assert forwards(gateway) == []


def test_commands_are_taken_on_the_private_side_only(lab: Lab, mirror: Path) -> None:
    gateway, pub = lab.gateway("ga", inside=INSIDE, unsolicited="accept"), lab.host("pub")
    gateway.space.nft("flush chain inet lab leak")  # answers from inside addresses may get out
    start(gateway, mirror)
    pub.run(["ip", "route", "add", INSIDE, "via", gateway.public_address], privileged=True)
    for host in (gateway.public_address, gateway.inside_address):
        assert outcome(pub, host, GATEWAY_PORT) == "ECONNREFUSED"


def test_a_killed_clients_rule_is_gone_within_its_lifetime(
    gateway: Gateway, daemon: Program
) -> None:
    host = gateway.host("a")
    argv = [sys.executable, "-m", "tests.loopback.gateway_client"]
    argv += [f"{gateway.inside_address}:{GATEWAY_PORT}", host.address]
    program = host.popen([*argv, "--lifetime", "3", "--renew", "0.5"])
    mapped = program.wait_line("^mapped (.*)$")[1]
    daemon.wait_line(re.escape(mapped) + r" > .* set", stream="stderr")
    program.kill()
    daemon.wait_line(re.escape(mapped) + r" > .* removed", stream="stderr")
    assert forwards(gateway) == []


def test_a_killed_dpfd_is_not_missed_and_comes_back_with_everything(
    gateway: Gateway, daemon: Program, client: Client, mirror: Path, pub: Host
) -> None:
    public = client.forward()
    near = dial(pub, *public)
    far, _ = client.accept()
    before = forwards(gateway)
    daemon.kill()
    assert echoes(near, far)
    carries(pub, public, client)
    again = start(gateway, mirror)
    client.management.wait_for_proof()
    assert client.reconnect().renew(client.id).lost == []
    assert client.forward() == public
    assert forwards(gateway) == before
    assert echoes(far, near)
    carries(pub, public, client)
    assert again.terminate() == 0


def test_dpfd_killed_at_any_moment_keeps_its_word(
    gateway: Gateway, daemon: Program, client: Client, mirror: Path
) -> None:
    acknowledged: dict[bytes, Address] = {}
    for killed_after in (1, 4, 9):
        goal = len(acknowledged) + killed_after
        forward_one_too_many(client, acknowledged, goal)
        daemon.kill()  # while the last request is somewhere between table, mirror and kernel
        client.session.close()
        daemon = start(gateway, mirror)
        client.reconnect()
        assert client.session.renew(*acknowledged).lost == []
        held = {rule.partition(" ")[0] for rule in forwards(gateway)}
        assert held >= {format_address(public) for public in acknowledged.values()}
        for public in held:  # what the kernel has, the table has
            assert client.session.query(parse_host_port(public, 0)) == client.inside


def forward_one_too_many(client: Client, acknowledged: dict[bytes, Address], goal: int) -> None:
    """Have mappings acknowledged, and ask for one more without waiting for the answer."""
    while len(acknowledged) < goal:
        listener = random_id()
        reply = client.session.forward(listener, client.inside, client.management)
        acknowledged[listener] = reply.public.address
    one_more = client.session.forward_request(random_id(), client.inside, client.management)
    client.session.send(Command.FORWARD, one_more)


def test_rules_stay_when_dpfd_ends_until_they_are_flushed(
    gateway: Gateway, daemon: Program, client: Client, mirror: Path, pub: Host
) -> None:
    public = client.forward()
    for number in (signal.SIGTERM, signal.SIGINT):
        daemon.signal(number)
        assert daemon.wait() == 0
        carries(pub, public, client)
        daemon = start(gateway, mirror)
    argv = [sys.executable, "-m", "dpfd", "--flush", "--mirror", str(mirror)]
    refused = gateway.run(argv, privileged=True, check=False)
    assert (refused.returncode, "another dpfd" in refused.stderr) == (2, True)
    carries(pub, public, client)
    daemon.terminate()
    flush(gateway, mirror)
    assert outcome(pub, *public, patience=1.0) == "silence"
    start(gateway, mirror)
    assert forwards(gateway) == []
    assert client.reconnect().renew(client.id).lost == [client.id]


def everything(gateway: Gateway) -> str:
    """All rules of both firewall worlds, without counters and handles."""
    worlds = [iptables(gateway, "-S", table=table) for table in ("nat", "filter", "mangle")]
    worlds.append(gateway.run(["nft", "-s", "list", "ruleset"], privileged=True).stdout)
    return "\n".join(worlds)


def test_others_rules_are_never_touched(
    gateway: Gateway, mirror: Path, tmp_path: Path, pub: Host
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
    daemon = start(gateway, mirror)
    client = Client(gateway.host("a"), gateway)
    carries(pub, client.forward(), client)
    assert everything(gateway) != before
    assert daemon.terminate() == 0
    flush(gateway, mirror)
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


@pytest.mark.parametrize("strict", [legacy_drop, debian_drop, nft_drop, nft_reject])
def test_forwarded_connections_pass_strict_forward_chains(
    strict: Callable[[Gateway], None], gateway: Gateway, mirror: Path, pub: Host
) -> None:
    strict(gateway)
    everything(gateway)  # to look at a legacy table is to make it
    daemon = start(gateway, mirror)
    client = Client(gateway.host("a"), gateway)
    public = client.forward()
    carries(pub, public, client)
    accepted = everything(gateway)
    assert daemon.terminate() == 0
    daemon = start(gateway, mirror)  # nothing is put in twice
    assert everything(gateway) == accepted
    if strict is debian_drop:
        assert "-A FORWARD" in iptables(gateway, "-S", table="filter", which="nft")


def test_what_dpfd_did_not_forward_is_still_dropped(
    gateway: Gateway, mirror: Path, pub: Host
) -> None:
    nft_drop(gateway)
    start(gateway, mirror, "--ports", "20000-20099")
    host = gateway.host("a")
    listener = listen(host, 80)
    gateway.forward(30000, host, 80)  # an administrator's, outside of dpfd's ports
    assert outcome(pub, gateway.public_address, 30000, patience=1.0) == "silence"
    listener.close()


def test_a_firewall_reload_is_put_right_on_sighup(
    gateway: Gateway, daemon: Program, client: Client, pub: Host
) -> None:
    public = client.forward()
    for damage in (["-F"], ["-F", "DPFD"], ["-D", "PREROUTING", *ROOT.split()]):
        iptables(gateway, *damage)
        assert outcome(pub, *public, patience=1.0) == "silence"
        daemon.signal(signal.SIGHUP)
        assert repaired(pub, public)
        carries(pub, public, flushed(client))


def repaired(pub: Host, public: Address) -> bool:
    """Dial until somebody answers; SIGHUP has no ready line, and a lost SYN is sent again."""
    return outcome(pub, *public) == "connected"


def flushed(client: Client) -> Client:
    """Take what was dialled in between off the listener."""
    connection, _ = client.accept()
    connection.close()
    return client


def test_ports_run_out(gateway: Gateway, mirror: Path) -> None:
    start(gateway, mirror, "--ports", "20000-20001")
    client = Client(gateway.host("a"), gateway)
    given = set()
    for _ in range(2):
        reply = client.session.forward(random_id(), client.inside, client.management)
        given.add(reply.public.port)
    assert given == {20000, 20001}
    with pytest.raises(RefusedError, match="NO_RESOURCES"):
        client.session.forward(random_id(), client.inside, client.management)
    assert len(forwards(gateway)) == 2


def test_ports_of_others_are_not_given(gateway: Gateway, mirror: Path) -> None:
    busy = listen(gateway, 20000)
    rule = f"-A PREROUTING -d {gateway.public_address} -p tcp --dport 20001:20002 -j DNAT"
    iptables(gateway, *rule.split(), "--to-destination", "10.1.0.9")
    start(gateway, mirror, "--ports", "20000-20003")
    client = Client(gateway.host("a"), gateway)
    assert client.forward(wished=("0.0.0.0", 20001)) == (gateway.public_address, 20003)
    with pytest.raises(RefusedError, match="NO_RESOURCES"):
        client.session.forward(random_id(), client.inside, client.management)
    busy.close()
    reply = client.session.forward(random_id(), client.inside, client.management)
    assert reply.public.port == 20000


def test_several_public_addresses(lab: Lab, gateway: Gateway, mirror: Path, pub: Host) -> None:
    second = gateway.add_address()
    start(gateway, mirror)
    client = Client(gateway.host("a"), gateway)
    assert client.session.open().public == [gateway.public_address, second]
    public = client.forward(wished=(second, 20000))
    assert public == (second, 20000)
    carries(pub, public, client)
    assert carries(gateway.host("b"), public, client)[0] == second


def test_a_mirror_of_somebody_elses_is_refused_and_kept(gateway: Gateway, mirror: Path) -> None:
    mirror.write_text("my diary\n")
    daemon = start(gateway, mirror, ready=False)
    assert daemon.wait() == 2
    (line,) = daemon.stderr.splitlines()
    assert line.startswith(f"dpfd: {mirror}: ")
    assert mirror.read_text() == "my diary\n"
    assert "DPFD" not in iptables(gateway, "-S")


@pytest.mark.parametrize("flag", ["--private", "--public"])
def test_an_interface_that_is_not_there_is_named(gateway: Gateway, mirror: Path, flag: str) -> None:
    daemon = start(gateway, mirror, flag, "lann", ready=False)
    assert daemon.wait() == 2
    (line,) = daemon.stderr.splitlines()
    assert "lann" in line


def test_a_tokens_file_is_read_again_on_sighup(gateway: Gateway, mirror: Path) -> None:
    tokens = mirror.with_name("tokens")
    tokens.write_text("first-token\n")
    daemon = start(gateway, mirror, "--token-file", str(tokens), "--log", "debug")
    host, server = gateway.host("a"), (gateway.inside_address, GATEWAY_PORT)
    GatewayClient(server, token="first-token", link=dial(host, *server)).open()
    tokens.write_text("second-token\n")
    daemon.signal(signal.SIGHUP)
    daemon.wait_line("tokens were read again", stream="stderr")
    GatewayClient(server, token="second-token", link=dial(host, *server)).open()
    with pytest.raises(RefusedError, match="NOT_AUTHORIZED"):
        GatewayClient(server, token="first-token", link=dial(host, *server)).open()


LOOP = """
import subprocess, sys
print("begun", flush=True)
for port in range(1, 101):
    rule = f"-A PREROUTING -p udp --dport {port} -j ACCEPT".split()
    subprocess.run(["iptables-legacy", "-w", "-t", "nat", *rule], check=True)
"""


def test_nothing_is_lost_when_others_write_at_the_same_time(
    gateway: Gateway, client: Client
) -> None:
    other = gateway.popen([sys.executable, "-c", LOOP], privileged=True)
    other.wait_line("begun")
    count = 0
    while count < 60:
        client.session.forward(random_id(), client.inside, client.management)
        count += 1
    assert other.wait() == 0, other.stderr
    assert len(forwards(gateway)) == count
    assert len(re.findall("^-A PREROUTING -p udp", iptables(gateway, "-S"), re.M)) == 100
