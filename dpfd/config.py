"""Settings of dpfd: flags first, then the TOML file, then defaults.

It must never look at the machine: that an interface exists, or a file can be written, shows
when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from gcbpatch.addresses import GATEWAY_PORT, is_ip
from gcbpatch.config import read_toml
from gcbpatch.errors import ConfigError

from .policy import Allowance, Network, Range

DEFAULT_MIRROR = "/var/lib/dpfd/mirror.db"
BACKENDS = ("auto", "nftables", "iptables")
WISHES = ("any", "refuse")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True)
class Config:
    """What an administrator decides.

    ``private`` is the interface of the network inside; ``public`` an interface or addresses
    of the world outside; ``ports`` the first and the last public port to give away.
    ``lifetime`` (seconds) is the longest lease. ``probe_interval`` and ``grace`` (seconds, 0:
    a third and a half of the lifetime) are how often management sockets are asked and how
    long they may refuse; ``probe_rate`` is how many of them are asked in a second at most, and
    ``report_interval`` how often the log says how many were, and what CPU time dpfd took.
    ``reconcile_interval`` in seconds. ``wish`` is what a client gets that
    cannot have the public port wished for: any other, or a refusal. ``allow`` says who may map
    what. With ``standard_clients`` NAT-PMP and PCP are answered, for ``standard_lifetime``
    seconds at most. The rest are limits.
    """

    private: str = ""
    public: tuple[str, ...] = ()
    port: int = GATEWAY_PORT
    ports: tuple[int, int] = (10000, 32767)
    backend: str = "auto"
    mirror: str = DEFAULT_MIRROR
    token_file: str = ""
    lifetime: int = 30
    probe_interval: float = 0.0
    grace: float = 0.0
    probe_rate: float = 1000.0
    report_interval: float = 600.0
    reconcile_interval: float = 60.0
    mappings_per_client: int = 1024
    mappings_per_host: int = 4096
    mappings: int = 50_000
    sessions: int = 1024
    sessions_per_host: int = 64
    idle: float = 120.0
    half_frame: float = 5.0
    wish: str = "any"
    standard_clients: bool = False
    standard_lifetime: int = 7200
    allow: tuple[Allowance, ...] = (Allowance(),)
    log: str = "INFO"


REREAD = (
    "token_file",
    "wish",
    "allow",
    "mappings",
    "mappings_per_client",
    "mappings_per_host",
)
"""What is taken over while dpfd runs."""


def waiting(old: Config, new: Config) -> list[str]:
    """Return the settings that differ, and are taken over at the next start only."""
    names = (field.name for field in fields(Config) if field.name not in REREAD)
    return [name for name in names if getattr(old, name) != getattr(new, name)]


def load(path: str | None, flags: Mapping[str, Any]) -> Config:
    """Return the settings; a flag that is None was not given. Raises ConfigError."""
    config = Config()
    for key, value in (read_toml(path) if path else {}).items():
        config = _with(config, key.replace("-", "_"), value, f"{path}: {key}")
    for key, value in flags.items():
        if value is not None:
            config = _with(config, key, value, f"--{key.replace('_', '-')}")
    return config


def _with(config: Config, key: str, value: Any, where: str) -> Config:
    reader = _READERS.get(key)
    if reader is None:
        known = ", ".join(field.name for field in fields(Config))
        raise ConfigError(f"{where} is not a setting; known are {known}")
    try:
        return replace(config, **{key: reader(value)})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is no text; a name or a path would be right")
    return value.strip()


def _yes_or_no(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _number(low: float, high: float, kind: type[int] | type[float]) -> Callable[[Any], Any]:
    def read(value: Any) -> int | float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{value!r} is no number; {low} to {high} would be right")
        if not low <= value <= high or kind(value) != value:
            raise ValueError(f"{value} is out of range; {low} to {high} would be right")
        return kind(value)

    return read


def _one_of(words: tuple[str, ...], fold: Callable[[str], str]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        word = fold(str(value))
        if word not in words:
            raise ValueError(f"{value!r} is none of {', '.join(words)}")
        return word

    return read


def _public(value: Any) -> tuple[str, ...]:
    """One interface, or addresses: ``wan``, ``198.51.100.1,198.51.100.2``, or a TOML list."""
    texts = value if isinstance(value, list) else str(value).split(",")
    words = tuple(str(text).strip() for text in texts)
    if not all(words) or (len(words) > 1 and not all(map(is_ip, words))):
        raise ValueError(f"{value!r}: an interface, or addresses with commas, would be right")
    if any(":" in word for word in words):
        raise ValueError(f"{value!r}: IPv4 addresses would be right")
    return words


def _networks(value: Any) -> tuple[Network, ...]:
    texts = value if isinstance(value, list) else [value]
    try:
        return tuple(Network(text) for text in texts)
    except ValueError as error:
        problem = f"{error}; networks like 10.1.0.0/24 in a list would be right"
        raise ValueError(problem) from error


def _words(value: Any) -> tuple[str, ...]:
    return tuple(_text(word) for word in (value if isinstance(value, list) else [value]))


def _several_ports(value: Any) -> tuple[Range, ...]:
    """``80``, ``1024-65535``, or several with commas."""
    texts = [text.strip() for text in str(value).split(",")]
    return tuple(_ports(text if "-" in text else f"{text}-{text}") for text in texts)


def _allow(value: Any) -> tuple[Allowance, ...]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError("tables [[allow]] would be right")
    return tuple(_allowance(one) for one in value)


def _allowance(table: dict[str, Any]) -> Allowance:
    read = {}
    for key, value in table.items():
        reader = _ALLOWANCE.get(key.replace("-", "_"))
        if reader is None:
            raise ValueError(f"{key} is none of {', '.join(_ALLOWANCE)}")
        read[key.replace("-", "_")] = reader(value)
    return Allowance(**read)


def _ports(value: Any) -> tuple[int, int]:
    low, dash, high = str(value).partition("-")
    if not (dash and low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high) <= 65535):
        raise ValueError(f"{value!r} is no range of ports; 10000-32767 would be right")
    return int(low), int(high)


_SECONDS = _number(0, 86400, float)
_COUNT = _number(1, 1_000_000, int)
_ALLOWANCE: dict[str, Callable[[Any], Any]] = {
    "networks": _networks,
    "tokens": _words,
    "inside": _networks,
    "inside_ports": _several_ports,
    "ports": _several_ports,
    "mappings": _number(0, 1_000_000, int),
}
_READERS: dict[str, Callable[[Any], Any]] = {
    "private": _text,
    "public": _public,
    "port": _number(1, 65535, int),
    "ports": _ports,
    "backend": _one_of(BACKENDS, str.lower),
    "mirror": _text,
    "token_file": _text,
    "lifetime": _number(1, 86400, int),
    "probe_interval": _SECONDS,
    "grace": _SECONDS,
    "probe_rate": _number(0.1, 100_000, float),
    "report_interval": _number(0.1, 86400, float),
    "reconcile_interval": _number(1, 86400, float),
    "mappings_per_client": _COUNT,
    "mappings_per_host": _COUNT,
    "mappings": _COUNT,
    "sessions": _COUNT,
    "sessions_per_host": _COUNT,
    "idle": _number(1, 86400, float),
    "half_frame": _number(0.1, 3600, float),
    "standard_clients": _yes_or_no,
    "standard_lifetime": _number(1, 86400, int),
    "wish": _one_of(WISHES, str.lower),
    "allow": _allow,
    "log": _one_of(LEVELS, str.upper),
}
