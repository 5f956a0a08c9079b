"""The command port: control datagrams by UDP, first frames of halves and lines by TCP.

Turns bytes into frames and hands these to dispatch and relay; turns what they refuse into
bare statuses and one line in the log. It must never send an unproved address more bytes
than it got from there, never answer an answer, and never take from a connection a byte
more than its first frame.
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from gcbpatch.addresses import Address, family_of, format_address
from gcbpatch.errors import GcbError, RemoteProtocolError, Status
from gcbpatch.wire import auth
from gcbpatch.wire.codec import (
    HEADER,
    HEADER_SIZE,
    MAGIC,
    Frame,
    Kind,
    build,
    message_of,
    parse,
    status_of,
)
from gcbpatch.wire.datagrams import MAGIC_SIZE
from gcbpatch.wire.messages import Command, Join
from gcbpatch.wire.session import FrameReader
from gcbpatch.wire.transaction import FIRST_INTERVAL, Requester, transaction_of

from . import arrival
from .dispatch import Dispatcher, Question
from .limits import Complaints
from .lines import Line, Lines
from .parking import Parking
from .proxies import Acceptor, new_socket
from .registry import Refusal, Sender
from .relay import Relays, say_and_close

log = logging.getLogger("brokerd")

DATAGRAMS = 64
"""Datagrams per wake-up, so that relays are not starved."""
DATAGRAM_SIZE = 2048
ANY_PORT_ATTEMPTS = 16
RECEIVE_BUFFER = 4 * 1024 * 1024
JOIN_PATIENCE = 10.0
"""Seconds from accept to a whole first frame."""
MOST_JOINING = 1024
"""Connections without a whole first frame; with one more the oldest is closed."""


class Complainer:
    """Logs a peer's fault once."""

    def __init__(self) -> None:
        self._complaints = Complaints()

    def complain(self, peer: Address, problem: GcbError) -> None:
        """Log that ``peer`` did something wrong, unless that was logged already."""
        if self._complaints.is_new(peer, str(problem), time.monotonic()):
            log.warning("refused %s: %s", format_address(peer), problem)


def bare_status(data: bytes, status: Status) -> bytes | None:
    """Return the answer to a request whose header can be read; None if it cannot.

    It has a header's size and no MAC: never larger than what it answers.
    """
    if len(data) < HEADER_SIZE:
        return None
    magic, _, kind, command, _, _, transaction, _ = HEADER.unpack_from(data)
    if magic != MAGIC or kind == Kind.REPLY:
        return None
    return build(Kind.REPLY, command, transaction, status=status)


@dataclass(slots=True)
class _Asked:
    question: Question
    done: Callable[[Status], None]
    sent: Sender
    """Where the question went last: the answer comes from there."""


