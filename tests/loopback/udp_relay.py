"""A relay that does what none should: what programs have to stand is shown with it.

It speaks the wire of the document, as little of it as may be. What brokers do is tested with
brokerd, never with this.

Run as `python -m tests.loopback.udp_relay HOST`; says `ready HOST:PORT`. It keeps no limits
and no lifetimes, and ends with its standard input. Datagrams to its command port that begin
with "!" make it do what a broker does not do by itself, each answered by a datagram:

    flood N     N control datagrams that nobody asked for go to every port
    garbage     datagrams go to every port that no relay should send
    reorder     of the next datagram in two parts, the second goes first
    lose        of the next datagram in two parts, only the first goes
    stranger    a datagram of a peer with an IPv6 address goes to every port
    settle      nothing but what always comes first: all that was sent before is relayed
    streams     it knows nothing of UDP, until the next word
    flows       how many FLOWs came
    proxies     how many proxy addresses there are
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
from dataclasses import dataclass, field

from gcbpatch.addresses import Address
from gcbpatch.errors import RemoteProtocolError, Status
from gcbpatch.wire import auth, datagrams
from gcbpatch.wire.codec import Frame, message_of, parse
from gcbpatch.wire.messages import (
    UDP,
    Endpoint,
    Flow,
    FlowReply,
    Hello,
    HelloReply,
    Message,
    Refresh,
    RefreshReply,
    Register,
    RegisterReply,
    Unregister,
)

LIFETIME = 30


@dataclass
class Port:
    """One registered port of a program."""

    proxy: socket.socket
    where: Address | None = None
    magic: bytes = b""
    number: int = 0
    parts: datagrams.Parts = field(default_factory=datagrams.Parts)


class Relay:
    """Commands, the relay port, and the proxy sockets."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.epoch, self.secret = os.urandom(8), os.urandom(32)
        self.ports: dict[bytes, Port] = {}
        self.flows = 0
        self.trick = ""
        self.selector = selectors.DefaultSelector()
        self.reader = self.commanded
        self.commands = self.open(self.reader)
        self.relay = self.open(self.relayed)

    def open(self, reader: object, port: int = 0) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.bind((self.host, port))
        except OSError:
            sock.bind((self.host, 0))
        self.selector.register(sock, selectors.EVENT_READ, reader)
        return sock

    def serve(self) -> None:
        self.selector.register(sys.stdin, selectors.EVENT_READ, None)
        while True:
            for key, _ in self.selector.select():
                if key.data is None:
                    return
                key.data(*key.fileobj.recvfrom(65536))  # type: ignore[union-attr]

    # --- commands

    def commanded(self, data: bytes, source: Address) -> None:
        if data[:1] == b"!":
            self.commands.sendto(self.told(*data[1:].decode().split()).encode(), source)
        else:
            self.answer(data, source, self.commands, b"")

    def answer(self, data: bytes, source: Address, sock: socket.socket, magic: bytes) -> None:
        try:
            frame = parse(data)
            reply = self.reply(frame, source, magic)
        except RemoteProtocolError:
            return
        sock.sendto(magic + reply, source)

    def reply(self, frame: Frame, source: Address, magic: bytes) -> bytes:
        asked = message_of(frame)
        cookie = auth.cookie(self.secret, source, 0)
        if isinstance(asked, Hello):
            hello = HelloReply(self.epoch, cookie, Endpoint.of(source), 1, self.host)
            return auth.reply_to(frame, None, Status.SUCCESS, hello)
        if asked.cookie != cookie:  # type: ignore[attr-defined]
            return auth.reply_to(frame, None, Status.STALE_EPOCH)
        status, body = self.carry_out(asked, source, magic)
        return auth.reply_to(frame, None, status, body)

    def carry_out(
        self, asked: Message, source: Address, magic: bytes
    ) -> tuple[Status, Message | None]:
        cookie = auth.cookie(self.secret, source, 0)
        seen = Endpoint.of(source)
        if isinstance(asked, Register) and asked.protocol == UDP and self.trick != "streams":
            return Status.SUCCESS, self.register(asked)
        if isinstance(asked, Refresh):
            lost = [one for one in asked.listeners if one not in self.ports]
            return Status.SUCCESS, RefreshReply(self.epoch, cookie, seen, LIFETIME, lost)
        if isinstance(asked, Unregister):
            return self.unregister(asked.listener), None
        if isinstance(asked, Flow) and magic:
            port = self.ports.get(asked.listener)
            if port is None:
                return Status.UNKNOWN, None
            port.where, port.magic = source, magic
            self.flows += 1
            return Status.SUCCESS, FlowReply(self.epoch, cookie, seen, LIFETIME)
        return Status.UNSUPPORTED, None

    def register(self, asked: Register) -> RegisterReply:
        if asked.listener not in self.ports:
            wished = asked.proxy.port if asked.proxy else asked.wished
            proxy = self.open(None, wished)
            port = self.ports[asked.listener] = Port(proxy)
            self.selector.modify(
                proxy, selectors.EVENT_READ, lambda data, peer: self.came(port, data, peer)
            )
        name = self.ports[asked.listener].proxy.getsockname()
        lifetime = min(asked.lifetime, LIFETIME)
        return RegisterReply(Endpoint.of(name), b"", lifetime, self.relay.getsockname()[1])

    def unregister(self, listener: bytes) -> Status:
        port = self.ports.pop(listener, None)
        if port is None:
            return Status.UNKNOWN
        self.selector.unregister(port.proxy)
        port.proxy.close()
        return Status.SUCCESS

    # --- datagrams

    def came(self, port: Port, data: bytes, peer: Address) -> None:
        """Somebody sent to a proxy address."""
        if port.where is None:
            return
        header = datagrams.whole(peer)
        if len(header) + len(data) <= datagrams.MOST_PAYLOAD:
            self.relay.sendto(header + data, port.where)
            return
        port.number += 1
        one, two = datagrams.parts(peer, port.number)
        both = [one + data[:40000], two + data[40000:]]
        order = {"reorder": both[::-1], "lose": both[:1]}.get(self.trick, both)
        self.trick = ""
        for part in order:
            self.relay.sendto(part, port.where)

    def relayed(self, data: bytes, source: Address) -> None:
        """A program's port sent to the relay port."""
        if data and not data[0] & datagrams.CONTROL_BIT:
            self.answer(data[8:], source, self.relay, data[:8])
            return
        port = next((one for one in self.ports.values() if one.where == source), None)
        if port is None:
            return
        header = datagrams.parse(data)
        payload: bytes | None = data[header.size :]
        if header.part:
            payload = port.parts.join(header, data[header.size :], 0.0)
        if payload is not None:
            port.proxy.sendto(payload, header.peer)

    # --- what tests tell

    def settle(self) -> None:
        """Relay whatever was sent before the word that is being read."""
        while ready := [k for k, _ in self.selector.select(0) if k.data not in (None, self.reader)]:
            for key in ready:
                key.data(*key.fileobj.recvfrom(65536))  # type: ignore[union-attr]

    def told(self, word: str, *words: str) -> str:
        self.settle()
        living = [port for port in self.ports.values() if port.where]
        if word == "flood":
            for port in living:
                for number in range(int(words[0])):
                    self.relay.sendto(port.magic + b"%d" % number, port.where)
        elif word in ("garbage", "stranger"):
            for port in living:
                for data in GARBAGE if word == "garbage" else STRANGE:
                    self.relay.sendto(data, port.where)
        elif word == "flows":
            return f"flows {self.flows}"
        elif word == "proxies":
            return f"proxies {len(self.ports)}"
        else:
            self.trick = word
        return f"done {word}"


PEER = ("192.0.2.7", 9)
GARBAGE = [
    b"",
    b"\xd4",
    b"\x7f" + bytes(20),
    b"\xff" * 30,
    datagrams.whole(PEER)[:7],
    datagrams.whole(("192.0.2.7", 1))[:2] + bytes(6) + b"port 0",
    b"\xd4\x01" + datagrams.whole(PEER)[2:] + b"part of a whole",
    datagrams.parts(PEER, 7)[0][:11],
    datagrams.parts(PEER, 7)[0] + b"alone",
    datagrams.parts(PEER, 8)[0] + bytes(40000),
    datagrams.parts(PEER, 8)[1] + bytes(40000),
]
STRANGE = [datagrams.whole(("2001:db8::7", 9)) + b"from afar"]


def main() -> None:
    """Serve until standard input ends."""
    relay = Relay(sys.argv[1])
    print(f"ready {relay.host}:{relay.commands.getsockname()[1]}", flush=True)
    relay.serve()


if __name__ == "__main__":
    main()
