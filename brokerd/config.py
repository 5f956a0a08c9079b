"""What a broker is told: flags first, then the file, then defaults; and its two secrets.

It must never open a socket other than to learn this host's own address, and never show a
secret. The key file is the only thing that a broker keeps on disk.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from gcbpatch.addresses import (
    BROKER_PORT,
    family_of,
    is_link_local,
    is_wildcard,
    pack_host,
    unmapped,
)
from gcbpatch.config import read_tokens, read_toml
from gcbpatch.errors import ConfigError
from gcbpatch.wire.auth import Keyring

from .limits import Bounds

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
KEY_BYTES = 32


@dataclass(frozen=True)
class BrokerConfig:
    """``address`` are the hosts of proxy addresses, at most one of a family; listeners that take
    both families get the first. ``lifetime`` (seconds) is the longest.

    ``workers`` is the number of processes that pump bytes; with 1 the broker does it itself.
    """

    address: tuple[str, ...] = ()
    port: int = BROKER_PORT
    proxy_ports: tuple[int, int] = (10000, 32767)
    token_file: str = ""
    key_file: str = ""
    lifetime: int = 30
    workers: int = 1
    log: str = "WARNING"
    limits: Bounds = field(default_factory=Bounds)

    def keyring(self) -> Keyring:
        """Read the tokens. Raises ConfigError."""
        return Keyring(read_tokens(self.token_file) if self.token_file else [])


def broker_config(flags: Mapping[str, Any], path: str | None) -> BrokerConfig:
    """Build the settings; ``flags`` win over the file at ``path``; None means not given.

    Raises ConfigError with the flag or key in its text.
    """
    config = BrokerConfig()
    for name, value in (read_toml(path) if path else {}).items():
        config = _with_setting(config, name, f"{path}: {name}", value)
    for name, value in flags.items():
        if value is not None and value != ():
            config = _with_setting(config, name, f"--{name.replace('_', '-')}", value)
    if not config.address:
        config = replace(config, address=(own_address(),))
    return replace(config, key_file=config.key_file or default_key_file())


def _with_setting(config: BrokerConfig, name: str, where: str, value: Any) -> BrokerConfig:
    if name not in _READERS:
        known = ", ".join(sorted(_READERS))
        raise ConfigError(f"{where} is not a setting; known are {known}")
    try:
        return replace(config, **{name: _READERS[name](value)})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _addresses(value: Any) -> tuple[str, ...]:
    texts = value if isinstance(value, list | tuple) else str(value).split(",")
    hosts = tuple(_address(text) for text in texts)
    if not 1 <= len(hosts) <= 2 or len({family_of(host) for host in hosts}) < len(hosts):
        raise ValueError(
            f"{', '.join(hosts)!r} is not right; one IPv4 and one IPv6 address at most would be"
        )
    return hosts


def _address(value: Any) -> str:
    text = str(value).strip()
    try:
        host = str(ipaddress.ip_address(text[1:-1] if text[:1] + text[-1:] == "[]" else text))
        pack_host(host)  # raises for a zone
    except ValueError:
        host = ""
    if not host or is_wildcard(host) or is_link_local(host) or unmapped(host) != host:
        raise ValueError(
            f"{value!r} is not what others can dial; "
            "an address such as 198.51.100.1 or 2001:db8::1 would be"
        )
    return host


def _number(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{value!r} is not right; a number from {low} to {high} would be")
        return value

    return read


def _port_range(value: Any) -> tuple[int, int]:
    low, _, high = str(value).partition("-")
    if low.isdecimal() and high.isdecimal() and 1024 <= int(low) <= int(high) <= 65535:
        return int(low), int(high)
    raise ValueError(
        f"{value!r} is not a range of ports; LOW-HIGH from 1024 to 65535, "
        "such as 10000-32767, would be"
    )


def _level(value: Any) -> str:
    if str(value).upper() not in LEVELS:
        raise ValueError(f"{value!r} is no level; {', '.join(LEVELS)} would be right")
    return str(value).upper()


def _path(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not the name of a file")
    return value


def _limits(value: Any) -> Bounds:
    if not isinstance(value, Mapping):
        raise ValueError("a table [limits] would be right")
    known = [f.name for f in fields(Bounds)]
    number = _number(1, 1_000_000)
    bounds = Bounds()
    for name, bound in value.items():
        if name not in known:
            raise ValueError(f"{name} is not a limit; known are {', '.join(known)}")
        try:
            bounds = replace(bounds, **{name: number(bound)})
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return bounds


_READERS: dict[str, Callable[[Any], Any]] = {
    "address": _addresses,
    "port": _number(0, 65535),
    "proxy_ports": _port_range,
    "token_file": _path,
    "key_file": _path,
    "lifetime": _number(1, 86400),
    "workers": _number(1, 256),
    "log": _level,
    "limits": _limits,
}


def own_address() -> str:
    """Return the address from which this host reaches the Internet; nothing is sent.

    By IPv6 only where there is no way by IPv4.
    """
    return _own(socket.AF_INET, "192.0.2.1") or _own(socket.AF_INET6, "2001:db8::1") or "127.0.0.1"


def _own(family: int, there: str) -> str:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((there, 9))
            host: str = sock.getsockname()[0]
            return host
    except OSError:
        return ""


def default_key_file() -> str:
    """Return where claims' key is kept unless told otherwise (XDG base directories)."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(state, "brokerd", "claims.key")


def read_or_make_key(path: str) -> tuple[bytes, bool]:
    """Return the secret under which claims are made, and whether it was made just now.

    Raises ConfigError if the file cannot be had, is damaged, or is not its owner's alone.
    """
    try:
        made = _make_key(path)
        return _read_key(path), made
    except OSError as error:
        raise ConfigError(
            f"--key-file: {path}: {error.strerror}; a file that can be made or read would be right"
        ) from error


def _make_key(path: str) -> bool:
    """Create the file whole or not at all, for its owner only; False if it is there."""
    if os.path.exists(path):
        return False
    directory = os.path.dirname(os.path.abspath(path))
    os.makedirs(directory, mode=0o700, exist_ok=True)
    draft = f"{path}.{secrets.token_hex(8)}"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(fd, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(fd)
        # Unlike rename, link does not replace what another broker made meanwhile.
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(draft)
    _sync(directory)
    return True


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read_key(path: str) -> bytes:
    if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        raise ConfigError(f"--key-file: {path} is open to others; chmod 600 would be right")
    try:
        key = bytes.fromhex(Path(path).read_text(encoding="ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"--key-file: {path} is not a key; {2 * KEY_BYTES} hexadecimal digits would be right "
            "(without the file a new one is made, and no client gets its old address back)"
        )
    return key
