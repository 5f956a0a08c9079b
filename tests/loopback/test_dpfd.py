"""dpfd's sessions and liveness over real loopback sockets, on a kernel table in memory.

The daemon's parts run in a thread of their own with gevent's hub; the test's sockets block.
"""

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import Event
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpfd.config import Config
from dpfd.daemon import Gateway
from dpfd.kernel.fake import FakeKernel
from dpfd.reconcile import Rule
from gcbpatch.addresses import Address
from gcbpatch.errors import RefusedError, Status
from gcbpatch.wire.codec import HEADER, MAX_BODY, Kind, build, status_of
from gcbpatch.wire.messages import TCP, Command, Session
from tests.loopback.gateway_client import (
    HANG_LIMIT,
    Claim,
    GatewayClient,
    Management,
    random_id,
    read_frame,
)

LOCALHOST = "127.0.0.1"
PUBLIC = "198.51.100.1"
INSIDE = (LOCALHOST, 9)


class WatchedKernel(FakeKernel):
    """Tells a waiting test when the rules have changed."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()

    def apply(self, adds: Any, removes: Any) -> None:
        with self.changed:
            super().apply(adds, removes)
            self.changed.notify_all()

    def wait_for(self, condition: Callable[[list[Rule]], bool]) -> None:
        with self.changed:
            reached = self.changed.wait_for(lambda: condition(self.rules), HANG_LIMIT)
        assert reached, self.rules


class RunningGateway:
    """A gateway in a thread."""

    def __init__(self, kernel: WatchedKernel, **settings: Any) -> None:
        self.kernel = kernel
        self._config = Config(**settings)
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self.address: Address = ("", 0)
        self.standard: Address = ("", 0)
        self._thread = threading.Thread(target=self._run, name="dpfd", daemon=True)
        self._thread.start()
        assert self._ready.wait(HANG_LIMIT)
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        self._watcher.send()
        self._thread.join(HANG_LIMIT)
        assert not self._thread.is_alive()

    def __enter__(self) -> "RunningGateway":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def client(self, **given: Any) -> GatewayClient:
        return GatewayClient(self.address, **given)

    def session(self, **given: Any) -> GatewayClient:
        client = self.client(**given)
        client.open()
        return client

    def _run(self) -> None:
        stop = Event()
        self._watcher = gevent.get_hub().loop.async_()
        self._watcher.start(stop.set)
        try:
            gateway = Gateway(self._config, (PUBLIC,), self.kernel, lambda *_: False)
            # gevent's create_server would be the standard library's: blocking.
            listener = gevent.socket.socket()
            listener.bind((LOCALHOST, 0))
            listener.listen()
            self.address = listener.getsockname()
            datagrams = None
            if self._config.standard_clients:
                datagrams = gevent.socket.socket(type=socket.SOCK_DGRAM)
                datagrams.bind((LOCALHOST, 0))
                self.standard = datagrams.getsockname()
            gateway.start(listener, datagrams)
        except BaseException as error:
            self._error = error
            self._ready.set()
            raise
        self._ready.set()
        stop.wait()
        gateway.stop()
        gevent.get_hub().destroy()


@pytest.fixture
def kernel() -> WatchedKernel:
    return WatchedKernel()


@pytest.fixture
def mirror(tmp_path: Path) -> str:
    return str(tmp_path / "mirror")


@pytest.fixture
def gateway(kernel: WatchedKernel, mirror: str) -> Iterator[RunningGateway]:
    with RunningGateway(kernel, mirror=mirror) as running:
        yield running


@pytest.fixture
def management() -> Iterator[Management]:
    made = Management(LOCALHOST)
    yield made
    made.close()


def rules_are(*wanted: Rule) -> Callable[[list[Rule]], bool]:
    return lambda rules: sorted(rules) == sorted(wanted)


def test_the_main_way(gateway: RunningGateway, management: Management) -> None:
    listener = random_id()
    with gateway.client() as session:
        opened = session.open()
        assert opened.public == [PUBLIC]
        reply = session.forward(listener, INSIDE, management, wished=("0.0.0.0", 20000))
        assert (reply.public.address, reply.lifetime) == ((PUBLIC, 20000), 30)
        assert gateway.kernel.rules == [Rule(TCP, (PUBLIC, 20000), INSIDE)]
        management.wait_for_proof()
        assert session.query((PUBLIC, 20000)) == INSIDE
        unknown = random_id()
        renewed = session.renew(listener, unknown)
        assert (renewed.epoch, renewed.lost) == (opened.epoch, [unknown])
        session.unforward(listener)
        assert gateway.kernel.rules == []
        with pytest.raises(RefusedError, match="UNKNOWN"):
            session.query((PUBLIC, 20000))


def test_the_end_of_a_session_removes_nothing(
    gateway: RunningGateway, management: Management
) -> None:
    listener = random_id()
    with gateway.session() as session:
        session.forward(listener, INSIDE, management)
    with gateway.session(client=session.client) as again:
        assert again.renew(listener).lost == []


def test_a_restart_keeps_mappings_and_epoch(
    kernel: WatchedKernel, mirror: str, management: Management
) -> None:
    listener = random_id()
    with RunningGateway(kernel, mirror=mirror) as gateway, gateway.client() as session:
        epoch = session.open().epoch
        public = session.forward(listener, INSIDE, management).public
        management.wait_for_proof()
    assert kernel.rules == [Rule(TCP, public.address, INSIDE)]
    with RunningGateway(kernel, mirror=mirror) as gateway:
        management.wait_for_proof()  # asked at once, without a word of the client's
        with gateway.client(client=session.client) as again:
            assert again.open().epoch == epoch
            assert again.renew(listener).lost == []
            assert again.forward(listener, INSIDE, management).public == public


def test_a_new_mirror_is_a_new_epoch(
    kernel: WatchedKernel, tmp_path: Path, management: Management
) -> None:
    listener = random_id()
    with RunningGateway(kernel, mirror=str(tmp_path / "one")) as gateway:
        session = gateway.client()
        epoch = session.open().epoch
        session.forward(listener, INSIDE, management)
    with RunningGateway(kernel, mirror=str(tmp_path / "two")) as gateway:
        assert kernel.rules == []
        renewed = gateway.session(client=session.client).renew(listener)
        assert (renewed.epoch != epoch, renewed.lost) == (True, [listener])


def test_a_lease_that_is_not_renewed_ends(gateway: RunningGateway, management: Management) -> None:
    with gateway.session() as session:
        session.forward(random_id(), INSIDE, management, lifetime=1)
        gateway.kernel.wait_for(rules_are())


def test_a_client_that_renews_keeps_its_mapping_and_one_that_died_loses_it(
    kernel: WatchedKernel, mirror: str, management: Management
) -> None:
    settings = {"mirror": mirror, "probe_interval": 0.1, "grace": 0.2}
    with RunningGateway(kernel, **settings) as gateway, gateway.session() as session:
        dying, dead = Management(LOCALHOST), random_id()
        living = session.forward(random_id(), INSIDE, management).public.address
        session.forward(dead, (LOCALHOST, 10), dying)
        dying.wait_for_proof()
        dying.close()
        kernel.wait_for(rules_are(Rule(TCP, living, INSIDE)))
        assert session.renew(dead).lost == [dead]


def test_a_stranger_on_the_management_port_is_not_taken_for_the_client(
    kernel: WatchedKernel, mirror: str, management: Management
) -> None:
    settings = {"mirror": mirror, "probe_interval": 0.1, "grace": 0.2}
    with RunningGateway(kernel, **settings) as gateway, gateway.session() as session:
        stranger = Management(LOCALHOST)
        session.forward(random_id(), INSIDE, Claim(random_id(), stranger.address))
        kernel.wait_for(rules_are())
        stranger.close()


def test_a_management_socket_that_says_nonsense_is_a_stranger(
    kernel: WatchedKernel, mirror: str
) -> None:
    settings = {"mirror": mirror, "probe_interval": 0.1, "grace": 0.2}
    chatter = socket.create_server((LOCALHOST, 0))

    def talk() -> None:
        while True:
            try:
                link, _ = chatter.accept()
            except OSError:
                return
            link.sendall(b"220 mail.example.org ESMTP\r\n")
            link.close()

    threading.Thread(target=talk, daemon=True).start()
    with RunningGateway(kernel, **settings) as gateway, gateway.session() as session:
        session.forward(random_id(), INSIDE, Claim(random_id(), chatter.getsockname()))
        kernel.wait_for(rules_are())
    chatter.shutdown(socket.SHUT_RDWR)
    chatter.close()


def test_a_dead_client_of_a_dead_dpfd_is_gone_within_its_lifetime(
    kernel: WatchedKernel, mirror: str
) -> None:
    management = Management(LOCALHOST)
    with RunningGateway(kernel, mirror=mirror) as gateway, gateway.session() as session:
        session.forward(random_id(), INSIDE, management, lifetime=2)
    management.close()
    assert len(kernel.rules) == 1
    with RunningGateway(kernel, mirror=mirror):
        kernel.wait_for(rules_are())


def test_other_hosts_addresses_are_refused(gateway: RunningGateway, management: Management) -> None:
    with gateway.session() as session:
        for address in (("127.0.0.2", 9), ("198.51.100.1", 22)):
            with pytest.raises(RefusedError, match="NOT_AUTHORIZED"):
                session.forward(random_id(), address, management)
        with pytest.raises(RefusedError, match="UNSUPPORTED"):
            session.forward(random_id(), INSIDE, management, protocol=7)
        session.forward(random_id(), INSIDE, management)  # the session goes on


def test_tokens(kernel: WatchedKernel, mirror: str, tmp_path: Path, management: Management) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("lab right-token\n")
    with RunningGateway(kernel, mirror=mirror, token_file=str(tokens)) as gateway:
        with gateway.session(token="right-token") as session:
            session.forward(random_id(), INSIDE, management)
        for token in ("", "wrong-token"):
            with gateway.client(token=token) as refused:
                with pytest.raises(RefusedError, match="NOT_AUTHORIZED"):
                    refused.open()
                assert refused.ended()
        assert len(kernel.rules) == 1


def header(
    magic: bytes = b"GB", version: int = 1, kind: int = 1, length: int = 0, key: int = 0
) -> bytes:
    return HEADER.pack(magic, version, kind, Command.SESSION, 0, length, 7, key)


MALFORMED = {
    "another protocol": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Status.MALFORMED),
    "another version": (header(version=2), Status.UNSUPPORTED),
    "a lot of another protocol": (b"GET / HTTP/1.1\r\n" * 1000, Status.MALFORMED),
    "too large": (header(length=MAX_BODY + 1), Status.MALFORMED),
    "neither request nor reply": (header(kind=3), Status.MALFORMED),
    "a reply": (header(kind=2), Status.MALFORMED),
    "no body": (header(), Status.MALFORMED),
    "a body of another kind": (
        header(length=3) + b"\x91\xc3\xc3",
        Status.MALFORMED,
    ),
    "a short id": (header(length=4) + b"\x91\xc4\x01a", Status.MALFORMED),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_frames_get_a_status_and_the_door(gateway: RunningGateway, what: str) -> None:
    data, status = MALFORMED[what]
    with gateway.client() as client:
        client.link.sendall(data)
        assert status_of(client.receive()) is status
        assert client.ended()
    gateway.session().close()


def test_unknown_commands_are_unsupported(gateway: RunningGateway) -> None:
    with gateway.session() as session:
        session.send(99, Session(session.client))
        assert status_of(session.receive()) is Status.UNSUPPORTED
        assert session.renew().lost == []


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.booleans())
def test_garbage_harms_nobody(gateway: RunningGateway, garbage: bytes, framed: bool) -> None:
    with gateway.session() as bystander:
        with gateway.client() as client:
            data = header(length=len(garbage)) + garbage if framed else garbage
            client.link.sendall(data)
            client.link.shutdown(socket.SHUT_WR)
            while frame := read_frame(client.link):
                assert frame.kind is Kind.REPLY
                assert framed or frame.status != Status.SUCCESS
        assert bystander.renew().lost == []
    assert gateway.kernel.rules == []


def test_half_a_frame_is_not_waited_for(kernel: WatchedKernel, mirror: str) -> None:
    with RunningGateway(kernel, mirror=mirror, half_frame=0.2) as gateway:
        for data in (header()[:7], header(length=30), header(length=30) + bytes(29)):
            with gateway.client() as client:
                client.link.sendall(data)
                assert client.ended()


def test_an_idle_session_is_ended(kernel: WatchedKernel, mirror: str) -> None:
    with RunningGateway(kernel, mirror=mirror, idle=1.0) as gateway, gateway.session() as idle:
        assert idle.ended()


def test_too_many_sessions_end_the_one_silent_for_longest(
    kernel: WatchedKernel, mirror: str
) -> None:
    with RunningGateway(kernel, mirror=mirror, sessions=2) as gateway:
        first, second = gateway.session(), gateway.session()
        first.renew()
        third = gateway.session()
        assert second.ended()
        assert first.renew().lost == third.renew().lost == []


def test_a_host_has_its_share_of_sessions(kernel: WatchedKernel, mirror: str) -> None:
    with RunningGateway(kernel, mirror=mirror, sessions_per_host=2) as gateway:
        kept = [gateway.session(), gateway.session()]
        with gateway.client() as one_more:
            assert one_more.ended()
        gateway.session(source="127.0.0.2").close()
        assert kept[0].renew().lost == []


def test_a_reset_session_harms_nobody(gateway: RunningGateway) -> None:
    with gateway.session() as bystander:
        client = gateway.session()
        client.link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert bystander.renew().lost == []


def test_frames_may_come_in_pieces_and_several_at_once(gateway: RunningGateway) -> None:
    client = gateway.client()
    session = build(Kind.REQUEST, Command.SESSION, 1, Session(os.urandom(16)))
    for byte in session:
        client.link.sendall(bytes([byte]))
    assert status_of(client.receive()) is Status.SUCCESS
    client.link.sendall(session * 3)
    assert [status_of(client.receive()) for _ in range(3)] == [Status.SUCCESS] * 3
    client.close()


def test_what_a_peer_does_wrong_is_logged_once(
    gateway: RunningGateway, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        with gateway.client() as client:
            client.link.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.receive().status == Status.MALFORMED
            assert client.ended()
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{LOCALHOST}:")
