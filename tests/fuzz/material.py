"""What the fuzz throws at the parsers, made from the document's example frames.

Deterministic: hypothesis derives its examples from the tests themselves. To hunt with new
ones, run with ``GCB_FUZZ_EXAMPLES=10000``; a failure prints how to replay it.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from gcbpatch.errors import RemoteProtocolError, Status
from gcbpatch.wire.auth import Key, Keyring
from gcbpatch.wire.codec import HEADER, MAX_BODY, Frame, parse
from gcbpatch.wire.messages import Command
from tests.unit.vectors import frames

EXAMPLES = int(os.environ.get("GCB_FUZZ_EXAMPLES", "300"))
settings.register_profile(
    "gcbpatch",
    max_examples=EXAMPLES,
    derandomize="GCB_FUZZ_EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
fuzzed = settings.get_profile("gcbpatch")

VALID = [vector.data for vector in frames()]
BODIES = [parse(data).body for data in VALID]
KEY = Key(b"correct horse battery")
KEYRINGS = [Keyring(), Keyring([KEY]), Keyring([KEY, Key(b"a different token")])]


@st.composite
def mutated(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """One of ``whole`` with some octets changed, put in, or taken out."""
    data = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        some = draw(st.binary(max_size=4))
        data[at : at + draw(st.sampled_from([0, len(some), 1, 8]))] = some
    return bytes(data)


@st.composite
def cut_or_joined(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """Pieces of several, one behind the other."""
    pieces = []
    for data in draw(st.lists(st.sampled_from(whole), min_size=1, max_size=4)):
        start = draw(st.integers(0, len(data)))
        pieces.append(data[start : draw(st.integers(start, len(data)))])
    return b"".join(pieces)


# An array, map, text, octet string or extension that announces far more than comes.
HUGE = [
    bytes([first]) + b"\xff" * size
    for first, size in (
        (0xC4, 1), (0xC5, 2), (0xC6, 4), (0xC7, 1), (0xC8, 2), (0xC9, 4), (0xD9, 1),
        (0xDA, 2), (0xDB, 4), (0xDC, 2), (0xDD, 4), (0xDE, 2), (0xDF, 4), (0x9F, 0),
    )
]  # fmt: skip
# Deeper than the recursion limit, which hypothesis raises above the interpreter's 1000.
DEEP = [opening * (MAX_BODY // len(opening)) for opening in (b"\x91", b"\x81\x01", b"\x81\xa0")]


@st.composite
def bombs(draw: st.DrawFn) -> bytes:
    """A body that begins well and then announces too much, or goes too deep."""
    body = draw(st.sampled_from([b"", *BODIES]))
    bomb = draw(st.sampled_from([*HUGE, *DEEP]))
    # Rather at the end, where fields that are passed over would be.
    at = draw(st.one_of(st.just(len(body)), st.integers(0, len(body))))
    more = draw(st.integers(0, 15))
    if body and body[0] >> 4 == 0x9:
        body = bytes([0x90 | more]) + body[1:]
    return (body[:at] + bomb)[:MAX_BODY]


garbage = st.one_of(
    st.binary(max_size=100),
    mutated(VALID),
    cut_or_joined(VALID),
    st.binary(max_size=40).map(lambda data: b"GB\x01" + data),
)
some_body = st.one_of(
    st.binary(max_size=100), mutated([b for b in BODIES if b]), cut_or_joined(BODIES), bombs()
)


@st.composite
def headed(draw: st.DrawFn) -> bytes:
    """A whole frame with any body: this comes as far as the decoder."""
    body = draw(some_body)
    command = draw(st.one_of(st.sampled_from(list(Command)), st.integers(0, 255)))
    kind, status = draw(st.sampled_from([1, 2])), draw(st.sampled_from([0, 0, 0, 7, 200]))
    key_id = draw(st.sampled_from([0, 0, KEY.key_id, 1]))
    frame = HEADER.pack(b"GB", 1, kind, command, status, len(body), 1, key_id) + body
    return KEY.seal(frame) if key_id else frame


anything = st.one_of(garbage, headed())


def parsed(data: bytes) -> Frame | None:
    """Return the frame, or None if it was refused as garbage has to be."""
    try:
        frame = parse(data)
    except RemoteProtocolError as error:
        assert isinstance(error.status, Status) and error.status is not Status.SUCCESS
        assert str(error)
        return None
    assert frame.signed + frame.mac == data
    return frame
