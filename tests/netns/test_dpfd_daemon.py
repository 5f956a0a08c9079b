"""dpfd's life on a gateway: starts, ends, complaints, and for how long a mapping lives."""

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gcbpatch.addresses import GATEWAY_PORT
from gcbpatch.errors import RefusedError
from tests.loopback.gateway_client import GatewayClient, random_id
from tests.netns.gateway_ground import BACK_ENDS, INSIDE, Client, start
from tests.netns.gateway_traffic import carries, echoes
from tests.netns.lab import Gateway, Host, Lab, Program
from tests.netns.talk import dial, outcome

NFTABLES = BACK_ENDS[0]


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return tmp_path / "mirror.db"


@pytest.fixture
def gateway(lab: Lab) -> Gateway:
    return lab.gateway("ga", inside=INSIDE, unsolicited="drop")


@pytest.fixture
def daemon(gateway: Gateway, mirror: Path) -> Iterator[Program]:
    yield start(gateway, mirror)


@pytest.fixture
def client(gateway: Gateway, daemon: Program) -> Client:
    return Client(gateway.host("a"), gateway)


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
    assert NFTABLES.rules(gateway) == {}


def test_a_killed_dpfd_is_not_missed_and_comes_back_with_everything(
    gateway: Gateway, daemon: Program, client: Client, mirror: Path, pub: Host
) -> None:
    public = client.forward()
    near = dial(pub, *public)
    far, _ = client.accept()
    before = NFTABLES.rules(gateway)
    daemon.kill()
    assert echoes(near, far)
    carries(pub, public, client)
    again = start(gateway, mirror)
    client.management.wait_for_proof()
    assert client.reconnect().renew(client.id).lost == []
    assert client.forward() == public
    assert NFTABLES.rules(gateway) == before
    assert echoes(far, near)
    carries(pub, public, client)
    assert again.terminate() == 0


def test_ports_run_out(gateway: Gateway, mirror: Path) -> None:
    start(gateway, mirror, "--ports", "20000-20001")
    client = Client(gateway.host("a"), gateway)
    assert {client.forward(random_id())[1] for _ in range(2)} == {20000, 20001}
    with pytest.raises(RefusedError, match="NO_RESOURCES"):
        client.forward(random_id())
    assert len(NFTABLES.rules(gateway)) == 2


def test_a_mirror_of_somebody_elses_is_refused_and_kept(gateway: Gateway, mirror: Path) -> None:
    mirror.write_text("my diary\n")
    before = gateway.run(["nft", "list", "ruleset"], privileged=True).stdout
    daemon = start(gateway, mirror, ready=False)
    assert daemon.wait() == 2
    (line,) = daemon.stderr.splitlines()
    assert line.startswith(f"dpfd: {mirror}: ")
    assert mirror.read_text() == "my diary\n"
    assert gateway.run(["nft", "list", "ruleset"], privileged=True).stdout == before


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
