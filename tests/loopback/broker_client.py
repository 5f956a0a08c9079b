"""A real brokerd as a subprocess, and a small blocking client that speaks its wire.

Every broker gets a loopback address of its own, so that brokers of tests that run at the same
time never compete for proxy ports.
"""

from __future__ import annotations

import os
import queue
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from gcbpatch.addresses import V4, Address
from gcbpatch.errors import Status
from gcbpatch.wire import auth
from gcbpatch.wire.auth import Key
from gcbpatch.wire.codec import Frame, Kind, message_of, parse
from gcbpatch.wire.messages import (
    TCP,
    Call,
    Command,
    Connect,
    ConnectReply,
    Endpoint,
    Hello,
    HelloReply,
    Join,
    Message,
    Park,
    ParkReply,
    Refresh,
    RefreshReply,
    Register,
    RegisterReply,
    Unregister,
)
from gcbpatch.wire.session import FrameReader

ROOT = Path(__file__).parents[2]
# Limits against hanging, not measures.
HANG_S = 60.0
RESEND_S = 1.0


def loopback_host() -> str:
    """Return an address of this host that nobody else is likely to use."""
    return f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.{random.randint(2, 254)}"


class Broker:
    """brokerd in a subprocess, ready when the constructor returns."""

    def __init__(
        self,
        directory: Path,
        *flags: str,
        host: str = "",
        port: int = 0,
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.host = host or loopback_host()
        self.directory = directory
        key_file = ["--key-file", str(directory / "claims.key")]
        self._errors = (directory / "stderr").open("ab")
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "brokerd", "--address", self.host, "--port", str(port),
             *key_file, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
        )
        self.ready_line = self._read_line()
        self.address: Address = (self.host, int(self.ready_line.rpartition(":")[2]))

    def _read_line(self) -> str:
        assert self.process.stdout is not None
        poll = select.poll()  # which takes numbers that select() does not
        poll.register(self.process.stdout, select.POLLIN)
        readable = poll.poll(HANG_S * 1000)
        line = self.process.stdout.readline().decode() if readable else ""
        if not line:
            self.kill()
            raise AssertionError(f"brokerd did not become ready: {self.log()}")
        return line.strip()

    def log(self) -> str:
        """Return all that the broker wrote to stderr."""
        return (self.directory / "stderr").read_text(encoding="utf-8")

    def stop(self) -> int:
        """Send SIGTERM, return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(HANG_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it with SIGKILL if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(HANG_S)
        if self.process.stdout:
            self.process.stdout.close()
        self._errors.close()


class Refused(Exception):
    """The broker answered with a status other than SUCCESS."""

    def __init__(self, status: int) -> None:
        super().__init__(Status(status).name)
        self.status = Status(status)


class Client:
    """One client with one UDP socket. Answers CALLs from a thread, which queues them."""

    def __init__(
        self, broker: Address, key: Key | None = None, client: bytes = b"", host: str = ""
    ) -> None:
        self.broker = broker
        self.key = key
        self.client = client or os.urandom(16)
        self.cookie = bytes(8)
        self.calls: queue.Queue[Call] = queue.Queue()
        self.call_status = Status.SUCCESS
        # By transaction: a CALL that was sent again is the same CALL.
        self.called: set[int] = set()
        v6 = ":" in broker[0]
        self.sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((host or ("::1" if v6 else "127.0.0.1"), 0))
        self.sock.connect(broker)
        self._replies: dict[int, queue.Queue[bytes]] = {}
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(HANG_S)
        self.sock.close()

    # --- datagrams

    def _receive(self) -> None:
        while True:
            try:
                data = self.sock.recv(2048)
            except ConnectionRefusedError:
                continue  # the broker is being restarted
            if not data:
                return
            frame = parse(data)
            if frame.kind is Kind.REPLY:
                self._replies[frame.transaction].put(data)
            else:
                self._called(frame)

    def _called(self, frame: Frame) -> None:
        if self.key:
            assert self.key.verify(frame)
        message = message_of(frame)
        assert isinstance(message, Call)
        try:
            self.sock.send(auth.reply_to(frame, self.key, self.call_status))
        except BrokenPipeError:
            return  # this client is being closed
        if frame.transaction not in self.called:
            self.called.add(frame.transaction)
            self.calls.put(message)

    def exchange(self, data: bytes) -> bytes:
        """Send one datagram, again and again, until an answer comes."""
        transaction = int.from_bytes(data[8:16], "big")
        replies = self._replies.setdefault(transaction, queue.Queue())
        until = time.monotonic() + HANG_S
        while time.monotonic() < until:
            try:
                self.sock.send(data)
                return replies.get(timeout=RESEND_S)
            except (ConnectionRefusedError, queue.Empty):
                continue
        raise AssertionError("no answer from the broker")

    def request(self, command: Command, message: Message) -> bytes:
        return auth.sealed(
            self.key, Kind.REQUEST, command, int.from_bytes(os.urandom(8), "big"), message
        )

    def ask(self, command: Command, message: Message) -> Message:
        frame = parse(self.exchange(self.request(command, message)))
        auth.check_reply(frame, self.key)
        if frame.status != Status.SUCCESS:
            raise Refused(frame.status)
        return message_of(frame)

    # --- commands

    def hello(self) -> HelloReply:
        reply = self.ask(Command.HELLO, Hello(self.client))
        assert isinstance(reply, HelloReply)
        self.cookie = reply.cookie
        return reply

    def register_request(
        self,
        listener: bytes = b"",
        wished: int = 0,
        lifetime: int = 30,
        proxy: Endpoint | None = None,
        claim: bytes = b"",
        local: tuple[Endpoint, ...] = (),
        network: str = "",
        protocol: int = TCP,
        family: int = V4,
    ) -> Register:
        return Register(
            self.client, self.cookie, listener or os.urandom(16), protocol, wished,
            b"nonce..." , list(local), network, lifetime, proxy, claim,
            family,
        )

    def register(self, listener: bytes = b"", **asked: object) -> RegisterReply:
        request = self.register_request(listener, **asked)  # type: ignore[arg-type]
        reply = self.ask(Command.REGISTER, request)
        assert isinstance(reply, RegisterReply)
        return reply

    def refresh(self, *listeners: bytes) -> RefreshReply:
        reply = self.ask(Command.REFRESH, Refresh(self.client, self.cookie, list(listeners)))
        assert isinstance(reply, RefreshReply)
        self.cookie = reply.cookie
        return reply

    def unregister(self, listener: bytes) -> None:
        self.ask(Command.UNREGISTER, Unregister(self.client, self.cookie, listener))

    def connect(
        self, target: Endpoint, local: tuple[Endpoint, ...] = (), network: str = ""
    ) -> ConnectReply:
        request = Connect(self.client, self.cookie, target, TCP, list(local), network)
        reply = self.ask(Command.CONNECT, request)
        assert isinstance(reply, ConnectReply)
        return reply

    def next_call(self) -> Call:
        return self.calls.get(timeout=HANG_S)

    # --- relayed halves

    def join_frame(self, name: bytes, secret: bytes, listening: bool) -> bytes:
        label = "join listener" if listening else "join connector"
        return self.request(Command.JOIN, Join(name, listening, auth.proof(secret, label, name)))

    def start_join(self, meeting: Call | ConnectReply, behind: bytes = b"") -> socket.socket:
        """Dial the broker and say JOIN, with ``behind`` right behind it."""
        frame = self.join_frame(
            meeting.rendezvous, meeting.secret, listening=isinstance(meeting, Call)
        )
        sock = socket.create_connection(self.broker, HANG_S)
        sock.sendall(frame + behind)
        return sock

    def park(self, listener: bytes) -> socket.socket:
        """Dial the broker and have the connection wait there; raises Refused."""
        sock = socket.create_connection(self.broker, HANG_S)
        self.park_again(sock, listener)
        return sock

    def park_again(self, sock: socket.socket, listener: bytes) -> None:
        """Say PARK, and believe the answer."""
        port = sock.getsockname()[1]
        asked = Park(self.client, listener, os.urandom(16), port)
        sock.sendall(self.request(Command.PARK, asked))
        self.finish_join(sock, ParkReply)

    def join_on(self, sock: socket.socket, meeting: Call | ConnectReply) -> socket.socket:
        """Say JOIN on a connection that has waited."""
        listening = isinstance(meeting, Call)
        sock.sendall(self.join_frame(meeting.rendezvous, meeting.secret, listening))
        return self.finish_join(sock)

    def finish_join(
        self, sock: socket.socket, kind: type[Message] = Message
    ) -> socket.socket:
        frame = read_frame(sock)
        auth.check_reply(frame, self.key)
        if frame.status != Status.SUCCESS:
            sock.close()
            raise Refused(frame.status)
        assert isinstance(message_of(frame), kind)
        return sock

    def join(self, meeting: Call | ConnectReply, behind: bytes = b"") -> socket.socket:
        return self.finish_join(self.start_join(meeting, behind))


def read_frame(sock: socket.socket) -> Frame:
    """Read exactly one frame off a blocking connection; EOFError at its end."""
    reader = FrameReader()
    while True:
        data = sock.recv(reader.wants)
        if not data:
            raise EOFError
        frame = reader.feed(data)
        if frame:
            return frame


def read_all(sock: socket.socket) -> bytes:
    """Read to the end of stream."""
    return b"".join(iter(lambda: sock.recv(1 << 20), b""))
