"""Reads legacy iptables' tables as the kernel hands them out, without any library.

For others' rules: whether there is a table at all, and which public ports its rules forward. To
ask for a table that is not there would make it, so the list of those that are is read first.
Layout: struct ipt_getinfo and ipt_get_entries of <linux/netfilter_ipv4/ip_tables.h>.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from .entries import Entry, parse_entry
from .port import Claim, KernelError

_NAMES = Path("/proc/net/ip_tables_names")
_GET_INFO, _GET_ENTRIES = 64, 65
_NAME_SIZE = 32
_INFO_SIZE = 84
_INFO_OF_SIZE = struct.Struct("=I")
_HEAD = struct.Struct("=32sI4x")
_NEXT_OFFSET = struct.Struct("=HH")
_AT_OFFSETS = 88
_TRIES = 10
_LIBC = ctypes.CDLL(None, use_errno=True)


def table_exists(name: str) -> bool:
    """Return whether this namespace has a legacy table; looking is what does not make one."""
    try:
        return name in _NAMES.read_text().split()
    except OSError:
        return False


def claims() -> list[Claim]:
    """Return which public ports the rules of the legacy nat table forward. Raises KernelError.

    Rules in chains of dpfd's are passed over, this one's or another's.
    """
    if not table_exists("nat"):
        return []
    found: list[Claim] = []
    for chain, entry in entries("nat"):
        if not chain.startswith("DPFD"):
            found.extend(entry.claims())
    return found


def entries(table: str) -> Iterator[tuple[str, Entry]]:
    """Yield each rule of a table that exists, with the name of its chain if it is a user's.

    Raises KernelError.
    """
    data = _table(table)
    chain, at = "", 0
    while at < len(data):
        _, following = _NEXT_OFFSET.unpack_from(data, at + _AT_OFFSETS)
        try:
            entry = parse_entry(data[at : at + following])
        except ValueError as error:
            raise KernelError(f"legacy iptables, table {table}: {error}") from error
        if entry.target == "ERROR":  # the head of a chain
            chain = entry.chain
        else:
            yield chain, entry
        at += following


def signature(table: str) -> bytes:
    """Return what tells a changed table at once: where its hooks lead, its entries, its size."""
    if not table_exists(table):
        return b""
    return _asked(_GET_INFO, _name(table), _INFO_SIZE)


def _table(name: str) -> bytes:
    """Return all entries of a table; asked for again if it grows meanwhile."""
    for _ in range(_TRIES):
        size = _INFO_OF_SIZE.unpack_from(_asked(_GET_INFO, _name(name), _INFO_SIZE), 80)[0]
        try:
            whole = _asked(_GET_ENTRIES, _HEAD.pack(_name(name), size), _HEAD.size + size)
        except BlockingIOError:
            continue
        return whole[_HEAD.size :]
    raise KernelError(f"legacy iptables: table {name} does not stay the same")


def _name(name: str) -> bytes:
    return name.encode().ljust(_NAME_SIZE, b"\0")


def _asked(option: int, question: bytes, size: int) -> bytes:
    """getsockopt() with a question in its buffer. Python's own takes none, nor a large one."""
    buffer = ctypes.create_string_buffer(question.ljust(size, b"\0"), size)
    length = ctypes.c_uint32(size)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        done = _LIBC.getsockopt(
            asker.fileno(), socket.IPPROTO_IP, option, buffer, ctypes.byref(length)
        )
    if done == 0:
        return buffer.raw[: length.value]
    number = ctypes.get_errno()
    if number == errno.EAGAIN:
        raise BlockingIOError
    raise KernelError(f"legacy iptables: {os.strerror(number)}")
