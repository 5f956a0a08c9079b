"""How often clients are asked whether they live: as configured, whatever some of them do."""

import logging
import re
import socket
import threading
import time
from pathlib import Path

import pytest

from dpfd.liveness import BURST
from dpfd.mirror import Mirror
from dpfd.reconcile import Rule
from dpfd.table import Mapping
from gcbpatch.addresses import Address
from gcbpatch.errors import Status
from gcbpatch.wire.auth import proof, reply_to
from gcbpatch.wire.codec import message_of
from gcbpatch.wire.messages import TCP, Prove, ProveReply

from .gateway_client import HANG_LIMIT, Management, random_id, read_frame
from .test_dpfd import INSIDE, LOCALHOST, PUBLIC, RunningGateway, WatchedKernel, kernel, mirror

__all__ = ["kernel", "mirror"]

CLIENTS, RATE = 200, 200.0


class Crowd:
    """One management socket for many mappings; notes when each question came."""

    def __init__(self) -> None:
        self.nonce = random_id()
        self.times: list[float] = []
        self.asked = threading.Condition()
        self._listener = socket.create_server((LOCALHOST, 0), backlog=512)
        self.address: Address = self._listener.getsockname()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            link, _ = self._listener.accept()
            with link:
                frame = read_frame(link)
                assert frame is not None
                request = message_of(frame)
                assert isinstance(request, Prove)
                with self.asked:
                    self.times.append(time.monotonic())
                    self.asked.notify_all()
                answer = ProveReply(proof(self.nonce, "management", request.challenge))
                link.sendall(reply_to(frame, None, Status.SUCCESS, answer))

    def wait_for(self, count: int) -> None:
        with self.asked:
            assert self.asked.wait_for(lambda: len(self.times) >= count, HANG_LIMIT)


def fill(path: str, management: Address, nonce: bytes, lifetime: int = 3600) -> None:
    """Many mappings that an earlier dpfd left."""
    filled = Mirror(path, b"epoch..1")
    for number in range(CLIENTS):
        client, public = number.to_bytes(16, "big"), (PUBLIC, 10000 + number)
        one = Mapping(client, client, TCP, public, INSIDE, management, nonce, lifetime)
        filled.put(one)
    filled.close()


def test_clients_are_asked_no_faster_than_configured_and_that_is_reported(
    kernel: WatchedKernel, mirror: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dpfd")
    crowd = Crowd()
    fill(mirror, crowd.address, crowd.nonce)
    settings = {"mirror": mirror, "probe_rate": RATE, "report_interval": 0.2}
    with RunningGateway(kernel, lifetime=3600, **settings):
        crowd.wait_for(CLIENTS)
    slack = BURST + 0.05  # between asking and answering some time passes
    for first, last in zip(crowd.times, crowd.times[50:], strict=False):
        assert last - first >= 50 / RATE - slack
    lines = re.findall(r"liveness: (\d+) clients, ([\d.]+) asked a second", caplog.text)
    assert lines and {clients for clients, _ in lines} == {str(CLIENTS)}
    assert all(float(rate) <= 2 * RATE for _, rate in lines)
    assert "proved); dpfd used" in caplog.text


def test_those_that_never_answer_keep_nobody_from_being_asked(
    kernel: WatchedKernel, mirror: str
) -> None:
    silent = socket.create_server((LOCALHOST, 0), backlog=CLIENTS)  # the kernel takes them all
    fill(mirror, silent.getsockname(), random_id())
    with RunningGateway(kernel, mirror=mirror) as gateway, gateway.session() as session:
        management = Management(LOCALHOST)
        session.forward(random_id(), INSIDE, management, lifetime=3)
        for _ in range(3):  # while all others are waited for
            management.wait_for_proof()
        assert len(kernel.rules) == CLIENTS + 1
    silent.close()


def test_a_client_of_dead_hosts_is_given_up_when_its_lease_is_over(
    kernel: WatchedKernel, mirror: str, tmp_path: Path
) -> None:
    silent = socket.create_server((LOCALHOST, 0), backlog=CLIENTS)
    fill(mirror, silent.getsockname(), random_id(), lifetime=1)
    with RunningGateway(kernel, mirror=mirror):
        kernel.wait_for(lambda rules: rules == list[Rule]())
    silent.close()
