"""dpfd as a whole: builds everything, starts and stops it in order.

It must never patch anything: gevent is used as a library. The rules stay when the daemon ends,
since mappings live through a restart; flush() is what removes them.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import gevent
from gevent.event import Event

from gcbpatch.addresses import Address, format_address, is_ip
from gcbpatch.config import read_tokens
from gcbpatch.errors import ConfigError, GcbError
from gcbpatch.wire.auth import Keyring

from . import natpmp, others, privileges, standard
from .config import Config, waiting
from .dispatch import Dispatcher
from .grants import Senses
from .kernel import choice, host
from .kernel.firewall import Firewall
from .kernel.port import KernelPort, Layout
from .kernel.watch import AddressWatch
from .liveness import Liveness, probe
from .mappings import Mappings, rule_of
from .mirror import Mirror
from .others import Standing
from .policy import Policy
from .pool import Pool
from .reconcile import diff
from .server import Complaints, Limits, Server
from .table import Mapping, Table
from .upkeep import Upkeep

log = logging.getLogger("dpfd")

EPOCH_SIZE = 8
STOP_PATIENCE = 3.0
"""Seconds that a change under way may take when the daemon is to end."""
LEASES = 3
"""Lifetimes that the kernel keeps a rule of a dpfd that does not come back."""
EXPIRY_INTERVAL = 0.5
"""Seconds between two looks for leases that are over."""


class Gateway:
    """The running parts. The kernel's rooms are handed in, so that tests need no kernel."""

    def __init__(
        self,
        config: Config,
        hosts: tuple[str, ...],
        kernel: KernelPort,
        port_in_use: Callable[[int, Address], bool],
        again: Callable[[], Config] | None = None,
    ) -> None:
        """``again`` reads the settings once more.

        Raises ConfigError for a mirror or a token file that cannot be used.
        """
        self._config = config
        self._again = again or (lambda: config)
        keyring = _keyring(config)
        self.mirror = Mirror(config.mirror, os.urandom(EPOCH_SIZE))
        self.table = Table()
        pool = Pool(hosts, *config.ports)
        self.mappings = Mappings(self.table, self.mirror, kernel, pool)
        self.liveness = Liveness(
            self.table,
            self.mappings.remove,
            config.probe_interval or config.lifetime / 3,
            config.grace or config.lifetime / 2,
            config.probe_rate,
        )
        senses = Senses(_random_number, port_in_use, probe, self.liveness.watch)
        self.dispatcher = Dispatcher(self.mappings, _policy(config), senses, keyring)
        self._greenlets: list[gevent.Greenlet] = []
        self._server: Server | None = None
        self._standard: standard.Server | None = None

    def start(
        self, listener: gevent.socket.socket, datagrams: gevent.socket.socket | None = None
    ) -> None:
        """Make the kernel agree with the mirror, then serve; by NAT-PMP and PCP if so wished.

        Raises KernelError and MirrorError.
        """
        self.mappings.load(time.monotonic(), self.dispatcher.policy)
        self.mappings.reconcile()
        config = self._config
        limits = Limits(config.sessions, config.sessions_per_host, config.idle, config.half_frame)
        self._server = Server(listener, self.dispatcher.answer, limits)
        self._server.start()
        if datagrams is not None:
            self._standard = self._serve_standard(datagrams)
        for mapping in self.table:
            if mapping.management[1]:
                self.liveness.watch(mapping)
        self._greenlets = [
            gevent.spawn(work)
            for work in (self.liveness.run, self.mirror.keep_durable, self._expire, self._report)
        ]

    def stop(self) -> None:
        """End sessions, close the mirror; the kernel's rules stay."""
        if self._server is not None:
            self._server.stop()
        if self._standard is not None:
            self._standard.stop()
        gevent.killall(self._greenlets)
        with gevent.Timeout(STOP_PATIENCE, False), self.mappings.one_at_a_time():
            pass
        self.mirror.close()

    def reread(self) -> None:
        """Read tokens and policy again; they stay as they were if that fails.

        What the policy allows no more is removed; other settings wait for the next start.
        """
        try:
            config = self._again()
            keyring = _keyring(config)
        except ConfigError as error:
            log.error("tokens and policy stay as they were: %s", error)
            return
        self.dispatcher.keyring = keyring
        policy = _policy(replace(config, lifetime=self._config.lifetime))
        self.dispatcher.grants.policy = policy
        log.info("the tokens were read again, and who may map what")
        for name in waiting(self._config, config):
            log.warning("%s is as it was until the next start", name)
        try:
            self.mappings.give_up(policy)
        except GcbError as error:
            log.error("mappings that are allowed no more stay for now: %s", error)

    def _serve_standard(self, datagrams: gevent.socket.socket) -> standard.Server:
        epoch = standard.epoch_since(self.mirror.born(int(time.time())))
        lifetime = self._config.standard_lifetime
        answers = standard.Standard(self.dispatcher.grants, lifetime, epoch, Complaints().about)
        made = standard.Server(datagrams, answers)
        made.start()
        return made

    def _report(self) -> None:
        while True:
            gevent.sleep(self._config.report_interval)
            log.info("liveness: %s", self.liveness.report())

    def _expire(self) -> None:
        while True:
            gevent.sleep(EXPIRY_INTERVAL)
            try:
                self.mappings.remove_expired(time.monotonic())
            except GcbError as error:
                log.error("mappings whose lease is over stay for now: %s", error)
                gevent.sleep(10 * EXPIRY_INTERVAL)


