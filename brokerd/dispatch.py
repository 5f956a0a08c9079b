"""One function per command: what a broker does when it is asked, and when somebody connects.

Order of every request: authenticate, look whether it was answered before, decode, prove the
address (cookie), count, carry out once, keep the answer. HELLO and ASK alone come before the
proof of address: HELLO changes nothing, ASK leaves a count that is bounded and expires, and
their answers are never larger than the questions.

It must never touch a socket's bytes, and never let an unproved address change any state.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gcbpatch.addresses import Address, canonical, format_address
from gcbpatch.errors import RemoteProtocolError, Status
from gcbpatch.wire import auth
from gcbpatch.wire.auth import Key, Keyring
from gcbpatch.wire.codec import Frame, Kind, message_of
from gcbpatch.wire.datagrams import MAGIC_SIZE
from gcbpatch.wire.messages import (
    TCP,
    UDP,
    Ask,
    Call,
    Command,
    Connect,
    ConnectReply,
    Endpoint,
    Flow,
    FlowReply,
    HelloReply,
    JoinReply,
    Meet,
    Message,
    Nothing,
    Park,
    Path,
    PathKind,
    Probe,
    ProbeReply,
    Refresh,
    RefreshReply,
    Register,
    RegisterReply,
    Unregister,
)
from gcbpatch.wire.replay import Answers

from .arrange import Side, arrange, network_of
from .cards import Cards
from .datagrams import DatagramProxies
from .holds import Holds
from .hosts import Hosts
from .introductions import Foretold
from .limits import Held, Limits
from .probes import Probes
from .proxies import ProxySockets
from .pump import reset
from .registry import Listener, Refusal, Registry, Sender, Speaker
from .relay import Relays, Rendezvous

log = logging.getLogger("brokerd")

CALL_PATIENCE = 10.0
"""Seconds until a listener that does not answer CALL is taken for gone."""

BY_PORT = frozenset({Command.FLOW, Command.INTRODUCE})
"""What may be said from a program's own UDP port, besides HELLO."""
BY_CONTROL = frozenset(Command) - {Command.FLOW}

RELAY_ONLY = [Path(PathKind.RELAYED, [])]


@dataclass(frozen=True, slots=True)
class Question:
    """A request of ours to a listener's client, ready to be sent to wherever that is now."""

    transaction: int
    data: bytes
    listener: Listener
    patience: float
    before: bytes = b""
    """Octets in front of the frame, where a program's own UDP port is asked."""

    @property
    def to(self) -> Sender:
        """Where the client was heard last: it may have got another address meanwhile."""
        return self.listener.sender


SendQuestion = Callable[[Question, Callable[[Status], None], float], Callable[[], None]]
"""Sends a question until it is answered or given up (UNKNOWN); returns how to stop that."""


@dataclass(frozen=True)
class Identity:
    """What this incarnation of the broker is: new at every start, but for the hosts."""

    hosts: Hosts
    port: int
    epoch: bytes
    cookie_secret: bytes
    second: int = 0
    """Another port where HELLO is answered; 0 if there is none."""


def _whom(address: Address, line: Speaker | None) -> Address:
    """Return an address with its way: a port means another client by TCP than by UDP."""
    return address if line is None else (f"tcp {address[0]}", address[1])


def _fingerprint(frame: Frame) -> int:
    """Return a number for all that a request says, its transaction and its token included.

    The transaction alone would be enough among honest clients; whoever has learnt one could
    get the answer by it, without the token or the cookie of the request that it was given to.
    """
    return int.from_bytes(hashlib.blake2b(frame.signed, digest_size=16).digest(), "big")


