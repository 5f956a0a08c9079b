"""A small client of dpfd on plain blocking sockets: command sessions and management sockets.

For tests, in their own process or as a program inside a network namespace:

    python -m tests.loopback.gateway_client DPFD_HOST:PORT OWN_HOST [--port N] [--lifetime S]

listens, maps its port, serves its management socket, prints ``mapped PUBLIC_HOST:PORT``, and
answers each connection with ``hello PEER_HOST`` and all that it is sent. It renews its lease
every --renew seconds, by default never.
"""

from __future__ import annotations

import argparse
import os
import socket
import threading
from typing import Any, NamedTuple, Self, TypeVar

from gcbpatch.addresses import Address, format_address, parse_host_port
from gcbpatch.errors import RefusedError, Status
from gcbpatch.wire.auth import Key, check_reply, proof, reply_to, sealed
from gcbpatch.wire.codec import Frame, Kind, message_of, status_of
from gcbpatch.wire.messages import (
    TCP,
    Command,
    Endpoint,
    Forward,
    ForwardReply,
    Message,
    Prove,
    ProveReply,
    Query,
    QueryReply,
    Renew,
    RenewReply,
    Session,
    SessionReply,
    Unforward,
)
from gcbpatch.wire.session import FrameReader

HANG_LIMIT = 60.0
Reply = TypeVar("Reply", bound=Message)


def random_id() -> bytes:
    return os.urandom(16)


def read_frame(link: socket.socket) -> Frame | None:
    """The next frame; None at the end of the stream."""
    reader = FrameReader()
    while True:
        data = link.recv(reader.wants)
        if not data:
            return None
        if frame := reader.feed(data):
            return frame


class Claim(NamedTuple):
    """What a client says of its management socket."""

    nonce: bytes
    address: Address


class Management:
    """A management socket: proves to know its nonce to whoever asks.

    ``proofs`` counts how often it did. A closed one refuses; with another nonce it is somebody
    else's on a reused port.
    """

    def __init__(self, host: str, made: socket.socket | None = None) -> None:
        """Listen at ``host``, with a socket that was made elsewhere if there is one."""
        self.nonce = random_id()
        self.proofs = threading.Semaphore(0)
        self._listener = made or socket.socket()
        self._listener.bind((host, 0))
        self._listener.listen()
        self.address: Address = self._listener.getsockname()
        threading.Thread(target=self._serve, name="management", daemon=True).start()

    def close(self) -> None:
        # shutdown() wakes the thread in accept(), which close() alone does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def wait_for_proof(self) -> None:
        assert self.proofs.acquire(timeout=HANG_LIMIT), "nobody asked for a proof"

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            with link:
                link.settimeout(HANG_LIMIT)
                self._answer(link)

    def _answer(self, link: socket.socket) -> None:
        frame = read_frame(link)
        if frame is None:
            return
        request = message_of(frame)
        assert isinstance(request, Prove)
        reply = ProveReply(proof(self.nonce, "management", request.challenge))
        link.sendall(reply_to(frame, None, Status.SUCCESS, reply))
        self.proofs.release()


