"""The reliable exchange with one broker over one UDP socket: questions, calls, the cookie.

Bytes come and go through wire; what calls mean is somebody else's business. It must never
act on a datagram that was not authenticated as far as our token allows.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable

from ..addresses import Address, format_address
from ..errors import RefusedError, RemoteProtocolError, Status
from ..wire import auth
from ..wire.codec import MAX_DATAGRAM, Frame, Kind, message_of, parse, status_of
from ..wire.messages import Call, Command, Hello, HelloReply, Message
from ..wire.replay import Answers
from ..wire.transaction import Requester

log = logging.getLogger("gcbpatch.agent")

AnswerCall = Callable[[Call], Status]


class Unreachable(OSError):
    """No answer came from the broker within the patience."""


class Control:
    """The control channel to one broker.

    ``hello`` is the newest HelloReply; ``host`` is where the broker is dialled, by UDP here
    and by TCP for relayed halves.
    """

    def __init__(
        self, broker: Address, client: bytes, key: auth.Key | None, answer_call: AnswerCall
    ) -> None:
        self.broker = broker
        self.hello: HelloReply | None = None
        self._client = client
        self._key = key
        self._answer_call = answer_call
        self._requester = Requester()
        self._answers = Answers(most=4096)
        self._waiting: dict[int, tuple[Command, asyncio.Future[Frame]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._logged: set[str] = set()
        self._socket = self._open()

    def _open(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.broker[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect(self.broker)
        self._loop.add_reader(sock, self._readable)
        return sock

    @property
    def local_host(self) -> str:
        """The address of this host from which the broker is reached."""
        return str(self._socket.getsockname()[0])

    def close(self) -> None:
        """Give up the channel; whoever waits gets Unreachable."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        if self._timer is not None:
            self._timer.cancel()
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(Unreachable("the control channel was closed"))

    async def greet(self, patience: float) -> HelloReply:
        """Say HELLO; the cookie and epoch in the answer are kept."""
        reply = await self._exchange(Command.HELLO, Hello(self._client), patience)
        assert isinstance(reply, HelloReply)
        self.hello = reply
        return reply

    async def ask(
        self, command: Command, make: Callable[[bytes], Message], patience: float
    ) -> Message:
        """Ask what ``make(cookie)`` says; greets first, and again when the cookie is stale.

        Raises Unreachable, RefusedError or RemoteProtocolError.
        """
        hello = self.hello or await self.greet(patience)
        try:
            return await self._exchange(command, make(hello.cookie), patience)
        except RefusedError as refused:
            if refused.status is not Status.STALE_EPOCH:
                raise
        hello = await self.greet(patience)
        return await self._exchange(command, make(hello.cookie), patience)

    async def _exchange(self, command: Command, message: Message, patience: float) -> Message:
        transaction = int.from_bytes(os.urandom(8), "big")
        data = auth.sealed(self._key, Kind.REQUEST, command, transaction, message)
        future: asyncio.Future[Frame] = self._loop.create_future()
        self._waiting[transaction] = command, future
        self._requester.request(transaction, data, self.broker, self._loop.time(), patience)
        self._turn()
        try:
            frame = await future
        finally:
            self._waiting.pop(transaction, None)
            self._requester.settle(transaction)
        if status_of(frame) is not Status.SUCCESS:
            raise RefusedError(status_of(frame), command.name)
        return message_of(frame)

    def _turn(self) -> None:
        """Send what is due, fail what is over, and set the timer for the next turn."""
        now = self._loop.time()
        for data, _ in self._requester.datagrams_to_send(now):
            self._send(data)
        for transaction in self._requester.expired(now):
            _, future = self._waiting.get(transaction, (None, None))
            if future is not None and not future.done():
                where = format_address(self.broker)
                future.set_exception(Unreachable(f"no answer from the broker at {where}"))
        if self._timer is not None:
            self._timer.cancel()
        due = self._requester.get_timer()
        self._timer = None if due is None else self._loop.call_at(due, self._turn)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            # ECONNREFUSED tells of an earlier datagram: a restarting broker does that, too.
            # Whatever it is, the exchange sends again until its patience ends.
            self._log_once("cannot send to the broker at %s: %s", error)

    def _readable(self) -> None:
        while True:
            try:
                data = self._socket.recv(MAX_DATAGRAM + 1)
            except BlockingIOError:
                return
            except OSError as error:
                self._log_once("the broker at %s cannot be reached: %s", error)
                return
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        try:
            frame = parse(data)
            if frame.kind is Kind.REPLY:
                self._receive_reply(frame)
            else:
                self._receive_request(frame)
        except RemoteProtocolError as error:
            self._log_once("not believed, from the broker's address %s: %s", error)

    def _receive_reply(self, frame: Frame) -> None:
        command, future = self._waiting.get(frame.transaction, (None, None))
        if future is None or future.done():
            return
        auth.check_reply(frame, self._key)
        if frame.command != command:
            raise RemoteProtocolError(Status.MALFORMED, f"a reply to command {frame.command}")
        status_of(frame)
        message_of(frame)
        self._requester.settle(frame.transaction)
        future.set_result(frame)

    def _receive_request(self, frame: Frame) -> None:
        if self._key is not None:
            auth.Keyring([self._key]).authenticate(frame)
        message = message_of(frame)
        if not isinstance(message, Call):
            raise RemoteProtocolError(Status.UNSUPPORTED, "only CALL is taken here")
        if not self._answers.begin(self.broker, frame.transaction, self._loop.time()):
            answer = self._answers.again(self.broker, frame.transaction)
        else:
            answer = auth.reply_to(frame, self._key, self._answer_call(message))
            self._answers.keep(self.broker, frame.transaction, answer)
        if answer is not None:
            self._send(answer)

    def _log_once(self, text: str, error: Exception) -> None:
        line = text % (format_address(self.broker), error)
        if line not in self._logged and len(self._logged) < 1000:
            self._logged.add(line)
            log.warning("%s", line)
