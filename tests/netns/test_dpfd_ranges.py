"""Several dpfds on one gateway, each with public ports of its own."""

import json
import re
import sys
from pathlib import Path

import pytest

from gcbpatch.errors import RefusedError
from gcbpatch.wire.messages import UDP
from tests.loopback.gateway_client import random_id
from tests.netns.gateway_extra import require
from tests.netns.gateway_ground import (
    BACK_ENDS,
    INSIDE,
    BackEnd,
    Client,
    command,
    legacy,
    start,
)
from tests.netns.lab import Gateway, Lab, Program
from tests.netns.talk import dial, udp

SQUAT = """
import json, socket, sys
made = socket.socket(socket.AF_UNIX)
made.bind("\\0" + json.loads(sys.argv[1]))
made.listen()
print("squats", flush=True)
made.accept()
"""


@pytest.fixture(autouse=True)
def gateway_extra() -> None:
    """All of this needs python-iptables."""
    require()


@pytest.fixture
def gateway(lab: Lab) -> Gateway:
    return lab.gateway("ga", inside=INSIDE)


def refused(gateway: Gateway, mirror: Path, *flags: str) -> str:
    daemon = gateway.popen(command(gateway, mirror, *flags), privileged=True)
    assert daemon.wait() == 2, daemon.stderr
    (line,) = daemon.stderr.splitlines()
    return line


def test_overlapping_ranges_are_noticed(gateway: Gateway, tmp_path: Path) -> None:
    first = start(gateway, tmp_path / "first", "--ports", "20000-20099")
    second = tmp_path / "second"
    line = refused(gateway, second, "--port", "65430", "--ports", "20099-20199")
    assert "dpfd: --ports 20099-20199: another dpfd here" in line
    assert f"20000-20099 of {gateway.public_address}" in line
    flush = [sys.executable, "-m", "dpfd", "--flush", "--mirror", str(tmp_path / "third")]
    done = gateway.run(flush, privileged=True, check=False)
    assert (done.returncode, "serves here; end it first" in done.stderr) == (2, True)
    first.kill()
    start(gateway, second, "--port", "65430", "--ports", "20099-20199")


def test_an_ordinary_user_cannot_keep_dpfd_from_starting(lab: Lab, tmp_path: Path) -> None:
    if not lab.warden.has_user(65534):
        pytest.skip("this lab has no other user")
    gateway = lab.gateway("ga", inside=INSIDE)
    name = json.dumps(f"dpfd/{gateway.public_address}/1-65535/1")
    squatter = gateway.popen([sys.executable, "-c", SQUAT, name], uid=65534)
    squatter.wait_line("squats")
    start(gateway, tmp_path / "mirror")


def by_iptables(gateway: Gateway, port: int) -> None:
    rule = f"-A PREROUTING -d {gateway.public_address} -p tcp --dport {port} -j DNAT"
    legacy(gateway, *rule.split(), "--to-destination", "10.1.0.9")


def by_nft(gateway: Gateway, port: int) -> None:
    words = f"ip daddr {gateway.public_address} tcp dport {port} dnat ip to 10.1.0.9"
    gateway.space.nft(f"add rule inet lab static {words}")


@pytest.mark.parametrize("back_end", BACK_ENDS, ids=lambda back_end: back_end.name)
def test_what_others_forward_while_dpfd_runs_is_soon_known(
    back_end: BackEnd, gateway: Gateway, tmp_path: Path
) -> None:
    flags = ("--backend", back_end.name, "--ports", "20000-20002", "--log", "debug")
    daemon = start(gateway, tmp_path / "mirror", *flags)
    client = Client(gateway.host("a"), gateway)
    for port, forward in ((20000, by_iptables), (20001, by_nft)):
        forward(gateway, port)
        daemon.wait_line(f"others forward .*{port}", stream="stderr")
    assert client.forward(wished=("0.0.0.0", 20000)) == (gateway.public_address, 20002)
    with pytest.raises(RefusedError, match="NO_RESOURCES"):
        client.forward(random_id())
    with udp(gateway, 20002):  # a socket of the gateway itself; the rules are of TCP
        wish = {"wished": ("0.0.0.0", 20002), "protocol": UDP}
        assert client.forward(random_id(), **wish)[1] in (20000, 20001)
    assert client.forward(random_id(), **wish)[1] == 20002


@pytest.mark.parametrize("back_end", BACK_ENDS, ids=lambda back_end: back_end.name)
def test_each_leaves_the_others_rules_alone(
    back_end: BackEnd, lab: Lab, gateway: Gateway, tmp_path: Path
) -> None:
    clients, publics, pub = [], [], lab.host("pub")
    daemons: list[Program] = []
    for port, ports in ((65431, "20000-20050"), (65430, "20051-20099")):
        flags = ("--port", str(port), "--ports", ports, "--backend", back_end.name)
        daemons.append(start(gateway, tmp_path / ports, *flags, "--reconcile-interval", "1"))
        client = Client(gateway.host(f"host{port}"), gateway)
        client.server = (gateway.inside_address, port)
        clients.append(client)
        publics.append(client.forward())
    assert [20000 <= port <= 20050 for _, port in publics] == [True, False]
    back_end.damage(gateway, back_end.damages[0])
    for daemon in daemons:
        daemon.wait_line("lacked 1 rules and had 0 too many", stream="stderr")
    insides = (client.inside for client in clients)
    assert back_end.rules(gateway) == dict(zip(publics, insides, strict=True))
    for client, public in zip(clients, publics, strict=True):
        neighbour = clients[client is clients[0]].host
        for node in (pub, neighbour):
            with dial(node, *public), client.accept()[0]:
                pass
    assert not re.search("[1-9] too many", "".join(daemon.stderr for daemon in daemons))
