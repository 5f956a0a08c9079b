"""Settings: from arguments, the environment and TOML files, in this order.

Shared by all three houses: how a file is read and how a wrong key is named. It must never
open a socket or start anything.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .addresses import BROKER_PORT, GATEWAY_PORT, Address, format_address, parse_host_port
from .errors import ConfigError
from .routefile import RouteFile
from .routes import Routes, from_pairs, parse

if TYPE_CHECKING:
    from .wire.auth import Key

MIN_TOKEN_BYTES = 8


def read_toml(path: str) -> dict[str, Any]:
    """Return the tables of a TOML file; raises ConfigError naming the file and the line."""
    import tomllib  # where it is needed: a program without such a file starts sooner

    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def read_tokens(path: str) -> list[Key]:
    """Return the keys of a token file: a token a line, ``name token`` or just ``token``.

    Empty lines and lines that start with # are passed over. Raises ConfigError naming the
    line, never its content.
    """
    from .wire.auth import Key

    return [Key(secret.encode(), name) for name, secret in _tokens_in(path)]


def _tokens_in(path: str) -> list[tuple[str, str]]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: the token file cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: the token file cannot be read: it is not UTF-8") from None
    tokens = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        tokens.append(_token_of(words, f"{path}:{number}"))
    if not tokens:
        raise ConfigError(f"{path}: no token in it; one 'name token' a line would be right")
    return tokens


def _token_of(words: list[str], where: str) -> tuple[str, str]:
    name, secret = words if len(words) == 2 else ("default", words[0])
    if len(words) > 2 or len(secret) < MIN_TOKEN_BYTES:
        raise ConfigError(
            f"{where}: not a token; 'name token' with a token of {MIN_TOKEN_BYTES} or more "
            "characters and no spaces would be right"
        )
    return name, secret


@dataclass(frozen=True)
class ClientConfig:
    """What a patched program knows of its brokers and its gateway.

    ``patience`` (seconds) bounds how long a broker or gateway is waited for; ``lifetime``
    (seconds) is what registrations and mappings are asked for. ``register`` tells which
    listeners a broker is asked for: those that are not reached without, none, or all.
    """

    brokers: tuple[Address, ...] = ()
    gateway: Address | None = None
    token_file: str = ""
    token: str = field(default="", repr=False)
    network: str = ""
    log: str = "WARNING"
    identity: str = "proxy"
    register: str = "auto"
    lifetime: int = 30
    patience: float = 3.0
    routes: Routes | RouteFile = field(default_factory=Routes)

    @property
    def active(self) -> bool:
        """Whether anything is configured at all."""
        return bool(self.brokers or self.gateway)

    def check(self) -> None:
        """Look into the token file, if it counts, and load nothing that a key needs.

        Raises ConfigError as key() would.
        """
        if self.token_file and not self.token:
            _tokens_in(self.token_file)

    def key(self) -> Key | None:
        """Return the client's key, if it has a token. Raises ConfigError."""
        if self.token:
            from .wire.auth import Key

            return Key(self.token.encode())
        return read_tokens(self.token_file)[0] if self.token_file else None


ROUTES_TEXT = "GCB_ROUTES_TEXT"
"""How a program hands its table on to its agent and children; users name a file instead."""

_TABLE_OF = "# the table of "
"""Begins such a text where the table is a file, which is looked into again."""

VARIABLES = {
    "GCB_BROKER": "broker",
    "DPF_SERVER": "dpf",
    "GCB_TOKEN": "token",
    "GCB_TOKEN_FILE": "token_file",
    "GCB_NETWORK": "network",
    "GCB_LOG": "log",
    "GCB_IDENTITY": "identity",
    "GCB_REGISTER": "register",
    "GCB_LIFETIME": "lifetime",
    "GCB_PATIENCE": "patience",
    ROUTES_TEXT: "routes_text",
    "GCB_ROUTES": "routes",
}


def client_config(environ: Mapping[str, str], **given: Any) -> ClientConfig:
    """Build the client's settings; ``given`` wins over ``environ``, that over the file.

    Raises ConfigError naming the key or variable.
    """
    settings: dict[str, tuple[str, Any]] = {}
    path = given.pop("config", None) or environ.get("GCB_CONFIG")
    if path:
        settings.update({k: (f"{path}: {k}", v) for k, v in read_toml(path).items()})
    for variable, name in VARIABLES.items():
        if environ.get(variable):
            settings[name] = variable, environ[variable]
    settings.update({k: (f"{k}=", v) for k, v in given.items() if v is not None})
    config = ClientConfig()
    for name, (where, value) in settings.items():
        config = _with_setting(config, name, where, value)
    return config