class Dispatcher:
    """Carries out commands on registry, proxies and relays."""

    def __init__(
        self,
        identity: Identity,
        keyring: Keyring,
        limits: Limits,
        registry: Registry,
        relays: Relays,
        ask: SendQuestion,
    ) -> None:
        self.keyring = keyring
        self._identity = identity
        self._limits = limits
        self._registry = registry
        self._relays = relays
        self._ask = ask
        self._answers: dict[int, Answers] = {}
        self.probes = Probes()
        self.proxies: ProxySockets | None = None
        self.datagrams: DatagramProxies | None = None
        self.holds: Holds | None = None
        self.foretell: Callable[[bytes, str, str, Connect], Foretold] = lambda *_: Foretold()
        """Returns what two that will try to punch can be told before both halves are there."""
        self.hear: Callable[[], None] = lambda: None
        """Reads the commands that are there already."""
        self._commands: dict[int, Callable[..., Message]] = {
            Command.REGISTER: self._register,
            Command.REFRESH: self._refresh,
            Command.UNREGISTER: self._unregister,
            Command.CONNECT: self._connect,
            Command.PROBE: self._probe,
            Command.FLOW: self._flow,
            Command.INTRODUCE: Cards(identity.hosts, registry, self._question).introduce,
        }

    # --- datagrams

    def answer(
        self,
        frame: Frame,
        address: Address,
        via: str,
        now: float,
        by_port: bool = False,
        line: Speaker | None = None,
    ) -> bytes | None:
        """Return the answer to a request; None if it is being carried out already.

        ``by_port`` tells that it comes from a program's own UDP port; ``line`` is the
        connection that it came by, None if it came as a datagram.

        Raises RemoteProtocolError for what is not allowed at all: to be answered with a
        bare status, and logged.
        """
        if frame.command == Command.ASK:
            return self._asked(frame, address, now)
        key = self.keyring.authenticate(frame)
        whom = _whom(address, line)
        if frame.command == Command.HELLO:
            return self._hello(frame, key, address, whom, now)
        request = _fingerprint(frame)
        answers = self._answers_of(key)
        kept = answers.again(whom, request)
        if kept is not None:
            return kept
        message = self._decode(frame, by_port)
        if not auth.check_cookie(self._identity.cookie_secret, whom, now, message.cookie):
            return auth.reply_to(frame, None, Status.STALE_EPOCH)
        if not answers.begin(whom, request, now):
            return None
        reply = self._carry_out(frame, message, Sender(address, via, key, line), now)
        answers.keep(whom, request, reply)
        return reply

    def _answers_of(self, key: Key | None) -> Answers:
        """Return what was answered under one token: nobody's haste drops another's answers."""
        return self._answers.setdefault(key.key_id if key else 0, Answers())

    def _decode(self, frame: Frame, by_port: bool) -> Any:
        here = BY_PORT if by_port else BY_CONTROL
        if frame.command not in self._commands or frame.command not in here:
            raise RemoteProtocolError(
                Status.UNSUPPORTED, f"command {frame.command} is not taken as a datagram here"
            )
        return message_of(frame)

    def _carry_out(self, frame: Frame, message: Message, sender: Sender, now: float) -> bytes:
        try:
            self._limits.command(sender.key, now)
            reply = self._commands[frame.command](message, sender, now)
        except Refusal as refusal:
            log.info(
                "%s from %s refused with %s: %s", Command(frame.command).name,
                format_address(sender.address), refusal.status.name, refusal,
            )
            return auth.reply_to(frame, sender.key, refusal.status)
        body = None if isinstance(reply, Nothing) else reply
        return auth.reply_to(frame, sender.key, Status.SUCCESS, body)

    def _hello(
        self, frame: Frame, key: Key | None, address: Address, whom: Address, now: float
    ) -> bytes:
        message_of(frame)  # raises for a body that is no HELLO
        cookie = auth.cookie(self._identity.cookie_secret, whom, now)
        message = HelloReply(
            self._identity.epoch,
            cookie,
            Endpoint.of(address),
            self._identity.port,
            self._identity.hosts.like(address[0]),
            min(self._limits.free(Held.PROXIES), self._registry.free),
            self._identity.second,
            self._identity.hosts.other(address[0]),
        )
        reply = auth.reply_to(frame, key, Status.SUCCESS, message)
        if len(reply) > frame.size:
            raise RemoteProtocolError(
                Status.MALFORMED,
                f"HELLO of {frame.size} bytes with an answer of {len(reply)}; padding is missing",
            )
        return reply

    def _asked(self, frame: Frame, address: Address, now: float) -> bytes:
        """Answer who does not know us and is connecting to us; bare, whatever the answer is."""
        asked = message_of(frame)
        assert isinstance(asked, Ask)
        if self.keyring:
            # A token is nothing to show to strangers: who asks has none, and is an ordinary one.
            return auth.reply_to(frame, None, Status.NOT_AUTHORIZED)
        proxy = self._identity.hosts.like(address[0]), asked.port
        if self._registry.at(asked.protocol, proxy) is None:
            return auth.reply_to(frame, None, Status.UNKNOWN)
        if self.holds is not None and asked.protocol == TCP:
            self.holds.expected.add((address[0], asked.port), now)
        return auth.reply_to(frame, None, Status.SUCCESS)

    def _register(self, asked: Register, sender: Sender, now: float) -> RegisterReply:
        if asked.protocol not in (TCP, UDP):
            raise Refusal(Status.UNSUPPORTED, f"protocol {asked.protocol} is not brokered here")
        dice = int.from_bytes(os.urandom(4), "big")
        try:
            listener = self._registry.register(
                asked, sender, now, dice,
                lambda proxy: self._open_proxy(asked.protocol, proxy, sender.key),
            )
        except OSError as error:
            raise Refusal(
                Status.NO_RESOURCES, f"no proxy socket can be opened: {error.strerror}"
            ) from error
        log.info("registered %s for %s",
                 format_address(listener.proxy), format_address(sender.address))
        return RegisterReply(
            Endpoint.of(listener.proxy),
            self._registry.claim_of(listener),
            listener.lifetime,
            self._identity.port if listener.protocol == UDP else 0,
        )

    def _open_proxy(self, protocol: int, proxy: Address, key: Key | None) -> bool:
        self._limits.check(Held.PROXIES, key)
        if not self._proxies_of(protocol).open(proxy):
            return False
        self._limits.take(Held.PROXIES, key)
        return True

    def _proxies_of(self, protocol: int) -> ProxySockets | DatagramProxies:
        proxies = self.proxies if protocol == TCP else self.datagrams
        assert proxies is not None
        return proxies

    def _refresh(self, asked: Refresh, sender: Sender, now: float) -> RefreshReply:
        moved = self._registry.moved(asked, sender)
        lifetime, lost = self._registry.refresh(asked, sender, now)
        for proxy in moved:
            log.info("calls for %s go to %s%s", format_address(proxy),
                     format_address(sender.address), " by TCP" if sender.line else "")
        return RefreshReply(
            self._identity.epoch,
            auth.cookie(self._identity.cookie_secret, _whom(sender.address, sender.line), now),
            Endpoint.of(sender.address),
            lifetime,
            lost,
            self._registry.draining,
        )

    def _unregister(self, asked: Unregister, sender: Sender, now: float) -> Nothing:
        listener = self._registry.unregister(asked.client, asked.listener, sender)
        log.info("unregistered %s", format_address(listener.proxy))
        self._close_proxy(listener)
        return Nothing()

    def _connect(self, asked: Connect, sender: Sender, now: float) -> ConnectReply:
        target = canonical(asked.target.host), asked.target.port
        listener = self._registry.at(asked.protocol, target)
        if listener is None or listener.protocol != TCP:
            raise Refusal(Status.UNKNOWN, "no such proxy address here")
        connecting = Side(sender.address, tuple(asked.local), asked.network)
        listening = Side(listener.sender.address, listener.local, listener.network)
        paths = arrange(connecting, listening)
        rendezvous = self._relays.open(os.urandom(8), os.urandom(16), listener.sender.key, now)
        peer = (sender.address[0], asked.port or sender.address[1])
        told = Foretold()
        if any(path.kind is PathKind.PUNCHED for path in paths):
            seen = listening.observed[0]
            told = self.foretell(listener.client, seen, connecting.observed[0], asked)
        self._call(listener, rendezvous, peer, True, paths, now, (asked.nonce, *told[1:]))
        there = network_of(listening, self._identity.cookie_secret)
        return ConnectReply(rendezvous.name, rendezvous.secret, paths, there, told.connector)

    def _probe(self, asked: Probe, sender: Sender, now: float) -> ProbeReply:
        """Dial back, to where the question comes from and nowhere else."""
        if asked.protocol not in (TCP, UDP):
            raise Refusal(Status.UNSUPPORTED, f"protocol {asked.protocol} is not probed here")
        if asked.protocol == UDP and len(asked.magic) != MAGIC_SIZE:
            raise Refusal(Status.MALFORMED, "no magic to send")
        target = (sender.address[0], asked.port)
        try:
            if asked.protocol == UDP:
                source = self.probes.say(sender.via, target, asked.magic)
            else:
                source = self.probes.send(sender.via, target, now)
        except OSError as error:
            raise Refusal(Status.NO_RESOURCES, f"no probe: {error.strerror}") from error
        return ProbeReply(Endpoint.of(source), Endpoint.of(target))

    def _flow(self, asked: Flow, sender: Sender, now: float) -> FlowReply:
        assert self.datagrams is not None
        listener = self._registry.find(asked.client, asked.listener, sender)
        if listener.protocol != UDP:
            raise Refusal(Status.UNKNOWN, "this listener has no datagrams")
        if self.datagrams.is_ours(sender.address):
            raise Refusal(Status.NOT_AUTHORIZED, "no program has a proxy address for its port")
        self.datagrams.flow(
            listener.proxy,
            sender.address,
            sender.via,
            self._limits.meter(sender.key),
            now + listener.lifetime,
        )
        return FlowReply(
            self._identity.epoch,
            auth.cookie(self._identity.cookie_secret, sender.address, now),
            Endpoint.of(sender.address),
            listener.lifetime,
        )

    # --- connections

    def park(self, frame: Frame, peer: Address, via: str, now: float) -> tuple[Park, Key | None]:
        """Return what a PARK asks, and by which token, if its client may have it.

        Raises RemoteProtocolError and Refusal.
        """
        key = self.keyring.authenticate(frame)
        asked = message_of(frame)
        assert isinstance(asked, Park)
        self._limits.command(key, now)
        self._registry.find(asked.client, asked.listener, Sender(peer, via, key))
        return asked, key

    # --- what happens without a command

    def accepted(self, proxy: Address, sock: socket.socket, peer: Address, now: float) -> None:
        """An ordinary connection came to a proxy socket: call its listener, if it stays one."""
        # The question was sent before the connection was begun, but sockets are read in any order.
        self.hear()
        if self.holds is not None and self.holds.expected.take((peer[0], proxy[1]), now):
            self.holds.hold(sock, lambda: self._stays(proxy, sock, peer, time.monotonic()))
        else:
            self._stays(proxy, sock, peer, now)

    def _stays(self, proxy: Address, sock: socket.socket, peer: Address, now: float) -> None:
        listener = self._registry.at(TCP, proxy)
        if listener is None:
            reset(sock)
            return
        try:
            rendezvous = self._relays.open(
                os.urandom(8), os.urandom(16), listener.sender.key, now, ordinary=sock
            )
        except Refusal as refusal:
            log.info("connection from %s to %s reset: %s",
                     format_address(peer), format_address(proxy), refusal)
            reset(sock)
            return
        self._call(listener, rendezvous, peer, False, RELAY_ONLY, now)

    def proxy_lost(self, proxy: Address) -> None:
        """A proxy socket is gone for good: its listener learns it at its next heartbeat."""
        listener = self._registry.at(TCP, proxy)
        if listener is not None:
            log.error("the proxy socket at %s is lost", format_address(proxy))
            self._registry.unregister(listener.client, listener.id, listener.sender)
            self._close_proxy(listener)

    def expire(self, now: float) -> None:
        """Forget the listeners whose lifetime is over."""
        for listener in self._registry.expire(now):
            log.info("listener at %s expired", format_address(listener.proxy))
            self._close_proxy(listener)
        for answers in self._answers.values():
            answers.expire(now)
        self.probes.expire(now)

    def _close_proxy(self, listener: Listener) -> None:
        self._proxies_of(listener.protocol).shut(listener.proxy)
        self._limits.give(Held.PROXIES, listener.sender.key)

    def _call(
        self,
        listener: Listener,
        rendezvous: Rendezvous,
        peer: Address,
        commit: bool,
        paths: list[Path],
        now: float,
        more: tuple[bytes, JoinReply | None, bytes] = (b"", None, b""),
    ) -> None:
        message = Call(
            listener.id,
            listener.nonce,
            rendezvous.name,
            rendezvous.secret,
            Endpoint.of(self._identity.hosts.shown(peer, listener.family)),
            commit,
            paths,
            *more,
        )
        rendezvous.settle = self._question(
            listener, message, lambda status: self._called(rendezvous.name, status), now
        )

    def _question(
        self,
        listener: Listener,
        message: Call | Meet,
        done: Callable[[Status], None],
        now: float,
        before: bytes = b"",
    ) -> Callable[[], None]:
        """Ask a listener's agent; return how to stop that."""
        command = Command.CALL if isinstance(message, Call) else Command.MEET
        transaction = int.from_bytes(os.urandom(8), "big")
        data = auth.sealed(listener.sender.key, Kind.REQUEST, command, transaction, message)
        return self._ask(Question(transaction, data, listener, CALL_PATIENCE, before), done, now)

    def _called(self, name: bytes, status: Status) -> None:
        """The listener's agent answered a CALL, or gave no answer (UNKNOWN)."""
        if status is Status.NO_RESOURCES:
            self._relays.fail(name, status)
        elif status is not Status.SUCCESS:
            self._relays.fail(name, Status.UNKNOWN)
