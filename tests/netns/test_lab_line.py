"""What the lab's lines do to packets: delay them, lose them, and nothing else."""

import os
import select
import socket
import time

import pytest

from tests.netns.lab import Host, Lab, LabError
from tests.netns.lab.program import HANG_LIMIT
from tests.netns.talk import dial, listen, udp


def arrivals(lab: Lab, sender_host: Host, receiver_host: Host, count: int) -> set[int]:
    """Which of `count` numbered datagrams sent in a row arrive."""
    sender, receiver = udp(sender_host), udp(receiver_host, 53)
    target = (receiver_host.address, 53)
    for number in range(count):
        sender.sendto(str(number).encode(), target)
    arrived: set[int] = set()
    receiver.settimeout(0.05)
    # The end mark may be lost as well; order is kept, so what is not here before it is lost.
    while True:
        sender.sendto(b"end", target)
        try:
            while (data := receiver.recv(100)) != b"end":
                arrived.add(int(data))
        except TimeoutError:
            continue
        return arrived


class TestLine:
    @pytest.mark.parametrize("slow", ["host", "gateway", "public host"])
    def test_round_trip_takes_at_least_twice_the_delay(self, any_lab: Lab, slow: str) -> None:
        public = any_lab.host("pub")
        if slow == "public host":
            inner = any_lab.host("slow", delay_ms=30)
        elif slow == "host":
            inner = any_lab.gateway("ga").host("slow", delay_ms=30)
        else:
            inner = any_lab.gateway("ga", delay_ms=30).host("slow")
        listen(public, 80)
        before = time.monotonic()
        dial(inner, public.address, 80)
        assert time.monotonic() - before >= 0.060  # not performance: nothing may overtake light

    def test_each_direction_takes_the_delay(self, lab: Lab) -> None:
        public, slow = lab.host("pub"), lab.host("slow", delay_ms=30)
        one, other = udp(public, 53), udp(slow, 53)
        for sender, receiver, node in ((one, other, slow), (other, one, public)):
            before = time.monotonic()
            sender.sendto(b"light", (node.address, 53))
            receiver.recv(100)
            assert time.monotonic() - before >= 0.030

    def test_bytes_pass_a_slow_line_unharmed_in_both_directions(self, lab: Lab) -> None:
        public = lab.host("pub")
        slow = lab.gateway("ga", delay_ms=2).host("slow", delay_ms=3)
        listener = listen(public, 80)
        connector = dial(slow, public.address, 80)
        connection, _ = listener.accept()
        payload = os.urandom(3 << 20)
        for source, sink in ((connector, connection), (connection, connector)):
            assert transfer(source, sink, payload) == payload

    def test_the_same_seed_loses_the_same_packets(self) -> None:
        runs = []
        for lossy_first in (True, False):
            with Lab() as lab:
                public = None if lossy_first else lab.host("pub")
                lossy = lab.host("lossy", loss=0.3, seed=7)
                runs.append(arrivals(lab, lossy, public or lab.host("pub"), 100))
        assert runs[0] == runs[1]
        assert 50 <= len(runs[0]) <= 90

    def test_directions_and_seeds_lose_different_packets(self, lab: Lab) -> None:
        public = lab.host("pub")
        one = lab.host("one", loss=0.3, seed=7)
        two = lab.host("two", loss=0.3, seed=8)
        lost = [
            frozenset(arrivals(lab, sender, receiver, 100))
            for sender, receiver in ((public, one), (public, two))
        ]
        assert len(set(lost)) == 2

    def test_loss_without_delay_is_the_kernels(self, any_lab: Lab) -> None:
        public, lossy = any_lab.host("pub"), any_lab.host("lossy", loss=0.5)
        assert 0 < len(arrivals(any_lab, lossy, public, 100)) < 100

    def test_a_broken_line_is_reported(self) -> None:
        lab = Lab()
        lab.host("slow", delay_ms=1)
        lab._lines[0].kill()
        with pytest.raises(LabError, match=r"the line of 198\.51\.100\.1 broke"):
            lab.close()

    @pytest.mark.parametrize("options", [{"loss": 1.5}, {"loss": -0.1}, {"delay_ms": -1}])
    def test_senseless_numbers_are_refused(self, lab: Lab, options: dict[str, float]) -> None:
        with pytest.raises(LabError, match=r"loss|delay_ms"):
            lab.host("host", **options)  # type: ignore[arg-type]


def transfer(source: socket.socket, sink: socket.socket, payload: bytes) -> bytes:
    """Send everything through and return what has come out."""
    source.setblocking(False)
    received = bytearray()
    left = memoryview(payload)
    while len(received) < len(payload):
        writing = [source] if left else []
        readable, writable, _ = select.select([sink], writing, [], HANG_LIMIT)
        assert readable or writable, "the transfer hangs"
        if writable:
            left = left[source.send(left[: 1 << 16]) :]
        if readable:
            data = sink.recv(1 << 16)
            assert data, "the connection ended early"
            received += data
    source.setblocking(True)
    return bytes(received)
