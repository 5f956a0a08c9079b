"""Addresses of a wrong shape, family or type: the errors are CPython's, type and words."""

from __future__ import annotations

import re
from pathlib import Path

from .broker_client import Broker
from .side_by_side import brokered, told

TABLE = """
class Index:
    def __index__(self):
        return 1
class Tuple(tuple):
    pass
HOSTS = ["127.0.0.1", "::1", "::ffff:127.0.0.1", "", "<broadcast>", "no such name", "a" * 70,
         "127.0.0.1\\0", "\\udcff", "xn--", ".", "\u20ac.invalid", b"127.0.0.1", bytearray(b"::1"),
         None, 1, 1.5, [], ()]
PORTS = [1, 65536, -1, 2**40, "1", "http", b"1", None, 1.0, True, Index(), [], 10**30]
ADDRESSES = [(host, 1) for host in HOSTS] + [("127.0.0.1", port) for port in PORTS]
ADDRESSES += [("::1", port) for port in PORTS[:4]] + [("::1", 1, *more) for more in (
    (0,), (0, 0), (2**20, 0), (2**21, 0), (-1, 0), (0, -1), (0, 2**40), ("0", 0), (0, "0"),
    (0, 0, 0))]
ADDRESSES += [(), ("127.0.0.1",), ("127.0.0.1", 1, 2), ["127.0.0.1", 1], "127.0.0.1:1", b"path",
              "path", None, 1, object, Tuple(("127.0.0.1", 1)), {"127.0.0.1": 1}, (1, "127.0.0.1"),
              ([], []), ({}, 1)]
ADDRESSES.append(iter(("127.0.0.1", 1)))

def blocking(sock):
    sock.settimeout(5)
def polled(sock):
    sock.setblocking(False)
def bound(sock):
    sock.bind(("127.0.0.1", 0) if sock.family == socket.AF_INET else ("::1", 0))
def none(sock):
    pass

CALLS = {
    "connect": lambda sock, address: sock.connect(address),
    "connect_ex": lambda sock, address: sock.connect_ex(address),
    "bind": lambda sock, address: sock.bind(address),
    "sendto": lambda sock, address: sock.sendto(b"x", address),
    "sendmsg": lambda sock, address: sock.sendmsg([b"x"], [], 0, address),
}

def outcome(call, *arguments):
    try:
        return repr(call(*arguments))
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def sockets():
    for family in ("AF_INET", "AF_INET6", "AF_UNIX"):
        for kind in ("SOCK_STREAM", "SOCK_DGRAM"):
            yield family, kind

for family, kind in sockets():
    for name, call in CALLS.items():
        for mode in (blocking, polled):
            for number, address in enumerate(ADDRESSES):
                if family == "AF_UNIX" and isinstance(address, (str, bytes)):
                    continue  # such an address is a good one there
                with socket.socket(getattr(socket, family), getattr(socket, kind)) as sock:
                    mode(sock)
                    said = outcome(call, sock, address)
                say(f"{family} {kind} {mode.__name__} {name}({address!r:.60})", "->", said)
for name in ("create_connection", "create_server"):
    for address in ADDRESSES:
        said = outcome(lambda: getattr(socket, name)(address).close())
        say(f"{name}({address!r:.60})", "->", said)
for wrong in ((), (1,), ("x",), (1, 2), (1.5,), (None,)):
    for name in ("listen", "shutdown", "getsockopt", "setsockopt", "getpeername", "accept"):
        with socket.socket() as sock:
            say(f"{name}{wrong!r}", "->", outcome(getattr(sock, name), *wrong))
"""


GEVENT_DIFFERS = {"connect", "connect_ex", "create_connection", "getpeername", "shutdown"}
"""Calls that gevent answers in its own way.

It resolves names before connect() looks at the rest of the address, with words of its own for
what is no name, calls connect for connect_ex and the reverse, and counts arguments in Python.
"""


def outcomes(said: str) -> list[str]:
    """What was said, a call a line, without the places in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", said).splitlines()


def test_bad_addresses_are_told_as_without_a_broker(broker: Broker, tmp_path: Path) -> None:
    usual = outcomes(told(TABLE))
    ours = outcomes(brokered(TABLE, broker, tmp_path / "log"))
    assert len(usual) > 3000
    different = [pair for pair in zip(usual, ours, strict=True) if pair[0] != pair[1]]
    assert different == []


def test_bad_addresses_are_told_as_by_cpython_where_gevent_does(
    broker: Broker, tmp_path: Path
) -> None:
    cpythons = outcomes(told(TABLE, UNPATCHED="1"))
    ours = outcomes(brokered(TABLE, broker, tmp_path / "log"))
    different = [one for one, other in zip(cpythons, ours, strict=True) if one != other]
    calls = {re.search(r"(\w+)\(", line).group(1) for line in different}  # type: ignore[union-attr]
    assert calls <= GEVENT_DIFFERS, [line for line in different if "connect" not in line]