def to_environ(config: ClientConfig) -> dict[str, str]:
    """Return the variables that give a child process the same settings."""
    pairs = {
        "GCB_BROKER": ",".join(format_address(a) for a in config.brokers),
        "DPF_SERVER": format_address(config.gateway) if config.gateway else "",
        "GCB_TOKEN": config.token,
        "GCB_TOKEN_FILE": os.path.abspath(config.token_file) if config.token_file else "",
        "GCB_NETWORK": config.network,
        "GCB_LOG": config.log,
        "GCB_IDENTITY": config.identity,
        "GCB_REGISTER": config.register,
        "GCB_LIFETIME": str(config.lifetime),
        "GCB_PATIENCE": str(config.patience),
        ROUTES_TEXT: _routes_text(config.routes),
    }
    return {k: v for k, v in pairs.items() if v}


def _with_setting(config: ClientConfig, name: str, where: str, value: Any) -> ClientConfig:
    try:
        return replace(config, **_READERS[name](value))
    except KeyError:
        known = ", ".join(sorted(_READERS))
        raise ConfigError(f"{where} is not a setting; known are {known}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _brokers(value: Any) -> dict[str, Any]:
    texts = value if isinstance(value, list) else str(value).split(",")
    return {"brokers": tuple(parse_host_port(t, BROKER_PORT) for t in texts if t.strip())}


def _number(name: str, kind: type, low: float, high: float) -> Any:
    def read(value: Any) -> dict[str, Any]:
        number = kind(value)
        if not low <= number <= high:
            raise ValueError(f"{value} is out of range; {low} to {high} would be right")
        return {name: number}

    return read


def _identity(value: Any) -> dict[str, Any]:
    if value not in ("proxy", "local"):
        raise ValueError(f"{value!r} is not an identity; 'proxy' or 'local' would be right")
    return {"identity": value}


def _register(value: Any) -> dict[str, Any]:
    if value not in ("auto", "never", "always"):
        raise ValueError(f"{value!r} is not right; 'auto', 'never' or 'always' would be")
    return {"register": value}


def _log(value: Any) -> dict[str, Any]:
    if str(value).upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ValueError(f"{value!r} is no level; DEBUG, INFO, WARNING or ERROR would be right")
    return {"log": str(value).upper()}


def _routes(value: Any) -> dict[str, Any]:
    """A file's name, or the routes themselves as a list of ``NETWORK WAY``."""
    if isinstance(value, list):
        return {"routes": from_pairs((f"route {n}", str(v).split()) for n, v in enumerate(value))}
    return {"routes": RouteFile(os.fspath(value))}


def _routes_text(routes: Routes | RouteFile) -> str:
    text = str(routes.current)
    return f"{_TABLE_OF}{routes.path}\n{text}" if isinstance(routes, RouteFile) else text


def _inherited_routes(value: Any) -> dict[str, Any]:
    """What _routes_text() made; a file that is gone or wrong by now costs nobody the table."""
    table, first = parse(str(value)), str(value).partition("\n")[0]
    if not first.startswith(_TABLE_OF):
        return {"routes": table}
    return {"routes": RouteFile(first.removeprefix(_TABLE_OF), table)}


def _token(value: Any) -> dict[str, Any]:
    if len(str(value)) < MIN_TOKEN_BYTES or len(str(value).split()) != 1:
        raise ValueError(
            f"not a token; {MIN_TOKEN_BYTES} or more characters without spaces would be right"
        )
    return {"token": str(value)}


def _text(name: str) -> Any:
    return lambda value: {name: str(value)}


_READERS: dict[str, Any] = {
    "broker": _brokers,
    "dpf": lambda value: {"gateway": parse_host_port(str(value), GATEWAY_PORT)},
    "token": _token,
    "token_file": _text("token_file"),
    "network": _text("network"),
    "log": _log,
    "identity": _identity,
    "register": _register,
    "lifetime": _number("lifetime", int, 1, 86400),
    "patience": _number("patience", float, 0.1, 600.0),
    "routes": _routes,
    "routes_text": _inherited_routes,
}
