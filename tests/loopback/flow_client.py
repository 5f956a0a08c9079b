"""A program's UDP port as the relay sees it: a small blocking client without the patch layer."""

from __future__ import annotations

import os
import socket

from gcbpatch.addresses import Address
from gcbpatch.errors import Status
from gcbpatch.wire import auth, datagrams
from gcbpatch.wire.auth import Key
from gcbpatch.wire.codec import Frame, Kind, message_of, parse
from gcbpatch.wire.messages import (
    UDP,
    Command,
    Flow,
    FlowReply,
    Hello,
    HelloReply,
    Message,
    RegisterReply,
)

from .broker_client import HANG_S, Client, Refused


class Port:
    """One UDP socket that shares its port with nobody. Datagrams come as they are sent."""

    def __init__(self, broker: Address, client: bytes, listener: bytes, key: Key | None = None):
        self.relay, self.client, self.listener, self.key = broker, client, listener, key
        self.magic = datagrams.magic_of(os.urandom(8))
        self.cookie = bytes(8)
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.settimeout(HANG_S)
        self.parts = datagrams.Parts()

    def __enter__(self) -> Port:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def request(self, command: Command, message: Message) -> bytes:
        """A control frame with its magic."""
        transaction = int.from_bytes(os.urandom(8), "big")
        return self.magic + auth.sealed(self.key, Kind.REQUEST, command, transaction, message)

    def exchange(self, data: bytes) -> Frame:
        """Send it, and return the answer, which must be from the relay and have the magic."""
        self.sock.sendto(data, self.relay)
        answer, source = self.sock.recvfrom(2048)
        while answer[0] & datagrams.CONTROL_BIT:
            answer, source = self.sock.recvfrom(2048)  # a peer's, which came before
        assert source == self.relay
        assert answer[:8] == self.magic
        return parse(answer[8:])

    def ask(self, command: Command, message: Message) -> Message:
        """Ask, and return the answer; raises Refused."""
        frame = self.exchange(self.request(command, message))
        auth.check_reply(frame, self.key)
        if frame.status != Status.SUCCESS:
            raise Refused(frame.status)
        return message_of(frame)

    def hello(self) -> None:
        """Get a cookie."""
        reply = self.ask(Command.HELLO, Hello(self.client))
        assert isinstance(reply, HelloReply)
        assert reply.observed.address == self.sock.getsockname()
        self.cookie = reply.cookie

    def flow_request(self) -> Flow:
        """Ask for the listener's datagrams."""
        return Flow(self.client, self.cookie, self.listener)

    def flow(self) -> FlowReply:
        """Have the listener's datagrams come here."""
        self.hello()
        reply = self.ask(Command.FLOW, self.flow_request())
        assert isinstance(reply, FlowReply)
        assert reply.observed.address == self.sock.getsockname()
        return reply

    def send(self, payload: bytes, peer: Address) -> None:
        """Send to a peer through the relay."""
        if len(payload) + 8 <= datagrams.MOST_PAYLOAD:
            self.raw(datagrams.whole(peer) + payload)
            return
        one, two = datagrams.parts(peer, int.from_bytes(os.urandom(4), "big"))
        self.raw(one + payload[:30000])
        self.raw(two + payload[30000:])

    def raw(self, data: bytes) -> None:
        """Send anything to the relay."""
        self.sock.sendto(data, self.relay)

    def receive(self) -> tuple[bytes, Address]:
        """Return the next datagram from the relay, and its peer; a refusal raises."""
        while True:
            data, source = self.sock.recvfrom(65536)
            assert source == self.relay
            header = datagrams.parse(data)
            if header.refused:
                assert len(data) == header.size
                raise ConnectionRefusedError(header.peer)
            payload = data[header.size :]
            if not header.part:
                return payload, header.peer
            joined = self.parts.join(header, payload, 0.0)
            if joined is not None:
                return joined, header.peer


def listening(client: Client, listener: bytes = b"", **asked: object) -> tuple[Port, RegisterReply]:
    """Register a UDP listener and say FLOW for it."""
    listener = listener or os.urandom(16)
    reply = client.register(listener, protocol=UDP, **asked)
    port = Port((client.broker[0], reply.relay), client.client, listener, client.key)
    port.flow()
    return port, reply


def peer() -> socket.socket:
    """An ordinary socket of somebody else."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(HANG_S)
    return sock
