"""Reads the example frames and derived values out of docs/protocol.md: they are test vectors.

A block of the document that starts with ```` ```frame NAME ````, ```` ```value NAME ```` or
```` ```datagram NAME ```` holds one JSON object and then lines of hexadecimal octets. In the
JSON a string that starts with ``0x`` stands for bytes. It must never make a vector up: what is
not in the document is not there.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from gcbpatch.errors import Status
from gcbpatch.wire.auth import Key
from gcbpatch.wire.codec import Kind
from gcbpatch.wire.messages import REPLIES, REQUESTS, Command, Message

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"
_BLOCK = re.compile(r"^```(frame|value|datagram) (.+?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEX_LINE = re.compile(r"[0-9a-f]{2}( [0-9a-f]{2})*")


@dataclass(frozen=True)
class Block:
    """One block: its name, its JSON with bytes in it, and its octets."""

    sort: str
    name: str
    given: dict[str, Any]
    data: bytes


@dataclass(frozen=True)
class FrameVector:
    """One example frame; ``body`` holds the fields in wire order, None where there is none."""

    name: str
    kind: Kind
    command: Command
    status: Status
    transaction: int
    token: bytes | None
    body: dict[str, Any] | None
    data: bytes

    @property
    def key(self) -> Key | None:
        """The key that seals the frame."""
        return Key(self.token) if self.token is not None else None

    @property
    def message_type(self) -> type[Message]:
        """What its body should be."""
        return (REQUESTS if self.kind is Kind.REQUEST else REPLIES)[self.command]

    def message(self) -> Message | None:
        """Return the body that the document describes."""
        if self.body is None:
            return None
        return msgspec.convert(list(self.body.values()), self.message_type)


def blocks(text: str) -> list[Block]:
    """Return all blocks of a document. Raises ValueError for one that is not well formed."""
    return [_block(*found.groups()) for found in _BLOCK.finditer(text)]


def _block(sort: str, name: str, content: str) -> Block:
    lines = content.splitlines()
    octets = [line for line in lines if _HEX_LINE.fullmatch(line)]
    described = "\n".join(line for line in lines if not _HEX_LINE.fullmatch(line))
    if lines[-len(octets) :] != octets:
        raise ValueError(f"{sort} {name}: its octets do not stand last")
    return Block(sort, name, _with_bytes(json.loads(described)), bytes.fromhex(" ".join(octets)))


def _with_bytes(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("0x"):
        return bytes.fromhex(value[2:])
    if isinstance(value, list):
        return [_with_bytes(item) for item in value]
    if isinstance(value, dict):
        return {name: _with_bytes(item) for name, item in value.items()}
    return value


def _frame(block: Block) -> FrameVector:
    command, kind = block.name.split()[:2]
    given = dict(block.given)
    vector = FrameVector(
        name=block.name,
        kind=Kind[kind.upper()],
        command=Command[command],
        status=Status[given.pop("status", "SUCCESS")],
        transaction=int.from_bytes(given.pop("transaction"), "big"),
        token=given.pop("token", "").encode() or None,
        body=given.pop("body"),
        data=block.data,
    )
    if given:
        raise ValueError(f"frame {block.name}: {', '.join(given)} is not known")
    return vector


def frames() -> list[FrameVector]:
    """Return the document's example frames."""
    return [_frame(b) for b in blocks(DOCUMENT.read_text("utf-8")) if b.sort == "frame"]


def relayed() -> dict[str, Block]:
    """Return the document's relayed datagrams by name."""
    return {b.name: b for b in blocks(DOCUMENT.read_text("utf-8")) if b.sort == "datagram"}


def values() -> dict[str, Block]:
    """Return the document's derived values by name."""
    return {b.name: b for b in blocks(DOCUMENT.read_text("utf-8")) if b.sort == "value"}