def run(config: Config, again: Callable[[], Config]) -> None:
    """Serve until SIGTERM or SIGINT; ``again`` reads the settings once more, at SIGHUP.

    Raises ConfigError, KernelError and PrivilegeError.
    """
    privileges.require()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    private = host.addresses_of(config.private)
    layout = _layout(config)
    standing = Standing(layout.hosts, *config.ports)
    stop, told = Event(), Event()
    gevent.signal_handler(signal.SIGTERM, stop.set)
    gevent.signal_handler(signal.SIGINT, stop.set)
    gevent.signal_handler(signal.SIGHUP, told.set)
    chosen = choice.choose(config.backend)
    ground = Firewall(choice.back_end(chosen.name, layout), layout)
    gateway = Gateway(config, layout.hosts, ground, host.port_in_use, again)
    try:
        address = private[0].host, config.port
        listener = host.listen(address, config.private)
        log.info("back end %s: %s", *chosen)
        choice.clear_other(chosen.name, layout)
        ground.ensure_accepted()
        datagrams = _datagrams(config, private[0].host) if config.standard_clients else None
        gateway.start(listener, datagrams)
        privileges.drop()
        ground.begin()
        if not config.token_file:
            log.warning("no token file: whoever is on %s may map ports", config.private)
        print(f"dpfd ready on {format_address(address)}", flush=True)
        follower = Follower(config, layout, ground, gateway.mappings, standing)
        upkeep = Upkeep(gateway.mappings, ground, told, gateway.reread)
        loops = [
            gevent.spawn(upkeep.reconcile_again, config.reconcile_interval, follower.follow),
            gevent.spawn(upkeep.hold, config.lifetime),
        ]
        stop.wait()
        gevent.killall(loops)
    finally:
        gateway.stop()
        ground.close()
        standing.close()


def _datagrams(config: Config, private: str) -> gevent.socket.socket:
    return host.datagrams((private, natpmp.PORT), config.private)


def flush(config: Config) -> None:
    """Remove every rule of dpfd's, and the mappings from the mirror if there is one.

    Raises ConfigError if a dpfd is running on this gateway, KernelError, MirrorError.
    """
    for other in others.here():
        raise ConfigError(f"another dpfd (process {other.pid}) serves here; end it first")
    if os.path.exists(config.mirror):
        known = Mirror(config.mirror, os.urandom(EPOCH_SIZE))
        try:
            known.remove([mapping.owner for mapping in known.mappings()])
        finally:
            known.close()
    choice.flush(config.backend)


def plan(config: Config) -> Iterator[str]:
    """Yield what a start would do to the firewall, and change nothing.

    Raises ConfigError and KernelError.
    """
    layout = _layout(config)
    chosen = choice.choose(config.backend)
    yield f"# back end {chosen.name}: {chosen.why}"
    pool = Pool(layout.hosts, layout.low, layout.high)
    wanted = [rule_of(one) for one in _remembered(config) if one.public in pool]
    ground = Firewall(choice.back_end(chosen.name, layout), layout)
    try:
        changes = diff(wanted, ground.read().rules)
        yield from ground.plan(changes.adds, changes.removes)
    finally:
        ground.close()


def _remembered(config: Config) -> list[Mapping]:
    """Return what the mirror holds, without making one. Raises ConfigError."""
    if not os.path.exists(config.mirror):
        return []
    known = Mirror(config.mirror, os.urandom(EPOCH_SIZE))
    try:
        return known.mappings()
    finally:
        known.close()


class Follower:
    """Takes over the public addresses of an interface when they change."""

    def __init__(
        self,
        config: Config,
        layout: Layout,
        ground: Firewall,
        mappings: Mappings,
        standing: Standing,
    ) -> None:
        """Raises KernelError."""
        self._config = config
        self._layout = layout
        self._ground = ground
        self._mappings = mappings
        self._standing = standing
        self._watch = AddressWatch()

    def follow(self) -> None:
        """Look, if anything has changed. Raises KernelError and MirrorError.

        An interface without an address is one that will have one again: nothing is given up.
        """
        if not self._watch.changed():
            return
        try:
            layout = _layout(self._config)
        except ConfigError as error:
            log.warning("the public addresses stay %s: %s", ", ".join(self._layout.hosts), error)
            return
        if layout != self._layout:
            log.warning("the public addresses are %s now", ", ".join(layout.hosts))
            self._layout = layout
            self._stand(layout)
            self._ground.relocate(layout)
            self._mappings.relocate(Pool(layout.hosts, layout.low, layout.high))

    def _stand(self, layout: Layout) -> None:
        try:
            self._standing.move(layout.hosts, layout.low, layout.high)
        except ConfigError as error:
            log.error("the public addresses have become another dpfd's as well: %s", error)


def _layout(config: Config) -> Layout:
    """Return what the back end must know of the gateway. Raises ConfigError."""
    inside = tuple((config.private, one.network) for one in host.addresses_of(config.private))
    low, high = config.ports
    return Layout(_public_hosts(config), low, high, inside, LEASES * config.lifetime)


def _public_hosts(config: Config) -> tuple[str, ...]:
    if all(is_ip(word) for word in config.public):
        return config.public
    return tuple(address.host for address in host.addresses_of(config.public[0]))


def _policy(config: Config) -> Policy:
    return Policy(
        max_lifetime=config.lifetime,
        per_client=config.mappings_per_client,
        per_host=config.mappings_per_host,
        in_all=config.mappings,
        allow=config.allow,
        refuses=config.wish == "refuse",
    )


def _keyring(config: Config) -> Keyring:
    return Keyring(read_tokens(config.token_file) if config.token_file else [])


def _random_number() -> int:
    return int.from_bytes(os.urandom(8), "big")
