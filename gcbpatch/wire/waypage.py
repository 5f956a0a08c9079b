"""A page of memory that an agent and a program share: the ways of one UDP port past the relay.

    word  what (native octets, 8 each)
    0     edition: another number whenever slots have been filled or cleared
    1     how many slots may be filled, counted from the first
    2     1 if the port has another relay now, and another page
    8...  slots of 6 words:
          0   the header that the relay would get for the peer; 0 in a slot that is clear
          1   where the way goes: host, port, 2 octets of nothing
          2-3 what stands before a payload on this way
          4   until when it may be used without another word of the peer's: CLOCK_MONOTONIC, ns
          5   1 if the program has used it since the agent has looked

The agent writes all but the last word of a slot, the program that one and nothing else. A
program looks at the edition and at the time before every datagram, so that an agent that is
no more is not waited for. This room must never be told a time by anybody but the caller.
"""

from __future__ import annotations

from ..addresses import Address, pack_host, unpack_host

SLOTS = 256
SLOT_WORDS = 6
FIRST_WORD = 8
UNTIL, USED = 4, 5
SIZE = 8 * (FIRST_WORD + SLOTS * SLOT_WORDS)

Entry = tuple[bytes, Address, int]
"""What stands before a payload, where it goes, and the slot's first word."""


def word_of(slot: int) -> int:
    """Return where a slot begins, in words."""
    return FIRST_WORD + slot * SLOT_WORDS


class Page:
    """One page, ``room`` being its memory; the agent's side."""

    def __init__(self, room: memoryview) -> None:
        self._octets = room
        self._words = room.cast("Q")
        self._free = list(range(SLOTS - 1, -1, -1))

    @property
    def is_full(self) -> bool:
        """Whether every slot is filled."""
        return not self._free

    def put(self, header: bytes, place: Address, before: bytes) -> int:
        """Fill a slot, which is not to be used until it is confirmed; return its number."""
        slot = self._free.pop()
        at = word_of(slot)
        self._words[at + UNTIL] = self._words[at + USED] = 0
        whither = pack_host(place[0]) + place[1].to_bytes(2, "big") + bytes(2)
        self._octets[8 * at : 8 * at + 32] = header + whither + before
        self._words[1] = max(self._words[1], slot + 1)
        self._words[0] += 1
        return slot

    def confirm(self, slot: int, until: int) -> None:
        """Let a way be used until then, in nanoseconds of CLOCK_MONOTONIC."""
        self._words[word_of(slot) + UNTIL] = until

    def take_used(self, slot: int) -> bool:
        """Return whether the program has used a way since this was asked last."""
        at = word_of(slot) + USED
        used = self._words[at] != 0
        self._words[at] = 0
        return used

    def retire(self) -> None:
        """The port has another relay now: whoever looks here has to look at its label."""
        self._words[2] = 1
        self._words[0] += 1

    def clear(self, slot: int) -> None:
        """Nobody uses this way any more."""
        at = word_of(slot)
        self._words[at + UNTIL] = self._words[at] = 0
        self._words[0] += 1
        self._free.append(slot)


def entries(room: memoryview) -> dict[bytes, Entry]:
    """Return the slots that are filled, by the header that the relay would get."""
    words = room.cast("Q")
    found = {}
    for slot in range(min(words[1], SLOTS)):
        at = word_of(slot)
        if words[at]:
            header, whither, before = (
                bytes(room[8 * at + begin : 8 * at + end]) for begin, end in
                ((0, 8), (8, 16), (16, 32))
            )
            place = unpack_host(whither[:4]), int.from_bytes(whither[4:6], "big")
            found[header] = before, place, at
    return found
