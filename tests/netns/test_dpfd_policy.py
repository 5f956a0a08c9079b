"""What dpfd refuses and how it says so; and what is left of root's rights while it serves."""

import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from dpfd.privileges import KEPT
from gcbpatch.addresses import GATEWAY_PORT, Address
from gcbpatch.errors import RefusedError, Status
from gcbpatch.wire.codec import status_of
from gcbpatch.wire.messages import Command, Forward
from tests.loopback.gateway_client import Claim, GatewayClient, random_id
from tests.netns.gateway_extra import require
from tests.netns.gateway_ground import BACK_ENDS, BackEnd, Client, command, mirrored, start
from tests.netns.lab import Gateway, Lab, Program
from tests.netns.talk import dial

UNIT = Path(__file__).parents[2] / "systemd" / "dpfd.service"
RULES = """
[[allow]]
inside-ports = "1024-65535"
mappings = 3
"""


@pytest.fixture(autouse=True)
def gateway_extra() -> None:
    """All of this needs python-iptables."""
    require()


class Asker:
    """A client that asks for what it should not have."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._request = {"inside": client.inside, "management": client.management}

    def outcome(self, listener: bytes | None = None, **changes: object) -> Status:
        given = self._request | changes
        try:
            self.client.talk.forward(listener or random_id(), **given)  # type: ignore[arg-type]
        except RefusedError as error:
            return error.status
        return Status.SUCCESS


def test_what_is_asked_too_much_is_refused_logged_and_harms_nobody(
    lab: Lab, tmp_path: Path
) -> None:
    gateway = lab.gateway("ga", inside="10.1.0.0/16")
    settings = tmp_path / "dpfd.toml"
    settings.write_text(RULES)
    mirror = tmp_path / "mirror.db"
    daemon = start(gateway, mirror, "--config", str(settings))
    neighbour, good = gateway.host("b"), Client(gateway.host("a"), gateway)
    public, bad = good.forward(), Asker(Client(gateway.host("c"), gateway))
    own, theirs = bad.client.inside, (neighbour.address, 8080)
    refused = {
        "its port 22": ({"inside": (own[0], 22)}, Status.NOT_AUTHORIZED),
        "the gateway's port 22": (
            {"inside": (gateway.inside_address, 22)},
            Status.NOT_AUTHORIZED,
        ),
        "another host's address": ({"inside": theirs}, Status.NOT_AUTHORIZED),
        "another host's management socket": (
            {"management": Claim(random_id(), theirs)},
            Status.NOT_AUTHORIZED,
        ),
        "lifetime 0": ({"lifetime": 0}, Status.MALFORMED),
        "no inside port": ({"inside": (own[0], 0)}, Status.MALFORMED),
    }
    for what, (changes, status) in refused.items():
        assert bad.outcome(**changes) is status, what
    assert {complaint[0] for complaint in complaints(daemon, own[0])} == {"NOT", "MAL"}
    assert bad.outcome(wished=public) is Status.SUCCESS  # another address, though
    assert bad.outcome(wished=(gateway.public_address, 22)) is Status.SUCCESS
    assert bad.outcome(lifetime=2**32 - 1) is Status.SUCCESS
    assert bad.outcome() is Status.QUOTA_EXCEEDED
    assert too_long_a_lifetime(bad.client) is Status.MALFORMED
    assert good.talk.query(public) == good.inside
    idle = idle_sessions(gateway, 3000)
    good.reconnect()  # its session was the one silent for longest
    assert good.forward(random_id())
    assert good.talk.renew(good.id).lost == []
    held = mirrored(mirror, tmp_path / "copy")
    assert [inside for inside in held.values() if inside[0] == own[0]] == [own] * 3
    assert BACK_ENDS[0].rules(gateway) == held
    assert len(idle) == 3000


def complaints(daemon: Program, host: str) -> list[tuple[str, str]]:
    """What the log says of a host: the kind of a refusal and its reason."""
    daemon.wait_line(rf"WARNING .*{host}:\d+: lifetime 0", stream="stderr")
    found = re.findall(rf"WARNING dpfd.server: {host}:\d+: (.*)", daemon.stderr)
    return [("MAL" if "lifetime" in text else "NOT", text) for text in found]


def too_long_a_lifetime(client: Client) -> Status:
    """2^32 does not fit; what dpfd says of it."""
    session = client.reconnect()
    request = session.forward_request(random_id(), client.inside, client.management)
    fields = {name: getattr(request, name) for name in request.__struct_fields__}
    session.send(Command.FORWARD, Forward(**(fields | {"lifetime": 2**32})))
    return status_of(session.receive())


def idle_sessions(gateway: Gateway, count: int) -> list[socket.socket]:
    """Connections that say nothing, from many addresses of one host."""
    host = gateway.host("idler")
    addresses = [f"10.1.200.{number + 1}" for number in range(count // 50)]
    host.space.ip(*(f"address add {one}/16 dev eth0" for one in addresses))
    made = []
    for number in range(count):
        link = host.socket()
        link.bind((addresses[number % len(addresses)], 0))
        link.connect((gateway.inside_address, GATEWAY_PORT))
        made.append(link)
    return made


def test_tokens_may_be_given_ports_of_their_own(lab: Lab, tmp_path: Path) -> None:
    gateway = lab.gateway("ga", inside="10.1.0.0/24")
    settings, tokens = tmp_path / "dpfd.toml", tmp_path / "tokens"
    tokens.write_text("batch token-of-batch\nweb token-of-web\n")
    settings.write_text('[[allow]]\ntokens = ["web"]\nports = "20080"\n')
    flags = ("--config", str(settings), "--token-file", str(tokens), "--wish", "refuse")
    start(gateway, tmp_path / "mirror.db", *flags)
    client = Client(gateway.host("a"), gateway)
    server: Address = (gateway.inside_address, GATEWAY_PORT)

    def asked(token: str, port: int) -> Status:
        client.session = GatewayClient(server, token=token, link=dial(client.host, *server))
        client.session.open()
        return Asker(client).outcome(wished=("0.0.0.0", port))

    assert asked("token-of-batch", 20080) is Status.NOT_AUTHORIZED
    assert asked("token-of-web", 20081) is Status.CANNOT_PROVIDE_EXTERNAL
    assert asked("token-of-web", 20080) is Status.SUCCESS
    assert asked("token-of-web", 20080) is Status.CANNOT_PROVIDE_EXTERNAL


def test_who_may_map_what_is_read_again_on_sighup(lab: Lab, tmp_path: Path) -> None:
    gateway = lab.gateway("ga", inside="10.1.0.0/24")
    settings = tmp_path / "dpfd.toml"
    settings.write_text("")
    daemon = start(gateway, tmp_path / "mirror.db", "--config", str(settings))
    here, there = Client(gateway.host("a"), gateway), Client(gateway.host("b"), gateway)
    kept, lost = here.forward(), there.forward()

    def read_again(text: str, says: str) -> None:
        settings.write_text(text)
        daemon.signal(signal.SIGHUP)
        daemon.wait_line(says, stream="stderr")
        daemon.wait_line("reconciled", stream="stderr")

    read_again("allow = 5", "stay as they were: .*allow: tables")
    assert Asker(there).outcome() is Status.SUCCESS
    only = f'idle = 5\n[[allow]]\nnetworks = ["{here.host.address}/32"]\n'
    read_again(only, "idle is as it was until the next start")
    assert Asker(there).outcome() is Status.NOT_AUTHORIZED
    assert here.talk.query(kept) == here.inside
    with pytest.raises(RefusedError, match="UNKNOWN"):
        here.talk.query(lost)
    assert BACK_ENDS[0].rules(gateway) == {kept: here.inside}


def capabilities(pid: int) -> set[str]:
    """The sets of all threads of a process."""
    found = set()
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        found.update(re.findall("^Cap(?:Prm|Eff|Bnd):\t(.*)$", status.read_text(), re.M))
    return found


@pytest.mark.parametrize("back_end", BACK_ENDS, ids=lambda back_end: back_end.name)
def test_only_two_capabilities_are_left_and_they_are_enough(
    back_end: BackEnd, any_lab: Lab, tmp_path: Path
) -> None:
    gateway, mirror = any_lab.gateway("ga", inside="10.1.0.0/24"), tmp_path / "mirror.db"
    daemon = start(gateway, mirror, "--backend", back_end.name)
    mask = sum(1 << capability for capability in KEPT)
    assert capabilities(daemon.pid) == {f"{mask:016x}"}
    client = Client(gateway.host("a"), gateway)
    public = client.forward()
    back_end.damage(gateway, back_end.damages[0])
    daemon.signal(signal.SIGHUP)
    daemon.wait_line("reconciled", stream="stderr")
    assert back_end.rules(gateway) == {public: client.inside}
    with dial(any_lab.host("pub"), *public), client.accept()[0]:
        pass
    client.talk.unforward(client.id)
    assert back_end.rules(gateway) == {}
    assert capabilities(daemon.pid) == {f"{mask:016x}"}


@pytest.mark.parametrize("back_end", BACK_ENDS, ids=lambda back_end: back_end.name)
def test_what_the_unit_file_leaves_it_is_enough_to_start(
    back_end: BackEnd, lab: Lab, tmp_path: Path
) -> None:
    gateway = lab.gateway("ga", inside="10.1.0.0/24")
    (bounds,) = re.findall("^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.M)
    kept = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in bounds.split())
    argv = ["setpriv", "--no-new-privs", f"--bounding-set=-all,{kept}"]
    argv += command(gateway, tmp_path / "mirror.db", "--backend", back_end.name)
    daemon = gateway.popen(argv, privileged=True)
    daemon.wait_line("^dpfd ready on ")
    client = Client(gateway.host("a"), gateway)
    public = client.forward()
    with dial(lab.host("pub"), *public), client.accept()[0]:
        pass


def test_without_the_right_to_set_rules_it_says_so(lab: Lab, tmp_path: Path) -> None:
    gateway = lab.gateway("ga", inside="10.1.0.0/24")
    daemon = gateway.popen(command(gateway, tmp_path / "mirror.db"))
    assert daemon.wait() == 1
    assert daemon.stderr == "dpfd: CAP_NET_ADMIN is needed to set rules; run dpfd as root\n"


def test_the_unit_file_is_one_that_systemd_takes(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed, so nobody can verify the unit file")
    copy = tmp_path / UNIT.name
    text, count = re.subn("^ExecStart=.*$", "ExecStart=/bin/true", UNIT.read_text(), flags=re.M)
    assert count == 1
    copy.write_text(text)
    done = subprocess.run([tool, "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
