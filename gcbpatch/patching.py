"""Puts a program on DPF and GCB: gevent's patches, with our layer under its sockets.

It must never run at import, and never patch a daemon or an agent.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from dataclasses import replace
from typing import Any

from .agent import door
from .config import ClientConfig, client_config, to_environ
from .logs import FILE_VARIABLE, log_into

log = logging.getLogger("gcbpatch")

TESTED_GEVENT = "26.9"

_patched: list[ClientConfig] = []


def patch_all(
    broker: str | list[str] | None = None,
    dpf: str | None = None,
    token: str | None = None,
    routes: str | list[str] | None = None,
    config: str | None = None,
    **gevent_flags: bool,
) -> None:
    """Patch this program; what is not given comes from the environment and GCB_CONFIG.

    ``broker`` and ``dpf`` are ``host[:port]``, ``token`` the token itself, ``routes`` a
    routing table's file or a list of routes (see gcbpatch.routes), ``config`` a TOML
    file; the other keywords are gevent.monkey.patch_all's. Called again with nothing new it
    does nothing. Raises ConfigError when a setting is wrong.
    """
    settings = client_config(
        os.environ, broker=broker, dpf=dpf, token=token, routes=routes, config=config
    )
    if _patched and _patched[-1] == settings:
        return
    _hook_sockets()
    from gevent import monkey

    monkey.patch_all(**gevent_flags)
    _configure(settings)
    _patched.append(settings)


def _hook_sockets() -> None:
    """Put our layer under gevent's sockets, before anything makes one."""
    import gevent

    if not gevent.__version__.startswith(TESTED_GEVENT + "."):
        log.warning("gevent %s is not among the tested %s.*", gevent.__version__, TESTED_GEVENT)
    import gevent.socket

    from .sockets.raw import Raw

    gevent.socket.socket._gevent_sock_class = Raw
    tls: Any = sys.modules.get("gevent.ssl")
    if tls is not None and not issubclass(tls._contextawaresock, Raw):
        tls._contextawaresock = _on_top_of(Raw, tls._contextawaresock)


def _on_top_of(base: Any, cls: type) -> type:
    """Make ``cls`` anew with another base: gevent.ssl was imported before us."""
    own: dict[str, Any] = {
        name: value for name, value in vars(cls).items() if name not in ("__weakref__", "_sslsock")
    }

    def __init__(self: Any, family: int, type: int, proto: int, fileno: Any, wref: Any) -> None:
        base.__init__(self, family, type, proto, fileno)
        self._sslsock = wref

    own["__init__"] = __init__
    return type(cls.__name__, (base,), own)


def _configure(settings: ClientConfig) -> None:
    """Give the layer its agent, and children the same settings and the same agent."""
    from .sockets.link import Link
    from .sockets.ports import Ports
    from .sockets.raw import LAYER

    _log_to(os.environ.get(FILE_VARIABLE, ""), settings.log)
    if not settings.active:
        LAYER.configure(None)
        return
    settings.key()
    os.environ.update(to_environ(settings))
    os.environ.pop("GCB_ROUTES", None)  # its text goes to children: a file may change
    tree = os.environ.setdefault(door.AGENT_VARIABLE, door.new_name())
    os.environ.setdefault(door.CLIENT_VARIABLE, os.urandom(16).hex())
    LAYER.configure(Link(settings, f"{tree}.{_mark_of(settings)}"))
    LAYER.ports = Ports()


def _mark_of(settings: ClientConfig) -> str:
    """Tell settings apart: a child that was given others needs an agent of its own.

    The mark is part of a name that every user of the machine can see, so the token, which
    could be guessed from it, stays out.
    """
    text = repr(sorted(to_environ(replace(settings, token="")).items()))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _log_to(path: str, level: str) -> None:
    """Log into a file where one is named; else the program's own logging decides."""
    logger = logging.getLogger("gcbpatch")
    logger.setLevel(level)
    if not path or logger.handlers:
        return
    # Children and the agent mean the same file, wherever they are.
    os.environ[FILE_VARIABLE] = os.path.abspath(path)
    problem = log_into(logger, path, "program")
    if problem is not None:
        log.warning("%s=%s: cannot be written: %s", FILE_VARIABLE, path, problem.strerror)
