"""Builds a broker, starts it, and stops it in order.

Everything that a broker is made of is put together here and nowhere else. It must never
decide anything about a command.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event

from gcbpatch.addresses import Address, format_address, is_private
from gcbpatch.errors import ConfigError
from gcbpatch.wire.messages import Command

from .config import BrokerConfig, read_or_make_key
from .crew import Crew
from .datagrams import RECEIVE_BUFFER, DatagramProxies
from .dispatch import Dispatcher, Identity
from .drain import Drain
from .holds import Holds
from .hosts import Hosts
from .limits import Held, Limits
from .lines import Lines
from .parking import Parking
from .proxies import Proxies, bind_host
from .pump import Pump
from .registry import Ports, Registry
from .relay import Relays
from .server import Complainer, Datagrams, Door, command_sockets, second_sockets
from .splitting import relay_socket

log = logging.getLogger("brokerd")

TICK = 0.25
"""Seconds between looks at what is over: lifetimes, rendezvous, CALLs to send again."""

START_PATIENCE = 30.0


class Daemon:
    """One broker in this process. ``reread`` gives the settings anew on SIGHUP."""

    def __init__(self, config: BrokerConfig, reread: Callable[[], BrokerConfig]) -> None:
        """Take the command port and read the secrets. Raises ConfigError."""
        self._config = config
        self._reread = reread
        keyring = config.keyring()
        claim_secret, first_start = read_or_make_key(config.key_file)
        pairs, relays, second = _command_sockets(config)
        self._port: int = pairs[0][1].getsockname()[1]
        self._loop: Any = gevent.get_hub().loop
        self._stop = Event()
        complainer = Complainer()
        now = time.monotonic()
        self._limits = Limits(config.limits)
        self._crew: Crew | None = None
        self._proxies: Proxies | Crew
        self._pump: Pump | Crew
        hosts, binds = Hosts(config.address), {host: bind_host(host) for host in config.address}
        self._make_hands(config, binds)
        self._relays = Relays(self._loop, self._pump, self._limits)
        self._datagrams = Datagrams(self._loop, [udp for udp, _ in pairs], complainer)
        # Under a key that nobody has seen yet there are no claims to wait for.
        quiet_until = now if first_start else now + config.lifetime
        self._registry = Registry(
            hosts, Ports(*config.proxy_ports), config.lifetime, claim_secret, quiet_until
        )
        self._drain = Drain(config.lifetime)
        self._second = Datagrams(self._loop, second, complainer, only=Command.HELLO)
        identity = Identity(
            hosts, self._port, os.urandom(8), os.urandom(32), second[0].getsockname()[1]
        )
        self._dispatcher = Dispatcher(
            identity, keyring, self._limits, self._registry, self._relays, self._datagrams.ask
        )
        self._dispatcher.proxies = self._proxies
        self._relayed = DatagramProxies(self._loop, relays, binds)
        self._dispatcher.datagrams = self._relayed
        self._dispatcher.hear = self._datagrams.hear
        self._holds = self._dispatcher.holds = Holds(self._loop)
        self._lines = Lines(self._loop, self._datagrams.receive, complainer.complain)
        self._parking = Parking(
            self._loop, self._limits, self._dispatcher.park, complainer.complain
        )
        self._dispatcher.foretell = self._parking.foretell
        self._door = Door(
            self._loop, [tcp for _, tcp in pairs], self._dispatcher, self._relays, self._lines,
            complainer, self._parking,
        )
        self._watchers: list[Any] = []

    def _make_hands(self, config: BrokerConfig, binds: dict[str, str]) -> None:
        """What holds proxy sockets and pumps: here, or in workers."""
        _more_descriptors()
        if config.workers > 1:
            self._crew = Crew(
                self._loop, binds, config.workers, self._accepted,
                lambda proxy: self._dispatcher.proxy_lost(proxy),
            )
            self._proxies = self._pump = self._crew
        else:
            self._proxies = Proxies(self._loop, binds, self._accepted)
            self._pump = Pump(self._loop)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, or until all is drained after SIGUSR1.

        Raises ConfigError if no workers can be had.
        """
        self._datagrams.start(self._dispatcher)
        self._second.start(self._dispatcher)
        self._watch(self._loop.timer(TICK, TICK), self._tick)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._watch(self._loop.signal(number), self._stop.set)
        self._watch(self._loop.signal(signal.SIGHUP), self._reload)
        self._watch(self._loop.signal(signal.SIGUSR1), self._begin_to_drain)
        self._wait_for_workers()
        if self._stop.is_set():
            self._close()
            return
        self._say_what_matters()
        where = [format_address((host, self._port)) for host in self._config.address]
        print(f"brokerd ready on {' '.join(where)}", flush=True)
        self._stop.wait()
        self._close()

    def _wait_for_workers(self) -> None:
        if self._crew is None:
            return
        gevent.wait([self._crew.ready, self._stop], timeout=START_PATIENCE, count=1)
        if not self._crew.is_whole and not self._stop.is_set():
            self._close()
            raise ConfigError("--workers: they do not start; fewer, or more memory, would be right")

    def _watch(self, watcher: Any, callback: Callable[[], Any]) -> None:
        watcher.start(callback)
        self._watchers.append(watcher)

    def _accepted(self, proxy: Address, sock: Any, peer: Address) -> None:
        self._dispatcher.accepted(proxy, sock, peer, time.monotonic())

    def _tick(self) -> None:
        now = time.monotonic()
        self._datagrams.tick(now)
        self._relays.expire(now)
        self._door.tick(now)
        self._lines.tick(now)
        self._parking.tick(now)
        self._dispatcher.expire(now)
        if self._crew is not None:
            self._crew.tick(now)
        self._relayed.tick(now)
        self._end_when_drained(now)

    def _begin_to_drain(self) -> None:
        if self._drain.begin(time.monotonic()):
            self._registry.draining = self._parking.is_full = True
            log.warning("draining: %d listeners are asked to leave, %d relays run out",
                        len(self._registry), self._limits.held(Held.RELAYS))

    def _end_when_drained(self, now: float) -> None:
        busy = self._limits.held(Held.RELAYS) + self._relays.expected
        if self._drain.is_over(now, len(self._registry), busy) and not self._stop.is_set():
            log.warning("drained: %d listeners have stayed", len(self._registry))
            self._stop.set()

    def _reload(self) -> None:
        """Read tokens, limits and the log level anew; what is wrong leaves all as it was."""
        try:
            config = self._reread()
            keyring = config.keyring()
        except ConfigError as error:
            log.error("settings not reread: %s", error)
            return
        self._dispatcher.keyring = keyring
        self._limits.bounds = config.limits
        logging.getLogger().setLevel(config.log)
        if self._crew is not None:
            self._crew.level(config.log)
        log.warning("tokens, limits and log level reread; other settings need a restart")

    def _say_what_matters(self) -> None:
        if not self._dispatcher.keyring:
            _say("no tokens are configured: everybody may use this broker (--token-file)")
        for host in filter(is_private, self._config.address):
            _say(f"{host} is a private address: only hosts that can reach it "
                 "can use this broker (--address)")

    def _close(self) -> None:
        for watcher in self._watchers:
            watcher.stop()
            watcher.close()
        self._door.close()
        self._lines.close()
        self._parking.close()
        self._proxies.close()
        self._relayed.close()
        self._holds.close()
        self._relays.close()
        self._dispatcher.probes.close()
        if self._pump is not self._proxies:
            self._pump.close()
        self._second.close()
        self._datagrams.close()


def _say(text: str) -> None:
    print(f"brokerd: {text}", file=sys.stderr, flush=True)


def _command_sockets(config: BrokerConfig) -> Any:
    try:
        pairs = command_sockets(config.port, config.address)
        second = second_sockets(pairs[0][1].getsockname()[1], config.address)
        return pairs, [relay_socket(udp, RECEIVE_BUFFER) for udp, _ in pairs], second
    except OSError as error:
        raise ConfigError(
            f"--port: {config.port} cannot be had: {error.strerror}; a free port would be right"
        ) from error


def _more_descriptors() -> None:
    """Take as many descriptors as this user may have: a relay needs two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