class GatewayClient:
    """A command session. Refusals are raised as RefusedError."""

    def __init__(
        self,
        server: Address,
        *,
        client: bytes | None = None,
        token: str = "",
        source: str = "",
        link: socket.socket | None = None,
    ) -> None:
        """Connect, or take a connection that was made elsewhere."""
        self.client = client or random_id()
        self.key = Key(token.encode()) if token else None
        own = (source, 0) if source else None
        self.link = link or socket.create_connection(server, HANG_LIMIT, own)
        self.host = str(self.link.getsockname()[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.link.close()

    def ended(self) -> bool:
        """Whether the other side has closed the session; waits for it."""
        try:
            return self.link.recv(1) == b""
        except ConnectionResetError:
            return True

    def send(self, command: int, message: Message | None, transaction: int = 7) -> None:
        self.link.sendall(sealed(self.key, Kind.REQUEST, command, transaction, message))

    def receive(self) -> Frame:
        frame = read_frame(self.link)
        assert frame is not None, "dpfd closed the session"
        return frame

    def call(self, command: Command, message: Message, kind: type[Reply]) -> Reply:
        transaction = int.from_bytes(os.urandom(8), "big")
        self.send(command, message, transaction)
        frame = self.receive()
        check_reply(frame, self.key)
        assert (frame.kind, frame.command) == (Kind.REPLY, command)
        assert frame.transaction == transaction
        if status_of(frame) is not Status.SUCCESS:
            raise RefusedError(status_of(frame), command.name)
        reply = message_of(frame)
        assert isinstance(reply, kind)
        return reply

    def open(self) -> SessionReply:
        return self.call(Command.SESSION, Session(self.client), SessionReply)

    def forward(
        self, listener: bytes, inside: Address, management: Management | Claim, **wishes: Any
    ) -> ForwardReply:
        """Ask for a mapping; the wishes are those of forward_request()."""
        request = self.forward_request(listener, inside, management, **wishes)
        return self.call(Command.FORWARD, request, ForwardReply)

    def forward_request(
        self,
        listener: bytes,
        inside: Address,
        management: Management | Claim,
        *,
        wished: Address | None = None,
        lifetime: int = 30,
        protocol: int = TCP,
    ) -> Forward:
        return Forward(
            client=self.client,
            listener=listener,
            protocol=protocol,
            inside=Endpoint.of(inside),
            wished=Endpoint.of(wished) if wished else None,
            management=Endpoint.of(management.address),
            nonce=management.nonce,
            lifetime=lifetime,
        )

    def unforward(self, listener: bytes) -> Message:
        return self.call(Command.UNFORWARD, Unforward(self.client, listener), Message)

    def renew(self, *listeners: bytes) -> RenewReply:
        return self.call(Command.RENEW, Renew(self.client, list(listeners)), RenewReply)

    def query(self, public: Address, protocol: int = TCP) -> Address:
        reply = self.call(Command.QUERY, Query(Endpoint.of(public), protocol), QueryReply)
        return reply.inside.address


def _echo(link: socket.socket, peer: Address) -> None:
    with link:
        link.sendall(f"hello {peer[0]}\n".encode())
        while data := link.recv(65536):
            link.sendall(data)


def _serve(listener: socket.socket) -> None:
    while True:
        link, peer = listener.accept()
        threading.Thread(target=_echo, args=(link, peer), daemon=True).start()


def _renew(server: Address, client: bytes, token: str, listener: bytes, interval: float) -> None:
    """Renew in a session of its own each time, as long as dpfd can be reached."""
    while not threading.Event().wait(interval):
        try:
            with GatewayClient(server, client=client, token=token) as session:
                session.open()
                session.renew(listener)
        except ConnectionError as error:
            print(f"not renewed: {error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("server")
    parser.add_argument("host")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--wished", type=int, default=0)
    parser.add_argument("--lifetime", type=int, default=30)
    parser.add_argument("--token", default="")
    parser.add_argument("--renew", type=float, default=0.0)
    given = parser.parse_args()
    listener = socket.create_server((given.host, given.port))
    inside, listener_id = listener.getsockname(), random_id()
    management = Management(given.host)
    server = parse_host_port(given.server, 65431)
    wished = ("0.0.0.0", given.wished) if given.wished else None
    with GatewayClient(server, token=given.token) as session:
        session.open()
        reply = session.forward(
            listener_id, inside, management, wished=wished, lifetime=given.lifetime
        )
    print(f"mapped {format_address(reply.public.address)}", flush=True)
    if given.renew:
        keep = (server, session.client, given.token, listener_id, given.renew)
        threading.Thread(target=_renew, args=keep, daemon=True).start()
    _serve(listener)


if __name__ == "__main__":
    main()
