"""What dpfd does again and again beside answering: it keeps the kernel as the table says.

Reconciles at intervals, at SIGHUP, and soon after another program has damaged dpfd's chains;
looks soon what others forward themselves; begins the leases of rules anew; takes over public
addresses that change. It must never decide about a mapping's life: liveness and leases do.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

import gevent
from gevent.event import Event

from gcbpatch.errors import GcbError

from .kernel.port import Claim, KernelError
from .mappings import Mappings

log = logging.getLogger("dpfd")

LOOK_INTERVAL = 1.0
"""Seconds between two looks whether others have changed the firewall, or an address."""
LEAST_PAUSE = 5.0
"""Seconds at least between two reconciles that nobody asked for."""


class Ground(Protocol):
    """What upkeep wants of the gateway's kernel."""

    def ensure_accepted(self) -> None:
        """Have forwarded connections accepted wherever they could be dropped."""

    def disturbed(self) -> bool:
        """Return whether others have damaged dpfd's chains."""

    def changed(self) -> bool:
        """Return whether anybody has changed the firewall since this was asked last."""

    def claims(self) -> tuple[Claim, ...]:
        """Return which public ports others' rules forward."""


class Upkeep:
    """The loops. ``told`` is set to have everything done at once."""

    def __init__(
        self, mappings: Mappings, ground: Ground, told: Event, reread: Callable[[], None]
    ) -> None:
        self._mappings = mappings
        self._ground = ground
        self._told = told
        self._reread = reread
        self._done = time.monotonic()

    def reconcile_again(self, interval: float, follow: Callable[[], None]) -> None:
        """Reconcile every ``interval`` seconds, and when there is a reason to; never returns.

        ``follow`` is called at each look before: it takes over what has become of the public
        addresses.
        """
        while True:
            told = self._told.wait(min(interval, LOOK_INTERVAL))
            self._told.clear()
            if told:
                self._reread()
            try:
                follow()
                if told or self._is_due(interval):
                    self._reconcile(told)
                elif self._ground.changed():
                    self._mappings.respect(self._ground.claims())
            except GcbError as error:
                log.error("could not reconcile, tried again later: %s", error)
                self._done = time.monotonic()

    def hold(self, interval: float) -> None:
        """Begin the leases of all rules anew every ``interval`` seconds; never returns."""
        while True:
            gevent.sleep(interval)
            try:
                self._mappings.hold()
            except KernelError as error:
                log.warning("a rule was not there to be held: %s", error)
                self._told.set()

    def _is_due(self, interval: float) -> bool:
        since = time.monotonic() - self._done
        if since >= interval:
            return True
        if since < min(LEAST_PAUSE, interval) or not self._ground.disturbed():
            return False
        log.warning("another program has changed dpfd's chains")
        return True

    def _reconcile(self, told: bool) -> None:
        self._ground.ensure_accepted()
        self._mappings.reconcile()
        self._done = time.monotonic()
        log.log(logging.INFO if told else logging.DEBUG, "reconciled")