class Datagrams:
    """The UDP side: answers requests, and asks questions until they are answered."""

    def __init__(
        self,
        loop: Any,
        socks: Sequence[socket.socket],
        complainer: Complainer,
        only: Command | None = None,
    ) -> None:
        """``socks`` are of one port, one for each family.

        ``only`` is the one command that is taken; None takes all.
        """
        self._only = only
        self.dispatcher: Dispatcher | None = None
        self._socks = {6 if sock.family == socket.AF_INET6 else 4: sock for sock in socks}
        self._complainer = complainer
        self._requester = Requester()
        self._asked: dict[int, _Asked] = {}
        self._watchers = [(loop.io(sock.fileno(), 1), sock) for sock in socks]

    def start(self, dispatcher: Dispatcher) -> None:
        """Begin to answer."""
        self.dispatcher = dispatcher
        for watcher, sock in self._watchers:
            watcher.start(self._hear, sock)

    def ask(
        self, question: Question, done: Callable[[Status], None], now: float
    ) -> Callable[[], None]:
        """Send a question now, and again until it is answered or its patience is over.

        ``done`` gets the status of the answer, UNKNOWN if there is none. Returns a function
        that ends the matter.
        """
        asked = self._asked[question.transaction] = _Asked(question, done, question.to)
        # Sent by hand now: datagrams_to_send would look through all that are waiting.
        self._requester.request(
            question.transaction,
            question.data,
            question.to.address,
            now + FIRST_INTERVAL,
            question.patience - FIRST_INTERVAL,
        )
        self._say(question.before + question.data, asked.sent)
        return lambda: self._settle(question.transaction)

    def tick(self, now: float) -> None:
        """Send again what is due, give up what is over."""
        for data, _ in self._requester.datagrams_to_send(now):
            self._say_again(self._asked[transaction_of(data)])
        for transaction in self._requester.expired(now):
            asked = self._asked.pop(transaction)
            asked.done(Status.UNKNOWN)

    def close(self) -> None:
        """Stop; what is being asked is given up."""
        for watcher, sock in self._watchers:
            watcher.stop()
            watcher.close()
            sock.close()

    def _say_again(self, asked: _Asked) -> None:
        """Ask where the client is now; on a line nothing is said twice."""
        to = asked.question.to
        if to.line is None or to.line is not asked.sent.line:
            asked.sent = to
            self._say(asked.question.before + asked.question.data, to)

    def _say(self, data: bytes, to: Sender) -> None:
        if to.line is not None:
            to.line.send(data)
        else:
            self._send(data, to.address, to.via)

    def _settle(self, transaction: int) -> None:
        self._requester.settle(transaction)
        self._asked.pop(transaction, None)

    def hear(self) -> None:
        """Answer what has come."""
        for _, sock in self._watchers:
            self._hear(sock)

    def _hear(self, sock: socket.socket) -> None:
        now = time.monotonic()
        for _ in range(DATAGRAMS):
            try:
                data, ancillary, _, peer = sock.recvmsg(DATAGRAM_SIZE, arrival.ROOM)
            except BlockingIOError:
                return
            except OSError as error:
                log.error("receiving datagrams: %s", error.strerror)
                return
            self._received(data, peer[:2], arrival.host_in(ancillary), now)

    def _received(self, data: bytes, peer: Address, via: str, now: float) -> None:
        magic = _magic_of(data)
        if magic:
            data = data[MAGIC_SIZE:]
        try:
            frame = parse(data)
            if frame.kind is Kind.REPLY:
                self._answered(frame, peer, None)
                return
            if self._only not in (None, frame.command):
                raise RemoteProtocolError(Status.UNSUPPORTED, "not at this port")
            assert self.dispatcher is not None
            reply = self.dispatcher.answer(frame, peer, via, now, by_port=bool(magic))
        except RemoteProtocolError as error:
            self._complainer.complain(peer, error)
            reply = bare_status(data, error.status)
        if reply is not None:
            self._send(magic + reply, peer, via)

    def receive(self, frame: Frame, line: Line, now: float) -> bytes | None:
        """Return the answer to a frame that came by TCP. Raises RemoteProtocolError."""
        if frame.kind is Kind.REPLY:
            self._answered(frame, line.peer, line)
            return None
        assert self.dispatcher is not None
        return self.dispatcher.answer(frame, line.peer, line.via, now, line=line)

    def _answered(self, frame: Frame, peer: Address, line: Line | None) -> None:
        """An answer came; one that nobody waits for, or from elsewhere, is passed over."""
        asked = self._asked.get(frame.transaction)
        if asked is None or frame.command not in (Command.CALL, Command.MEET):
            return
        if (asked.sent.address, asked.sent.line) != (peer, line):
            return
        auth.check_reply(frame, asked.sent.key)
        status = status_of(frame)
        self._settle(frame.transaction)
        asked.done(status)

    def _send(self, data: bytes, address: Address, via: str) -> None:
        try:
            sock = self._socks[family_of(address[0])]
            sock.sendmsg([data], arrival.leaving_from(via), 0, address)
        except OSError as error:
            # As if lost on the way: whoever asked, asks again.
            log.debug("cannot send to %s: %s", format_address(address), error.strerror)


def _magic_of(data: bytes) -> bytes:
    """Return what stands before a frame that comes from a program's port, or nothing."""
    beside = data[MAGIC_SIZE : MAGIC_SIZE + len(MAGIC)] == MAGIC
    return data[:MAGIC_SIZE] if beside and not data.startswith(MAGIC) else b""


Pair = tuple[socket.socket, socket.socket]
"""A UDP and a listening TCP socket."""


def command_sockets(port: int, hosts: Sequence[str]) -> list[Pair]:
    """Return the sockets on one port, 0 for any: a pair for the family of each host.

    Raises OSError.
    """
    for _ in range(0 if port else ANY_PORT_ATTEMPTS):
        try:
            return _command_pairs(0, hosts)
        except OSError as error:
            # The port that TCP was given can be somebody's by UDP, or in the other family.
            if error.errno != errno.EADDRINUSE:
                raise
    return _command_pairs(port, hosts)


def second_sockets(command_port: int, hosts: Sequence[str]) -> list[socket.socket]:
    """Return UDP sockets on the port above the command port, on any if that is in use.

    One for the family of each host. Raises OSError.
    """
    above = min(command_port + 1, 65535)
    for port in (above, *[0] * ANY_PORT_ATTEMPTS):
        try:
            return _second_sockets(port, hosts)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return _second_sockets(0, hosts)


def _second_sockets(port: int, hosts: Sequence[str]) -> list[socket.socket]:
    made: list[socket.socket] = []
    try:
        for host in hosts:
            made.append(new_socket(host, socket.SOCK_DGRAM))
            made[-1].bind(("", port))
            arrival.tell(made[-1])
            port = made[0].getsockname()[1]
    except OSError:
        for sock in made:
            sock.close()
        raise
    return made


def _command_pairs(port: int, hosts: Sequence[str]) -> list[Pair]:
    pairs: list[Pair] = []
    try:
        for host in hosts:
            pairs.append(_command_pair(port, host))
            port = pairs[0][1].getsockname()[1]
    except OSError:
        for udp, tcp in pairs:
            udp.close()
            tcp.close()
        raise
    return pairs


