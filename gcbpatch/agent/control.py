"""The reliable exchange with one broker: questions, calls, the cookie.

By UDP, or by TCP where HELLO has no answer by UDP. Bytes come and go through wire; what
calls mean is somebody else's business. It must never act on a frame that was not
authenticated as far as our token allows.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from ..addresses import Address, format_address
from ..errors import RefusedError, RemoteProtocolError, Status
from ..wire import auth
from ..wire.codec import MAX_DATAGRAM, Frame, Kind, message_of, parse, status_of
from ..wire.messages import Call, Command, Hello, HelloReply, Meet, Message
from ..wire.replay import Answers
from ..wire.transaction import Requester, transaction_of
from .line import Line, dial

log = logging.getLogger("gcbpatch.agent")

AnswerCall = Callable[[Call | Meet], Status]
Greeting = asyncio.Task[tuple["Line | None", HelloReply]]

LINE_AFTER = 1.0
"""Seconds that HELLO goes unanswered by UDP before it is said by TCP as well."""


MOST_ROUND_TRIP = 10000
"""Milliseconds."""


def learnt(known: int, took: int) -> int:
    """Return the milliseconds to a broker and back, after an answer that took so many.

    ``known`` is what they were before, 0 if nothing was. A quick answer shows what the line
    takes, a slow one may be a busy host's, or have been sent again: it counts an eighth.
    """
    if known and took > known:
        took = known + (took - known) // 8
    return min(took, MOST_ROUND_TRIP)


def _nothing() -> None:
    """Nobody wants to know."""


class Unreachable(OSError):
    """No answer came from the broker within the patience."""


class Lost(Unreachable):
    """The line on which a question was asked has ended."""


@dataclass(slots=True)
class _Waiting:
    """A question, and the line that it was asked on; None is UDP."""

    command: Command
    line: Line | None
    answer: asyncio.Future[Frame]

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Control:
    """The control channel to one broker. ``hello`` is the newest HelloReply."""

    lines = True
    """Whether TCP is tried where UDP does not get through."""

    def __init__(
        self, broker: Address, client: bytes, key: auth.Key | None, answer_call: AnswerCall
    ) -> None:
        self.broker = broker
        self.hello: HelloReply | None = None
        self.round_trip = 0
        """Milliseconds that answers take; 0 before the first."""
        self._client = client
        self._key = key
        self._answer_call = answer_call
        self._requester = Requester()
        self._answers = Answers(most=4096)
        self._waiting: dict[int, _Waiting] = {}
        self._line: Line | None = None
        self._blocked = False
        self._doubtful = False
        self._greeting: asyncio.Task[HelloReply] | None = None
        self.on_lost: Callable[[], None] = _nothing
        """Called when a line has ended by itself: no call can come before it is replaced."""
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._logged: set[str] = set()
        self._socket = self._open()

    def _open(self) -> socket.socket:
        sock = self._connected()
        self._loop.add_reader(sock, self._readable)
        return sock

    def _connected(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.broker[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.connect(self.broker)
        except OSError:
            sock.close()
            raise
        return sock

    @property
    def local_host(self) -> str:
        """The address of this host from which the broker is reached."""
        return str(self._socket.getsockname()[0])

    @property
    def local_port(self) -> int:
        """The UDP port from which the broker is spoken to."""
        return int(self._socket.getsockname()[1])

    @property
    def keeps_ports(self) -> bool:
        """Whether the broker sees us under our own port, as far as it has said."""
        return self.hello is None or self.hello.observed.port == self.local_port

    @property
    def by_line(self) -> bool:
        """Whether the broker is spoken to by TCP, since datagrams do not reach it."""
        return self._line is not None

    def moved(self) -> bool:
        """Look whether this host has another address now, and speak from that one if so."""
        try:
            fresh = self._connected()
        except OSError:
            return False  # no way there at the moment: the old address may be the next one, too
        host = fresh.getsockname()[0]
        if host == self.local_host:
            fresh.close()
            return False
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._socket = fresh
        self._loop.add_reader(fresh, self._readable)
        if self._line is not None and self._line.host != host:
            self._drop_line()
        self._doubtful = True
        return True

    def close(self) -> None:
        """Give up the channel; whoever waits gets Unreachable."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._greeting is not None:
            self._greeting.cancel()
        self._drop_line()
        for waiting in self._waiting.values():
            waiting.fail(Unreachable("the control channel was closed"))

    async def greet(self, patience: float) -> HelloReply:
        """Say HELLO; the cookie and epoch in the answer are kept.

        Said by UDP and, if no answer comes soon or none came the last time, by TCP as well:
        who answers first tells how we speak from now on. Raises as ask() does.
        """
        if self._greeting is None:
            self._greeting = asyncio.ensure_future(self._greet(patience))
            self._greeting.add_done_callback(self._greeted)
        # Shared by all who ask meanwhile: one of them may be withdrawn.
        return await asyncio.shield(self._greeting)

    def _greeted(self, greeting: asyncio.Task[HelloReply]) -> None:
        self._greeting = None
        if not greeting.cancelled() and isinstance(greeting.exception(), Unreachable):
            self._drop_line()

    async def _greet(self, patience: float) -> HelloReply:
        steps = [self._greet_on(None, patience)]
        if self.lines:
            steps.append(self._greet_by_line(patience))
        line, self.hello = await _first_of(steps)
        if line is not self._line:
            self._drop_line()
        self._line, self._blocked, self._doubtful = line, line is not None, False
        return self.hello

    async def _greet_on(
        self, line: Line | None, patience: float
    ) -> tuple[Line | None, HelloReply]:
        reply = await self._exchange(Command.HELLO, Hello(self._client), patience, line)
        assert isinstance(reply, HelloReply)
        return line, reply

    async def _greet_by_line(self, patience: float) -> tuple[Line | None, HelloReply]:
        """Say HELLO on the line that there is, or on a new one."""
        delay = 0.0 if self._blocked else min(LINE_AFTER, patience / 3)
        if self._line is not None and self._line.is_open:
            return await self._greet_on(self._line, patience)
        await asyncio.sleep(delay)
        made: Line | None = None
        try:
            async with asyncio.timeout(patience - delay):
                made = await dial(self.broker, self._receive_from_line, self._ended)
                return await self._greet_on(made, patience - delay)
        except BaseException as error:
            if made is not None:
                made.close()
            if isinstance(error, OSError | TimeoutError):
                raise Unreachable(f"{self._where} cannot be reached by TCP: {error}") from error
            raise

    def _drop_line(self) -> None:
        if self._line is not None:
            self._line.close()
            self._fail(self._line)
            self._line = None

    def _fail(self, line: Line) -> None:
        for waiting in self._waiting.values():
            if waiting.line is line:
                waiting.fail(Lost(f"the line to {self._where} was lost"))

    def _ended(self, line: Line) -> None:
        """A line has ended by itself."""
        self._fail(line)
        if line is self._line:
            self._line, self._doubtful = None, True
            self.on_lost()

    @property
    def _where(self) -> str:
        return f"the broker at {format_address(self.broker)}"

    async def ask(
        self, command: Command, make: Callable[[bytes], Message], patience: float
    ) -> Message:
        """Ask what ``make(cookie)`` says; greets first, and again when the cookie is stale.

        Raises Unreachable, RefusedError or RemoteProtocolError.
        """
        hello = self.hello
        if hello is None or self._doubtful:
            hello = await self.greet(patience)
        try:
            return await self._ask(command, make(hello.cookie), patience)
        except Lost:
            pass
        except RefusedError as refused:
            if refused.status is not Status.STALE_EPOCH:
                raise
        hello = await self.greet(patience)
        return await self._ask(command, make(hello.cookie), patience)

    async def _ask(self, command: Command, message: Message, patience: float) -> Message:
        """Ask by the way that HELLO was answered; if nobody answers, both are tried next."""
        try:
            return await self._exchange(command, message, patience, self._line)
        except Lost:
            raise
        except Unreachable:
            self._doubtful = True
            self._drop_line()
            raise

    async def _exchange(
        self, command: Command, message: Message, patience: float, line: Line | None
    ) -> Message:
        transaction = int.from_bytes(os.urandom(8), "big")
        data = auth.sealed(self._key, Kind.REQUEST, command, transaction, message)
        future: asyncio.Future[Frame] = self._loop.create_future()
        self._waiting[transaction] = _Waiting(command, line, future)
        self._requester.request(transaction, data, self.broker, self._loop.time(), patience)
        if line is not None:
            line.send(data)
        self._turn()
        asked = self._loop.time()
        try:
            frame = await future
            took = int((self._loop.time() - asked) * 1000)
            self.round_trip = learnt(self.round_trip, took)
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
            waiting = self._waiting.get(transaction_of(data))
            if waiting is not None and waiting.line is None:
                self._send(data)
        for transaction in self._requester.expired(now):
            waiting = self._waiting.get(transaction)
            if waiting is not None:
                waiting.fail(Unreachable(f"no answer from {self._where}"))
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
            self._receive_datagram(data)

    def _receive_datagram(self, data: bytes) -> None:
        try:
            self._receive(None, parse(data))
        except RemoteProtocolError as error:
            self._log_once("not believed, from the broker's address %s: %s", error)

    def _receive_from_line(self, line: Line, frame: Frame) -> None:
        try:
            self._receive(line, frame)
        except RemoteProtocolError as error:
            self._log_once("not believed, on a line to %s: %s", error)
            raise

    def _receive(self, line: Line | None, frame: Frame) -> None:
        """Take a frame that came by a line, or by UDP. Raises RemoteProtocolError."""
        if frame.kind is Kind.REPLY:
            self._receive_reply(line, frame)
            return
        answer = self._answer_to(frame)
        if answer is not None and line is not None:
            line.send(answer)
        elif answer is not None:
            self._send(answer)

    def _receive_reply(self, line: Line | None, frame: Frame) -> None:
        waiting = self._waiting.get(frame.transaction)
        if waiting is None or waiting.answer.done() or waiting.line is not line:
            return
        auth.check_reply(frame, self._key)
        if frame.command != waiting.command:
            raise RemoteProtocolError(Status.MALFORMED, f"a reply to command {frame.command}")
        status_of(frame)
        message_of(frame)
        self._requester.settle(frame.transaction)
        waiting.answer.set_result(frame)

    def _answer_to(self, frame: Frame) -> bytes | None:
        """Return the answer to a request of the broker's; None if there is none yet."""
        if self._key is not None:
            auth.Keyring([self._key]).authenticate(frame)
        message = message_of(frame)
        if not isinstance(message, Call | Meet):
            raise RemoteProtocolError(Status.UNSUPPORTED, "only CALL and MEET are taken here")
        if not self._answers.begin(self.broker, frame.transaction, self._loop.time()):
            return self._answers.again(self.broker, frame.transaction)
        answer = auth.reply_to(frame, self._key, self._answer_call(message))
        self._answers.keep(self.broker, frame.transaction, answer)
        return answer

    def _log_once(self, text: str, error: Exception) -> None:
        line = text % (format_address(self.broker), error)
        if line not in self._logged and len(self._logged) < 1000:
            self._logged.add(line)
            log.warning("%s", line)


async def _first_of(
    steps: list[Coroutine[Any, Any, tuple[Line | None, HelloReply]]],
) -> tuple[Line | None, HelloReply]:
    """Return what the first step returns that does; raises what one that was refused raises.

    The others are withdrawn, and what they have made is closed.
    """
    tasks = [asyncio.ensure_future(step) for step in steps]
    chosen = tasks[0]
    try:
        chosen = await _first_answered(tasks)
        return chosen.result()
    finally:
        others = [task for task in tasks if task is not chosen]
        for task in others:
            task.cancel()
        for result in await asyncio.gather(*others, return_exceptions=True):
            if isinstance(result, tuple) and result[0] is not None:
                result[0].close()


async def _first_answered(tasks: list[Greeting]) -> Greeting:
    """Return the first that was answered, be it with a refusal; else the first of all."""
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task in done and not isinstance(task.exception(), Unreachable):
                return task
    return tasks[0]
