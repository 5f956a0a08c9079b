"""Programs that are not patched map their ports by NAT-PMP and PCP."""

import re
import shutil
from pathlib import Path

import pytest

from dpfd import natpmp, pcp
from gcbpatch.addresses import Address
from gcbpatch.wire.messages import TCP, UDP
from tests.netns.gateway_extra import require
from tests.netns.gateway_ground import BACK_ENDS, INSIDE, BackEnd, start
from tests.netns.lab import Gateway, Host, Lab
from tests.netns.lab.program import HANG_LIMIT
from tests.netns.talk import dial, listen, udp

NONCE = b"twelve bytes"


@pytest.fixture(autouse=True)
def gateway_extra() -> None:
    """All of this needs python-iptables."""
    require()


@pytest.fixture
def gateway(lab: Lab) -> Gateway:
    return lab.gateway("ga", inside=INSIDE)


def exchange(host: Host, server: Address, request: bytes) -> bytes:
    with udp(host) as sock:
        sock.connect(server)
        sock.send(request)
        return sock.recv(2000)


def by_pcp(host: Host, gateway: Gateway, request: pcp.Request) -> tuple[pcp.Result, Address | None]:
    server = gateway.inside_address, natpmp.PORT
    reply = pcp.answer(exchange(host, server, pcp.build(request, host.address)))
    return reply[0], reply[3]


@pytest.mark.parametrize("back_end", BACK_ENDS, ids=lambda back_end: back_end.name)
def test_pcp_maps_a_port_that_the_world_reaches_and_a_restart_keeps_it(
    back_end: BackEnd, lab: Lab, gateway: Gateway, tmp_path: Path
) -> None:
    flags = ("--standard-clients", "--backend", back_end.name)
    daemon = start(gateway, tmp_path / "mirror", *flags)
    host, pub = gateway.host("a"), lab.host("pub")
    listener = listen(host, 8080)
    ask = pcp.AskMap(NONCE, TCP, 8080, ("0.0.0.0", 20080), 600)
    public = gateway.public_address, 20080
    assert by_pcp(host, gateway, ask) == (pcp.Result.SUCCESS, public)
    with dial(pub, *public), listener.accept()[0]:
        pass
    daemon.kill()
    start(gateway, tmp_path / "mirror", *flags)
    assert back_end.rules(gateway) == {public: (host.address, 8080)}
    thief = pcp.AskMap(b"other nonce.", TCP, 8080, ("0.0.0.0", 0), 600)
    assert by_pcp(host, gateway, thief)[0] is pcp.Result.NOT_AUTHORIZED
    end = pcp.AskMap(NONCE, TCP, 8080, ("0.0.0.0", 0), 0)
    assert by_pcp(host, gateway, end)[0] is pcp.Result.SUCCESS
    assert back_end.rules(gateway) == {}


@pytest.mark.parametrize("back_end", BACK_ENDS, ids=lambda back_end: back_end.name)
def test_a_mapped_udp_port_is_spoken_to_and_answers_from_its_public_address(
    back_end: BackEnd, lab: Lab, gateway: Gateway, tmp_path: Path
) -> None:
    start(gateway, tmp_path / "mirror", "--standard-clients", "--backend", back_end.name)
    host, pub = gateway.host("a"), lab.host("pub")
    with udp(host, 5060) as server, udp(pub) as caller:
        request = natpmp.AskMapping(UDP, 5060, 20060, 600)
        answer = exchange(host, (gateway.inside_address, natpmp.PORT), natpmp.build(request))
        assert answer[10:12] == (20060).to_bytes(2, "big")
        caller.sendto(b"ring", (gateway.public_address, 20060))
        assert server.recvfrom(10) == (b"ring", (pub.address, caller.getsockname()[1]))
        server.sendto(b"hello", (pub.address, caller.getsockname()[1]))
        assert caller.recvfrom(10) == (b"hello", (gateway.public_address, 20060))


def test_natpmpc_maps_shows_and_ends(lab: Lab, gateway: Gateway, tmp_path: Path) -> None:
    tool = shutil.which("natpmpc")
    if tool is None:
        pytest.skip("natpmpc is not installed (Debian's package natpmpc)")
    start(gateway, tmp_path / "mirror", "--standard-clients")
    host, pub = gateway.host("a"), lab.host("pub")
    listener = listen(host, 8080)

    def natpmpc(*args: str) -> str:
        return host.run([tool, "-g", gateway.inside_address, *args]).stdout

    assert f"Public IP address : {gateway.public_address}" in natpmpc()
    said = natpmpc("-a", "20080", "8080", "tcp", "600")
    assert re.search(r"Mapped public port 20080 protocol TCP to local port 8080.*600", said, re.S)
    with dial(pub, gateway.public_address, 20080), listener.accept()[0]:
        pass
    assert BACK_ENDS[0].rules(gateway) == {
        (gateway.public_address, 20080): (host.address, 8080)
    }
    natpmpc("-a", "0", "8080", "tcp", "0")
    assert BACK_ENDS[0].rules(gateway) == {}


def test_it_is_off_unless_configured_and_on_the_private_side_only(
    lab: Lab, gateway: Gateway, tmp_path: Path
) -> None:
    daemon = start(gateway, tmp_path / "mirror")
    host, pub = gateway.host("a"), lab.host("pub")
    gateway.open(natpmp.PORT)
    question = natpmp.build(natpmp.AskAddress())
    with pytest.raises(ConnectionRefusedError):
        exchange(host, (gateway.inside_address, natpmp.PORT), question)
    daemon.terminate()
    start(gateway, tmp_path / "mirror", "--standard-clients")
    with pytest.raises(ConnectionRefusedError):
        exchange(pub, (gateway.public_address, natpmp.PORT), question)
    answer = exchange(host, (gateway.inside_address, natpmp.PORT), question)
    assert answer[4:8] < int(HANG_LIMIT).to_bytes(4, "big")  # the epoch
    assert answer[8:] == natpmp.address(gateway.public_address, 0)[8:]
