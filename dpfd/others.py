"""Notices other dpfds on this gateway that give the same public addresses away.

Each stands for what it gives by listening sockets in the abstract namespace of this network,
one for each public host, whose names say which ports: ``@dpfd/198.51.100.1/10000-32767/PID``.
They end with their process, whatever it dies of. It must never believe a name that an ordinary
user has taken: who listens there is asked of the kernel.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from gevent import socket
from gevent.server import StreamServer

from gcbpatch.errors import ConfigError

_NAMES = Path("/proc/net/unix")
_NAME = re.compile(r"@(dpfd/(\S+)/(\d+)-(\d+)/(\d+))$")
_CREDENTIALS = struct.Struct("=iII")


class Other(NamedTuple):
    """A dpfd of this gateway: what it gives away, and its process."""

    host: str
    low: int
    high: int
    pid: int


class Standing:
    """What this dpfd gives away, for others to see."""

    def __init__(self, hosts: Iterable[str], low: int, high: int) -> None:
        """Stand for these addresses.

        Raises ConfigError if another dpfd gives one of them away. Who starts at the same time
        may be refused as well as this one: one of two must be changed anyway.
        """
        self._servers: list[StreamServer] = []
        self.move(hosts, low, high)

    def move(self, hosts: Iterable[str], low: int, high: int) -> None:
        """Stand for these addresses and no others any more. Raises ConfigError."""
        self.close()
        self._servers = [_stand(host, low, high) for host in hosts]
        for other in here():
            if other.host in hosts and low <= other.high and other.low <= high:
                self.close()
                raise ConfigError(
                    f"--ports {low}-{high}: another dpfd here (process {other.pid}) gives away "
                    f"ports {other.low}-{other.high} of {other.host}; ranges that do not overlap "
                    "would be right"
                )

    def close(self) -> None:
        """Stand for nothing any more."""
        for server in self._servers:
            server.close()
        self._servers = []


def here() -> Iterator[Other]:
    """Yield the other dpfds of this gateway, once for each of their public hosts."""
    for line in _NAMES.read_text(errors="replace").splitlines():
        found = _NAME.search(line)
        if found and int(found[5]) != os.getpid() and _is_trusted(found[1]):
            yield Other(found[2], int(found[3]), int(found[4]), int(found[5]))


def _stand(host: str, low: int, high: int) -> StreamServer:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(f"\0dpfd/{host}/{low}-{high}/{os.getpid()}")
    except OSError as error:
        made.close()
        raise ConfigError(f"{host}: its place here is taken: {error.strerror}") from error
    made.listen()
    server = StreamServer(made, lambda link, _: link.close())
    server.start()
    return server


def _is_trusted(name: str) -> bool:
    """Whether it is root, or the user of this process, who listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.setblocking(False)
        try:
            link.connect(f"\0{name}")
            data = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except BlockingIOError:
            return False  # nobody takes these connections, as dpfd does
        except OSError:
            return False  # it has ended
    return _CREDENTIALS.unpack(data)[1] in (0, os.geteuid())
