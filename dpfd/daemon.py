"""dpfd as a whole: builds everything, starts and stops it in order.

It must never patch anything: gevent is used as a library. The rules stay when the daemon ends,
since mappings live through a restart; flush() is what removes them.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event

from gcbpatch.addresses import Address, format_address, is_ip
from gcbpatch.config import read_tokens
from gcbpatch.errors import ConfigError, GcbError
from gcbpatch.wire.auth import Keyring

from . import others, privileges
from .config import Config
from .dispatch import Dispatcher, Senses
from .kernel import forwarding, host
from .kernel.port import KernelPort
from .liveness import Liveness, probe
from .mappings import Mappings
from .mirror import Mirror
from .others import Standing
from .policy import Policy
from .pool import Pool
from .server import Limits, Server
from .table import Table

if TYPE_CHECKING:
    from .kernel.iptables import Iptables

log = logging.getLogger("dpfd")

EPOCH_SIZE = 8
STOP_PATIENCE = 3.0
"""Seconds that a change under way may take when the daemon is to end."""
EXPIRY_INTERVAL = 0.5
"""Seconds between two looks for leases that are over."""


class Gateway:
    """The running parts. The kernel's rooms are handed in, so that tests need no kernel."""

    def __init__(
        self,
        config: Config,
        hosts: tuple[str, ...],
        kernel: KernelPort,
        port_in_use: Callable[[Address], bool],
    ) -> None:
        """Raises ConfigError for a mirror or a token file that cannot be used."""
        self._config = config
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
        )
        policy = Policy(
            max_lifetime=config.lifetime,
            per_client=config.mappings_per_client,
            per_host=config.mappings_per_host,
            in_all=config.mappings,
            allow=config.allow,
            refuses=config.wish == "refuse",
        )
        senses = Senses(_random_number, port_in_use, probe, self.liveness.watch)
        self.dispatcher = Dispatcher(self.mappings, policy, senses, keyring)
        self._greenlets: list[gevent.Greenlet] = []
        self._server: Server | None = None

    def start(self, listener: gevent.socket.socket) -> None:
        """Make the kernel agree with the mirror, then serve. Raises KernelError, MirrorError."""
        self.mappings.load(time.monotonic(), self.dispatcher.policy)
        self.mappings.reconcile()
        config = self._config
        limits = Limits(config.sessions, config.sessions_per_host, config.idle, config.half_frame)
        self._server = Server(listener, self.dispatcher.answer, limits)
        self._server.start()
        for mapping in self.table:
            self.liveness.watch(mapping)
        self._greenlets = [
            gevent.spawn(work)
            for work in (self.liveness.run, self.mirror.keep_durable, self._expire)
        ]

    def stop(self) -> None:
        """End sessions, close the mirror; the kernel's rules stay."""
        if self._server is not None:
            self._server.stop()
        gevent.killall(self._greenlets)
        with gevent.Timeout(STOP_PATIENCE, False), self.mappings.one_at_a_time():
            pass
        self.mirror.close()

    def reread(self) -> None:
        """Read the tokens again; the old ones stay if that fails."""
        try:
            self.dispatcher.keyring = _keyring(self._config)
        except ConfigError as error:
            log.error("the tokens stay as they were: %s", error)
        else:
            log.info("the tokens were read again")

    def _expire(self) -> None:
        while True:
            gevent.sleep(EXPIRY_INTERVAL)
            try:
                self.mappings.remove_expired(time.monotonic())
            except GcbError as error:
                log.error("mappings whose lease is over stay for now: %s", error)
                gevent.sleep(10 * EXPIRY_INTERVAL)


def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError, KernelError and PrivilegeError."""
    privileges.require()
    private = host.addresses_of(config.private)
    hosts = _public_hosts(config)
    inside = tuple((config.private, address.network) for address in private)
    standing = Standing(hosts, *config.ports)
    accept = forwarding.ForwardAccept(hosts, *config.ports)
    stop, again = Event(), Event()
    gevent.signal_handler(signal.SIGTERM, stop.set)
    gevent.signal_handler(signal.SIGINT, stop.set)
    gevent.signal_handler(signal.SIGHUP, again.set)
    gateway = Gateway(config, hosts, _kernel(config, hosts, inside), host.port_in_use)
    try:
        address = private[0].host, config.port
        listener = host.listen(address, config.private)
        _ensure_accepted(accept)
        gateway.start(listener)
        privileges.drop()
        if not config.token_file:
            log.warning("no token file: whoever is on %s may map ports", config.private)
        print(f"dpfd ready on {format_address(address)}", flush=True)
        upkeep = gevent.spawn(_keep_up, gateway, accept, again, config.reconcile_interval)
        stop.wait()
        upkeep.kill()
    finally:
        gateway.stop()
        standing.close()


def flush(config: Config) -> None:
    """Remove every rule of dpfd's, and the mappings from the mirror if there is one.

    Raises ConfigError if a dpfd is running on this gateway, KernelError, MirrorError.
    """
    for other in others.here():
        raise ConfigError(f"another dpfd (process {other.pid}) serves here; end it first")
    if os.path.exists(config.mirror):
        mirror = Mirror(config.mirror, os.urandom(EPOCH_SIZE))
        try:
            mirror.remove([mapping.owner for mapping in mirror.mappings()])
        finally:
            mirror.close()
    _kernel(config, (), ()).flush()
    forwarding.remove_all()


def _keep_up(
    gateway: Gateway, accept: forwarding.ForwardAccept, again: Event, interval: float
) -> None:
    """Reconcile at intervals, and when told to by SIGHUP."""
    while True:
        told = again.wait(interval)
        again.clear()
        if told:
            gateway.reread()
        try:
            _ensure_accepted(accept)
            gateway.mappings.reconcile()
            log.log(logging.INFO if told else logging.DEBUG, "reconciled")
        except GcbError as error:
            log.error("could not reconcile, tried again later: %s", error)


def _ensure_accepted(accept: forwarding.ForwardAccept) -> None:
    for chain in accept.ensure():
        log.info("forwarded connections are accepted in nftables' chain %s", chain)


def _public_hosts(config: Config) -> tuple[str, ...]:
    if all(is_ip(word) for word in config.public):
        return config.public
    return tuple(address.host for address in host.addresses_of(config.public[0]))


def _kernel(
    config: Config, hosts: tuple[str, ...], inside: tuple[tuple[str, str], ...]
) -> Iptables:
    """The back end, imported here since its import runs modprobe. Raises ConfigError."""
    from .kernel.iptables import Iptables, Layout

    return Iptables(Layout(hosts, *config.ports, inside))


def _keyring(config: Config) -> Keyring:
    return Keyring(read_tokens(config.token_file) if config.token_file else [])


def _random_number() -> int:
    return int.from_bytes(os.urandom(8), "big")
