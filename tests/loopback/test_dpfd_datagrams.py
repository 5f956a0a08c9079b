"""Whatever datagrams come, NAT-PMP and PCP go on being answered, and nobody else is harmed."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpfd import natpmp, pcp
from gcbpatch.wire.messages import TCP

from .gateway_client import HANG_LIMIT, Management, random_id
from .test_dpfd import INSIDE, LOCALHOST, PUBLIC, RunningGateway, WatchedKernel, kernel, mirror

__all__ = ["kernel", "mirror"]

MAP = pcp.build(pcp.AskMap(bytes(12), TCP, 80, ("0.0.0.0", 0), 600), LOCALHOST)


@pytest.fixture
def running(kernel: WatchedKernel, mirror: str) -> Iterator[RunningGateway]:
    with RunningGateway(kernel, mirror=mirror, standard_clients=True) as gateway:
        yield gateway


@pytest.fixture
def link(running: RunningGateway) -> Iterator[socket.socket]:
    """A socket of a standard client's."""
    with socket.socket(type=socket.SOCK_DGRAM) as made:
        made.connect(running.standard)
        yield made


def answers_the_address(link: socket.socket) -> bool:
    """Ask for the public address, again each second as clients do (RFC 6886, section 3.1).

    What else is answered meanwhile is passed over; a full buffer loses datagrams.
    """
    link.settimeout(1.0)
    for _ in range(int(HANG_LIMIT)):
        link.send(natpmp.build(natpmp.AskAddress()))
        with contextlib.suppress(TimeoutError):
            while (answer := link.recv(2000))[:2] != b"\0\x80":
                assert answer[1] & 128
            return answer[8:] == socket.inet_aton(PUBLIC)
    return False


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=1500) | st.binary(max_size=99).map(lambda b: MAP[:24] + b)))
def test_garbage_harms_nobody(link: socket.socket, garbage: list[bytes]) -> None:
    for one in garbage:
        link.send(one)
    assert answers_the_address(link)


def test_a_flood_is_answered_as_far_as_it_goes_and_sessions_are_served(
    running: RunningGateway, link: socket.socket
) -> None:
    for port in range(1, 3000):
        link.send(struct.pack("!BBHHHI", 0, 2, 0, port, 0, 600))
    with running.session() as session:
        assert session.forward(random_id(), INSIDE, Management(LOCALHOST)).lifetime
    assert answers_the_address(link)
