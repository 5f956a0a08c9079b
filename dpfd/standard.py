"""NAT-PMP and PCP for programs that are not patched (RFC 6886, RFC 6887), on one UDP port.

A mapping made here has no management socket and lives by its lease alone. It belongs to the host
that asked, its protocol and port; the same policy says what may be had. It must never answer
what is no request, nor anything but to where it came from.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace

import gevent
from gevent import socket
from gevent.pool import Pool

from gcbpatch.addresses import Address
from gcbpatch.errors import Status
from gcbpatch.wire.messages import Endpoint, Forward

from . import natpmp, pcp
from .grants import Grants
from .kernel.port import KernelError
from .mirror import MirrorError
from .policy import Asker, Refused
from .table import Mapping

log = logging.getLogger("dpfd.standard")

AT_ONCE = 64
"""How many requests are carried out at the same time; more are passed over, and asked again."""
SHORT, LONG = 30, 1800
"""Seconds for which a PCP client should take a refusal for true (section 7.4)."""
_LARGEST = 2048
_NO_NONCE = bytes(12)
_PMP = {
    Status.NOT_AUTHORIZED: natpmp.Result.NOT_AUTHORIZED,
    Status.UNSUPPORTED: natpmp.Result.UNSUPPORTED_OPCODE,
    Status.NO_RESOURCES: natpmp.Result.OUT_OF_RESOURCES,
    Status.QUOTA_EXCEEDED: natpmp.Result.OUT_OF_RESOURCES,
    Status.CANNOT_PROVIDE_EXTERNAL: natpmp.Result.OUT_OF_RESOURCES,
}
_PCP = {
    Status.NOT_AUTHORIZED: pcp.Result.NOT_AUTHORIZED,
    Status.UNSUPPORTED: pcp.Result.UNSUPP_PROTOCOL,
    Status.NO_RESOURCES: pcp.Result.NO_RESOURCES,
    Status.QUOTA_EXCEEDED: pcp.Result.USER_EX_QUOTA,
    Status.CANNOT_PROVIDE_EXTERNAL: pcp.Result.CANNOT_PROVIDE_EXTERNAL,
}
_PASSING = (pcp.Result.NO_RESOURCES, pcp.Result.NETWORK_FAILURE, pcp.Result.USER_EX_QUOTA)


class Standard:
    """Answers datagrams."""

    def __init__(
        self,
        grants: Grants,
        lifetime: int,
        epoch: Callable[[], int],
        complain: Callable[[Address, int, str], None],
    ) -> None:
        """``lifetime`` (seconds) is the longest lease; ``epoch`` says how old our state is."""
        self._base = grants
        self._lifetime = lifetime
        self._mappings = grants.mappings
        self._epoch = epoch
        self._complain = complain

    def answer(self, data: bytes, source: Address) -> bytes | None:
        """Carry out a request; None if there is nothing to say. Raises nothing."""
        if data[:1] == bytes((natpmp.VERSION,)):
            return self._answer_pmp(data, source)
        return self._answer_pcp(data, source)

    # --- NAT-PMP ------------------------------------------------------------------------

    def _answer_pmp(self, data: bytes, source: Address) -> bytes | None:
        try:
            request = natpmp.parse(data)
        except natpmp.Silence as silence:
            log.debug("%s:%d: %s", *source, silence)
            return None
        try:
            return self._carry_out_pmp(request, source[0])
        except Refused as error:
            self._complain(source, error.status, str(error))
            result = _PMP.get(error.status, natpmp.Result.NOT_AUTHORIZED)
        except KernelError as error:
            log.error("a request of %s failed: %s", source[0], error)
            result = natpmp.Result.NETWORK_FAILURE
        except MirrorError as error:
            log.error("a request of %s failed: %s", source[0], error)
            result = natpmp.Result.OUT_OF_RESOURCES
        return natpmp.refusal(request, result, self._epoch())

    def _carry_out_pmp(self, request: natpmp.Request, host: str) -> bytes:
        if isinstance(request, natpmp.AskSomething):
            raise Refused(Status.UNSUPPORTED, f"opcode {request.opcode} of NAT-PMP")
        if isinstance(request, natpmp.AskAddress):
            return natpmp.address(self._mappings.pool.hosts[0], self._epoch())
        client = _id("natpmp", host)
        if not request.lifetime:
            self._remove(client, request.protocol, request.inside, _NO_NONCE)
            return natpmp.mapped(request, 0, 0, self._epoch())
        wished = ("0.0.0.0", request.public)
        asked = _forward(client, host, request, wished, _NO_NONCE)
        mapping = self._grant(asked)
        return natpmp.mapped(request, mapping.public[1], mapping.lifetime, self._epoch())

    # --- PCP ----------------------------------------------------------------------------

    def _answer_pcp(self, data: bytes, source: Address) -> bytes | None:
        try:
            request = pcp.parse(data, source[0])
            return self._carry_out_pcp(request, source[0])
        except pcp.Silence as silence:
            log.debug("%s:%d: %s", *source, silence)
            return None
        except pcp.Problem as problem:
            self._complain(source, -problem.result, f"PCP: {problem}")
            result = problem.result
        except Refused as error:
            self._complain(source, error.status, str(error))
            result = _PCP.get(error.status, pcp.Result.NOT_AUTHORIZED)
        except KernelError as error:
            log.error("a request of %s failed: %s", source[0], error)
            result = pcp.Result.NETWORK_FAILURE
        except MirrorError as error:
            log.error("a request of %s failed: %s", source[0], error)
            result = pcp.Result.NO_RESOURCES
        lifetime = SHORT if result in _PASSING else LONG
        return pcp.refusal(data, result, lifetime, self._epoch())

    def _carry_out_pcp(self, request: pcp.Request, host: str) -> bytes:
        if isinstance(request, pcp.AskAnnouncement):
            return pcp.announced(self._epoch())
        client = _id("pcp", host)
        if not request.lifetime:
            self._remove(client, request.protocol, request.inside, request.nonce)
            return pcp.mapped(request, request.public, 0, self._epoch())
        self._check_known(client, request)
        asked = _forward(client, host, request, request.public, request.nonce)
        mapping = self._grant(asked, strict=request.prefers_failure)
        return pcp.mapped(request, mapping.public, mapping.lifetime, self._epoch())

    def _check_known(self, client: bytes, request: pcp.AskMap) -> None:
        """Raise Refused for what there is already, but not as it is asked for (section 11.3)."""
        known = self._mappings.table.get((client, _listener(request.protocol, request.inside)))
        if known is None:
            return
        _check_nonce(known, request.nonce)
        suggested = request.public[1] and request.public != known.public
        if request.prefers_failure and suggested:
            raise Refused(Status.CANNOT_PROVIDE_EXTERNAL, f"{known} is there already")

    # --- both ---------------------------------------------------------------------------

    def _grant(self, asked: Forward, *, strict: bool = False) -> Mapping:
        base = self._base
        policy = replace(base.policy, max_lifetime=self._lifetime)
        if strict:
            policy = replace(policy, refuses=True, spared=())
        policy.check_protocol(asked.protocol)
        if not asked.inside.port:
            raise Refused(Status.NOT_AUTHORIZED, "all ports of a host cannot be mapped")
        allowance = policy.check_inside(asked.inside.address, Asker(asked.inside.host))
        return Grants(base.mappings, policy, base.senses).grant(asked, allowance)

    def _remove(self, client: bytes, protocol: int, inside: int, nonce: bytes) -> None:
        """Remove a mapping, or all of a protocol, or of all protocols: what is not there is gone.

        Raises Refused for a single one with another nonce.
        """
        mine = (m for m in self._mappings.table if m.client == client)
        if inside:
            known = self._mappings.table.get((client, _listener(protocol, inside)))
            found = [known] if known is not None else []
            for mapping in found:
                _check_nonce(mapping, nonce)
        else:
            found = [m for m in mine if protocol in (0, m.protocol) and m.nonce[:12] == nonce]
        if found:
            self._mappings.remove(found)


class Server:
    """The UDP socket on the private side."""

    def __init__(self, sock: socket.socket, standard: Standard) -> None:
        self._socket = sock
        self._standard = standard
        self._work = Pool(AT_ONCE)
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        """Begin to answer."""
        self._greenlet = gevent.spawn(self._serve)

    def stop(self) -> None:
        """Answer no more."""
        gevent.killall([greenlet for greenlet in (self._greenlet, *self._work) if greenlet])
        self._socket.close()

    def _serve(self) -> None:
        while True:
            data, source = self._socket.recvfrom(_LARGEST)
            if self._work.full():
                log.debug("%s:%d: passed over, as %d are at work", *source, AT_ONCE)
                continue
            self._work.spawn(self._answer, data, source)

    def _answer(self, data: bytes, source: Address) -> None:
        reply = self._standard.answer(data, source)
        if reply is None:
            return
        try:
            self._socket.sendto(reply, source)
        except OSError as error:
            log.debug("%s:%d: no answer could be sent: %s", *source, error)


def epoch_since(born: int) -> Callable[[], int]:
    """Return a function that says how many seconds ago ``born`` was by the clock on the wall.

    State outlives the daemon and the machine, so no other clock will do.
    """
    return lambda: max(0, int(time.time()) - born) & 0xFFFFFFFF


def _forward(
    client: bytes,
    host: str,
    request: natpmp.AskMapping | pcp.AskMap,
    wished: Address,
    nonce: bytes,
) -> Forward:
    """Say it as an agent would; port 0 is no management socket."""
    return Forward(
        client=client,
        listener=_listener(request.protocol, request.inside),
        protocol=request.protocol,
        inside=Endpoint(host, request.inside),
        wished=Endpoint.of(wished),
        management=Endpoint(host, 0),
        nonce=nonce.ljust(16, b"\0"),
        lifetime=request.lifetime,
    )


def _check_nonce(mapping: Mapping, nonce: bytes) -> None:
    if mapping.nonce[:12] != nonce:
        raise Refused(Status.NOT_AUTHORIZED, f"{mapping} was asked for with another nonce")


def _listener(protocol: int, port: int) -> bytes:
    return _id(protocol, port)


def _id(*parts: str | int) -> bytes:
    return hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:16]