def _command_pair(port: int, host: str) -> Pair:
    tcp, udp = new_socket(host, socket.SOCK_STREAM), new_socket(host, socket.SOCK_DGRAM)
    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(("", port))
        udp.bind(("", tcp.getsockname()[1]))
        arrival.tell(udp)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        tcp.listen(socket.SOMAXCONN)
    except OSError:
        tcp.close()
        udp.close()
        raise
    return udp, tcp


class _Joining:
    """A connection whose first frame is still to come."""

    __slots__ = ("deadline", "head", "peer", "reader", "sock", "watcher")

    def __init__(self, sock: socket.socket, peer: Address, watcher: Any, deadline: float) -> None:
        self.sock = sock
        self.peer = peer
        self.watcher = watcher
        self.deadline = deadline
        self.reader = FrameReader()
        self.head = b""

    def read(self) -> Frame | None:
        """Read what is there of the first frame, and not a byte more; return it when whole.

        Raises EOFError at the end of stream, RemoteProtocolError, and OSError.
        """
        while True:
            data = self.sock.recv(self.reader.wants)
            if not data:
                raise EOFError
            self.head = (self.head + data)[:HEADER_SIZE]
            frame = self.reader.feed(data)
            if frame is not None:
                return frame

    def unwatch(self) -> None:
        self.watcher.stop()
        self.watcher.close()


class Door:
    """The TCP side: takes the first frame of every connection, a JOIN, a PARK or a HELLO."""

    def __init__(
        self,
        loop: Any,
        socks: Sequence[socket.socket],
        dispatcher: Dispatcher,
        relays: Relays,
        lines: Lines,
        complainer: Complainer,
        parking: Parking,
    ) -> None:
        self._loop = loop
        self._lines = lines
        self._parking = parking
        parking.leave = self._join
        self._dispatcher = dispatcher
        self._relays = relays
        self._complainer = complainer
        # In the order in which they came, and so in that of their deadlines.
        self._joining: dict[int, _Joining] = {}
        self._acceptors = [Acceptor(loop, sock, self._accepted) for sock in socks]

    def tick(self, now: float) -> None:
        """Close those who took too long."""
        for joining in list(self._joining.values()):
            if joining.deadline > now:
                return
            self._turn_away(joining, "no first frame in time")

    def close(self) -> None:
        """Close the door and all who stand in it."""
        for acceptor in self._acceptors:
            acceptor.close()
        for joining in list(self._joining.values()):
            self._take(joining).sock.close()

    def _accepted(self, sock: socket.socket, peer: Address) -> None:
        if len(self._joining) >= MOST_JOINING:
            self._turn_away(next(iter(self._joining.values())), "too many without a first frame")
        deadline = time.monotonic() + JOIN_PATIENCE
        watcher = self._loop.io(sock.fileno(), 1)
        joining = self._joining[sock.fileno()] = _Joining(sock, peer, watcher, deadline)
        watcher.start(self._readable, joining)

    def _readable(self, joining: _Joining) -> None:
        try:
            frame = joining.read()
            assert frame is not None
        except BlockingIOError:
            return
        except (EOFError, OSError):
            self._take(joining).sock.close()
            return
        except RemoteProtocolError as error:
            self._take(joining)
            self._refuse(joining.sock, joining.peer, joining.head, error)
            return
        self._take(joining)
        if frame.kind is Kind.REQUEST and frame.command == Command.HELLO:
            self._lines.adopt(joining.sock, joining.peer, frame, time.monotonic())
        elif frame.kind is Kind.REQUEST and frame.command == Command.PARK:
            self._parking.enter(joining.sock, joining.peer, frame, time.monotonic())
        else:
            self._join(joining.sock, joining.peer, frame)

    def _join(self, sock: socket.socket, peer: Address, frame: Frame) -> None:
        try:
            key = self._dispatcher.keyring.authenticate(frame)
            if frame.kind is not Kind.REQUEST or frame.command != Command.JOIN:
                raise RemoteProtocolError(
                    Status.UNSUPPORTED,
                    f"command {frame.command} on a connection; JOIN, PARK or HELLO would be",
                )
            self._relays.join(sock, frame, key, cast(Join, message_of(frame)))
        except (RemoteProtocolError, Refusal) as error:
            self._refuse(sock, peer, frame.signed, error)

    def _refuse(
        self, sock: socket.socket, peer: Address, said: bytes, error: RemoteProtocolError | Refusal
    ) -> None:
        self._complainer.complain(peer, error)
        say_and_close(sock, bare_status(said, error.status) or b"")

    def _turn_away(self, joining: _Joining, why: str) -> None:
        self._complainer.complain(joining.peer, GcbError(why))
        self._take(joining).sock.close()

    def _take(self, joining: _Joining) -> _Joining:
        """Take a connection out of the door."""
        del self._joining[joining.sock.fileno()]
        joining.unwatch()
        return joining
