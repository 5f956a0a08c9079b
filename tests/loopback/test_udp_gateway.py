"""UDP sockets behind a gateway: a mapping needs no relay, so nothing but the name is ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from gcbpatch.addresses import format_address
from gcbpatch.wire.messages import TCP

from .test_dpfd import PUBLIC, RunningGateway, WatchedKernel, kernel, mirror
from .udp_ground import Relay

__all__ = ["kernel", "mirror"]

PROGRAM = """
from gcbpatch.sockets.raw import Raw
peer, ours = plain(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ours.settimeout(20)
ours.bind(("", 0))
assert type(ours._sock) is Raw
assert ours.getsockname() == EXPECTED, ours.getsockname()
assert ours.dup().getsockname() == ours.getsockname()
peer.sendto(b"hello", direct(ours))
assert ours.recvfrom(10) == (b"hello", peer.getsockname())
ours.sendto(b"back", peer.getsockname())
assert peer.recvfrom(10) == (b"back", direct(ours))
"""


def behind(gateway: RunningGateway, log: Path, program: str) -> None:
    """Run a program that has a gateway and no broker."""
    relay = Relay(None, "", log)  # type: ignore[arg-type]
    relay.good(program, DPF_SERVER=format_address(gateway.address))


def test_a_gateway_without_udp_leaves_sockets_to_the_kernel_and_nobody_is_warned(
    kernel: WatchedKernel, mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpfd.policy.UDP", TCP)
    with RunningGateway(kernel, mirror=mirror) as gateway:
        behind(gateway, tmp_path / "log", PROGRAM.replace("EXPECTED", "kernel_name(ours)"))
    text = (tmp_path / "log").read_text()
    assert "stays the kernel's" in text and "UNSUPPORTED" in text
    assert "warn" not in text.lower() and "as if unpatched" not in text


def test_a_mapping_gives_a_socket_its_public_name_until_it_is_closed(
    kernel: WatchedKernel, mirror: str, tmp_path: Path
) -> None:
    expected = f'("{PUBLIC}", ours.getsockname()[1])'
    with RunningGateway(kernel, mirror=mirror) as gateway:
        behind(gateway, tmp_path / "log", PROGRAM.replace("EXPECTED", expected))
        kernel.wait_for(lambda rules: not rules)
    assert "by dpf" in (tmp_path / "log").read_text()
