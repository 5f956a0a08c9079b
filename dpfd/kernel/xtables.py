"""Words for python-iptables' table objects, on entries as bytes.

Its own rule objects have a C library parse and print their words, a hundred times slower. A table
here is one that iptables.py has opened under the lock; nothing is changed until it is committed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any


def chain_names(table: Any) -> list[str]:
    """Return the names of all chains."""
    return [chain.name for chain in table.chains]


def raws(table: Any, chain: str) -> Iterator[Any]:
    """Yield the entries of a chain as the C library holds them."""
    entry = table.first_rule(chain)
    while entry:
        yield entry
        entry = table.next_rule(entry)


def bytes_of(raw: Any) -> bytes:
    """Return such an entry with its matches and its target."""
    return ctypes.string_at(ctypes.addressof(raw), raw.next_offset)


def targets(table: Any, chain: str) -> list[str]:
    """Return the names of the targets of a chain's rules; of a jump, the chain."""
    return [(table.get_target(raw) or b"").decode() for raw in raws(table, chain)]


def append(table: Any, chain: str, entry: bytes) -> None:
    """Put an entry at the end of a chain. Raises python-iptables' IPTCError."""
    table.append_entry(chain, ctypes.create_string_buffer(entry, len(entry)))


def insert(table: Any, chain: str, entry: bytes) -> None:
    """Put an entry at the head of a chain. Raises python-iptables' IPTCError."""
    table.insert_entry(chain, ctypes.create_string_buffer(entry, len(entry)), 0)


def delete(table: Any, chain: str, entry: bytes) -> bool:
    """Remove the first entry with these very bytes; return whether there was one."""
    mask = (ctypes.c_ubyte * len(entry)).from_buffer_copy(b"\xff" * len(entry))
    buffer = ctypes.create_string_buffer(entry, len(entry))
    return bool(table._iptc.iptc_delete_entry(chain.encode(), buffer, mask, table._handle) == 1)
